// Seeded, stratified splits: a row's part depends on the seed, its id and its stratum's rows, not on the order of rows. Ids are hashes of
// row keys (ids_of) or, when empty, positions. Strata are class numbers; empty: one stratum.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/result.hpp"

namespace falaj::kernels {

struct Split {
  std::vector<std::uint32_t> train, validation, test;  // ascending row numbers
  bool operator==(const Split&) const = default;
};

struct SplitSpec {
  double validation = 0.0;  // shares; the rest is for training
  double test = 0.2;
  std::uint64_t seed = 0;
};

std::vector<std::uint64_t> ids_of(std::span<const std::string> keys);
// Strata for a label vector: class numbers for classification, five quantile bands for regression.
std::vector<std::uint32_t> strata_of(std::span<const float> labels, bool regression);

Result<Split> stratified_split(const SplitSpec& spec, std::size_t rows, std::span<const std::uint32_t> strata,
                               std::span<const std::uint64_t> ids = {});
// Fold i: its test rows, and of the others `validation` for early stopping, the rest for training.
Result<std::vector<Split>> k_fold(std::uint32_t folds, double validation, std::uint64_t seed, std::size_t rows,
                                  std::span<const std::uint32_t> strata, std::span<const std::uint64_t> ids = {});

}  // namespace falaj::kernels
