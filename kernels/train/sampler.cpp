#include "kernels/train/sampler.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {

Status check(const SamplerSpec& spec) {
  if (spec.global_batch == 0 || spec.global_batch > (1U << 24))
    return invalid(format("global_batch is {}, it must be 1 to {}", spec.global_batch, 1U << 24));
  if (spec.micro_shards == 0 || spec.micro_shards > 4096)
    return invalid(format("micro_shards is {}, it must be 1 to 4096", spec.micro_shards));
  return {};
}

std::vector<std::uint32_t> permutation(std::uint32_t count, std::uint64_t seed, std::uint64_t epoch) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0U);
  Random random = Random(seed).split(format("epoch {}", epoch));
  for (std::uint32_t i = count; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

Sampler::Sampler(SamplerSpec spec, std::vector<std::uint32_t> rows) : spec_(spec), rows_(std::move(rows)) {
  spec_.global_batch = std::max(spec_.global_batch, 1U);
  spec_.micro_shards = std::max(spec_.micro_shards, 1U);
}

std::uint64_t Sampler::steps_per_epoch() const noexcept {
  return std::max<std::uint64_t>(1, (rows_.size() + spec_.global_batch - 1) / spec_.global_batch);
}

std::span<const std::uint32_t> Sampler::batch(std::uint64_t step) {
  const std::uint64_t epoch = epoch_of(step);
  if (epoch != order_epoch_) {
    order_ = rows_;
    if (spec_.shuffle) {
      const auto positions = permutation(static_cast<std::uint32_t>(rows_.size()), spec_.seed, epoch);
      for (std::size_t i = 0; i < positions.size(); ++i) order_[i] = rows_[positions[i]];
    }
    order_epoch_ = epoch;
  }
  const std::size_t first = (step % steps_per_epoch()) * spec_.global_batch;
  return std::span(order_).subspan(first, std::min<std::size_t>(spec_.global_batch, order_.size() - first));
}

std::span<const std::uint32_t> Sampler::micro_shard(std::uint64_t step, std::uint32_t shard) {
  const auto all = batch(step);
  const std::size_t begin = all.size() * shard / spec_.micro_shards;
  const std::size_t end = all.size() * (shard + 1) / spec_.micro_shards;
  return all.subspan(begin, end - begin);
}

}  // namespace falaj::kernels
