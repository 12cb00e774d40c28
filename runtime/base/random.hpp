// Randomness is an argument. Random is xoshiro256** (Blackman and Vigna, "Scrambled linear pseudorandom number generators",
// 2018) seeded by SplitMix64; the stream for a seed is part of the contract (simulation digests, data order) and never changes.
// Not for keys or tokens: those come from storage/seal and runtime/net/tls (OpenSSL).
#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace falaj {

class Random {
 public:
  explicit Random(std::uint64_t seed) noexcept;
  std::uint64_t next() noexcept;
  std::uint64_t below(std::uint64_t bound) noexcept;  // uniform in [0, bound), bound > 0 (Lemire's method)
  double uniform() noexcept;                          // [0, 1), 53 bits
  double normal() noexcept;                           // mean 0, deviation 1 (Box-Muller, one of the pair)
  bool chance(double p) noexcept { return uniform() < p; }
  // An independent stream for a named consumer, so that a new consumer does not reshuffle the others.
  [[nodiscard]] Random split(std::string_view name) const noexcept;

  // For std::shuffle and the like.
  using result_type = std::uint64_t;
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return ~0ULL; }
  result_type operator()() noexcept { return next(); }

 private:
  std::array<std::uint64_t, 4> s_{};
};

// One seed from the operating system, for production start-up only (the single place that asks for real entropy).
std::uint64_t entropy_seed();

}  // namespace falaj
