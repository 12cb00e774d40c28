// Sample calls of every op, with f64 inputs where an op is differentiable: what the tests over the op list run.
#pragma once
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/ops.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels::testing {

struct OpCase {
  Node node;
  std::vector<Tensor> inputs;
  bool differentiable = false;      // with respect to its f64 inputs
  std::size_t differentiated = 64;  // those from here on are data: targets, weights of rows, statistics
  bool as_given = false;            // f64 is what the op wants, and is not to be narrowed
};
std::vector<OpCase> op_cases(Random& random);          // all
std::vector<OpCase> more_op_cases(Random& random);     // those of op_cases_more.cpp
std::vector<OpCase> integer_op_cases(Random& random);  // those of op_cases_integer.cpp

Tensor random_tensor(Random& random, const Shape& shape, double low = -2, double high = 2);  // f64
Tensor as_f32(const Tensor& tensor);                                                         // f64 becomes f32; others stay

// Collects cases. An empty input tensor is one that is left out.
class CaseMaker {
 public:
  explicit CaseMaker(Random& random) : random_(random) {}
  void add(std::string_view domain, std::string_view op, std::vector<Tensor> inputs, Attributes attributes = {}, std::size_t outputs = 1,
           bool differentiable = false);
  void smooth(std::string_view op, std::vector<Tensor> inputs, Attributes attributes = {}, std::size_t outputs = 1) {
    add(kOnnx, op, std::move(inputs), std::move(attributes), outputs, true);
  }
  // Differentiable with respect to the first `differentiated` inputs.
  void partly(std::string_view domain, std::string_view op, std::vector<Tensor> inputs, Attributes attributes, std::size_t outputs,
              std::size_t differentiated) {
    add(domain, op, std::move(inputs), std::move(attributes), outputs, true);
    cases.back().differentiated = differentiated;
  }
  void plain(std::string_view op, std::vector<Tensor> inputs, Attributes attributes = {}, std::size_t outputs = 1) {
    add(kOnnx, op, std::move(inputs), std::move(attributes), outputs);
  }
  Tensor t(const Shape& shape, double low = -2, double high = 2) { return random_tensor(random_, shape, low, high); }
  static Tensor ints(std::initializer_list<std::int64_t> values) { return Tensor::vector<std::int64_t>(values); }
  Random& random() { return random_; }

  std::vector<OpCase> cases;

 private:
  Random& random_;
};

}  // namespace falaj::kernels::testing
