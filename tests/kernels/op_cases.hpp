// Sample calls of every op, with f64 inputs where an op is differentiable: what the tests over the op list run.
#pragma once
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/ops.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels::testing {

inline std::uint64_t test_seed() {
  const char* given = std::getenv("FALAJ_TEST_SEED");
  return given == nullptr ? 20261121 : std::strtoull(given, nullptr, 10);
}

struct OpCase {
  Node node;
  std::vector<Tensor> inputs;
  bool differentiable = false;  // with respect to its f64 inputs
};
std::vector<OpCase> op_cases(Random& random);       // all
std::vector<OpCase> more_op_cases(Random& random);  // those of op_cases_more.cpp

Tensor random_tensor(Random& random, const Shape& shape, double low = -2, double high = 2);  // f64
Tensor as_f32(const Tensor& tensor);                                                         // f64 becomes f32; others stay

}  // namespace falaj::kernels::testing
