// Tests that draw their cases: from FALAJ_TEST_SEED if it is given, and with the seed told where one fails.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "runtime/base/random.hpp"

namespace falaj::kernels::testing {

inline std::uint64_t test_seed() {
  const char* given = std::getenv("FALAJ_TEST_SEED");
  return given == nullptr ? 20261121 : std::strtoull(given, nullptr, 10);
}

class Seeded : public ::testing::Test {
 protected:
  Seeded() : seed_(test_seed()), random_(seed_) { RecordProperty("seed", std::to_string(seed_)); }
  void TearDown() override {
    if (HasFailure()) std::printf("repeat with FALAJ_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed_));
  }
  std::int64_t up_to(std::int64_t most) { return 1 + static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(most))); }

  std::uint64_t seed_;
  Random random_;
};

}  // namespace falaj::kernels::testing
