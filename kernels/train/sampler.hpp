// Which rows make which step: a pure function of (rows, seed, epoch), never of the number of workers. Every row occurs exactly
// once an epoch; the last batch of an epoch may be smaller. A batch is cut into a fixed number of micro-shards; a rank computes a
// contiguous range of them (shard_range in kernels/collective).
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/result.hpp"

namespace falaj::kernels {

struct SamplerSpec {
  std::uint32_t global_batch = 64;
  std::uint32_t micro_shards = 8;
  std::uint64_t seed = 0;
  bool shuffle = true;
};
Status check(const SamplerSpec& spec);

class Sampler {
 public:
  Sampler(SamplerSpec spec, std::vector<std::uint32_t> rows);

  [[nodiscard]] std::uint64_t rows() const noexcept { return rows_.size(); }
  [[nodiscard]] std::uint64_t steps_per_epoch() const noexcept;
  [[nodiscard]] std::uint64_t epoch_of(std::uint64_t step) const noexcept { return step / steps_per_epoch(); }
  [[nodiscard]] const SamplerSpec& spec() const noexcept { return spec_; }

  // Valid until the next call of either. `step` counts over all epochs.
  std::span<const std::uint32_t> batch(std::uint64_t step);
  std::span<const std::uint32_t> micro_shard(std::uint64_t step, std::uint32_t shard);

 private:
  SamplerSpec spec_;
  std::vector<std::uint32_t> rows_;
  std::vector<std::uint32_t> order_;
  std::uint64_t order_epoch_ = ~0ULL;
};

// A permutation of 0..count-1 (Fisher and Yates); part of the contract, it never changes.
std::vector<std::uint32_t> permutation(std::uint32_t count, std::uint64_t seed, std::uint64_t epoch);

}  // namespace falaj::kernels
