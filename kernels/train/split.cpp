#include "kernels/train/split.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "runtime/base/format.hpp"
#include "runtime/base/ids.hpp"

namespace falaj::kernels {

namespace {

// SplitMix64's finaliser: one to one, so different ids never collide.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// Rows of each stratum in seeded order.
Result<std::vector<std::vector<std::uint32_t>>> shuffled_strata(std::uint64_t seed, std::size_t rows, std::span<const std::uint32_t> strata,
                                                                std::span<const std::uint64_t> ids) {
  if (!strata.empty() && strata.size() != rows) return invalid(format("split: {} strata for {} rows", strata.size(), rows));
  if (!ids.empty() && ids.size() != rows) return invalid(format("split: {} ids for {} rows", ids.size(), rows));
  std::map<std::uint32_t, std::vector<std::pair<std::uint64_t, std::uint32_t>>> keyed;
  for (std::uint32_t row = 0; row < rows; ++row) {
    const std::uint64_t id = ids.empty() ? row : ids[row];
    keyed[strata.empty() ? 0 : strata[row]].emplace_back(mix(id ^ mix(seed + 0x9e3779b97f4a7c15ULL)), row);
  }
  std::vector<std::vector<std::uint32_t>> out;
  for (auto& [stratum, members] : keyed) {
    std::ranges::sort(members);
    auto& order = out.emplace_back();
    for (const auto& [key, row] : members) order.push_back(row);
  }
  return out;
}

}  // namespace

std::vector<std::uint64_t> ids_of(std::span<const std::string> keys) {
  std::vector<std::uint64_t> ids;
  ids.reserve(keys.size());
  for (const std::string& key : keys) ids.push_back(stable_hash(key));
  return ids;
}

std::vector<std::uint32_t> strata_of(std::span<const float> labels, bool regression) {
  std::vector<std::uint32_t> strata(labels.size());
  if (!regression) {
    for (std::size_t i = 0; i < labels.size(); ++i) strata[i] = static_cast<std::uint32_t>(labels[i]);
    return strata;
  }
  constexpr std::size_t kBands = 5;
  std::vector<float> sorted(labels.begin(), labels.end());
  std::ranges::sort(sorted);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto rank = static_cast<std::size_t>(std::ranges::lower_bound(sorted, labels[i]) - sorted.begin());
    strata[i] = static_cast<std::uint32_t>(rank * kBands / sorted.size());
  }
  return strata;
}

Result<Split> stratified_split(const SplitSpec& spec, std::size_t rows, std::span<const std::uint32_t> strata,
                               std::span<const std::uint64_t> ids) {
  if (!(spec.validation >= 0) || !(spec.test >= 0) || !(spec.validation + spec.test < 1)) {
    return invalid(format("split: validation {} and test {} must be 0 or larger and leave rows for training", spec.validation, spec.test));
  }
  FALAJ_ASSIGN(const auto groups, shuffled_strata(spec.seed, rows, strata, ids));
  Split split;
  for (const auto& order : groups) {
    const auto size = static_cast<double>(order.size());
    const auto test = static_cast<std::size_t>(std::llround(size * spec.test));
    const auto held = std::min(order.size(), static_cast<std::size_t>(std::llround(size * (spec.test + spec.validation))));
    for (std::size_t i = 0; i < order.size(); ++i) (i < test ? split.test : i < held ? split.validation : split.train).push_back(order[i]);
  }
  for (auto* part : {&split.train, &split.validation, &split.test}) std::ranges::sort(*part);
  return split;
}

Result<std::vector<Split>> k_fold(std::uint32_t folds, double validation, std::uint64_t seed, std::size_t rows,
                                  std::span<const std::uint32_t> strata, std::span<const std::uint64_t> ids) {
  if (folds < 2 || folds > rows) return invalid(format("k-fold: {} folds of {} rows, there must be 2 to as many as rows", folds, rows));
  if (!(validation >= 0 && validation < 1)) return invalid(format("k-fold: validation is {}, it must be in [0, 1)", validation));
  FALAJ_ASSIGN(const auto groups, shuffled_strata(seed, rows, strata, ids));
  std::vector<Split> splits(folds);
  std::size_t dealt = 0;  // goes on over the strata, so that the folds' sizes differ by one at most
  for (const auto& order : groups) {
    for (std::uint32_t fold = 0; fold < folds; ++fold) {
      std::vector<std::uint32_t> others;
      for (std::size_t i = 0; i < order.size(); ++i) {
        if ((dealt + i) % folds == fold) {
          splits[fold].test.push_back(order[i]);
        } else {
          others.push_back(order[i]);
        }
      }
      const auto held = static_cast<std::size_t>(std::llround(static_cast<double>(others.size()) * validation));
      for (std::size_t i = 0; i < others.size(); ++i) (i < held ? splits[fold].validation : splits[fold].train).push_back(others[i]);
    }
    dealt += order.size();
  }
  for (Split& split : splits) {
    for (auto* part : {&split.train, &split.validation, &split.test}) std::ranges::sort(*part);
  }
  return splits;
}

}  // namespace falaj::kernels
