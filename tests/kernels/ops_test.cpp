// Walks the op list: every op has cases; types inferred are types computed; the CPU backend agrees with the reference; every gradient
// agrees with central differences in double.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/cpu/isa.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::op_cases;
using testing::OpCase;

class Ops : public testing::Seeded {
 protected:
  Ops() : cases_(op_cases(random_)) {}
  std::vector<OpCase> cases_;
};

std::string text_of(const OpCase& c) {
  std::string text = c.node.domain + ":" + c.node.op;
  for (const Tensor& t : c.inputs) text += t.empty() ? " -" : format(" {}{}", to_string(t.dtype()), to_string(t.shape()));
  return text;
}

// The case as a graph: float inputs are inputs, the rest (axes, indices, conditions) are constants.
Graph graph_of(const OpCase& c, std::vector<Tensor>& inputs, bool data_constant = false) {
  Graph g;
  for (std::size_t i = 0; i < c.inputs.size(); ++i) {
    if (c.inputs[i].empty()) continue;
    // What shapes are made from must be known when the plan is made.
    bool bound = (i > 0 && (c.node.op == "Clip" || c.node.op == "Resize" || c.node.op == "Upsample")) || c.node.op == "Range" ||
                 c.node.op == "MelWeightMatrix" || (data_constant && i >= c.differentiated);
    if ((is_float(c.inputs[i].dtype()) && !bound) || c.inputs[i].dtype() == DType::string) {
      g.add_input(c.node.inputs[i], c.inputs[i].dtype(), c.inputs[i].shape());
      inputs.push_back(c.inputs[i]);
    } else {
      g.add_initializer(c.node.inputs[i], c.inputs[i]);
    }
  }
  g.add_node(c.node);
  return g;
}

Result<std::vector<Tensor>> run(Graph graph, std::span<const Tensor> inputs, std::vector<const Backend*> backends, bool fuse = true) {
  FALAJ_ASSIGN(auto compiled, compile(std::move(graph), {.backends = std::move(backends), .fuse = fuse}));
  Executor executor(compiled);
  std::vector<Tensor> outputs;
  FALAJ_TRY(executor.run(inputs, outputs));
  return outputs;
}

// Kernels made in `check` are those of the widest vectors that this machine has, and then those of AVX2.
template <class Check>
void on_each_width(Check check) {
  check();
  if (!cpu::has_avx512()) return;
  const cpu::WithoutAvx512 limit;
  check();
}

void expect_close(const Tensor& a, const Tensor& b, double relative, double absolute, const std::string& what) {
  ASSERT_EQ(a.dtype(), b.dtype()) << what;
  ASSERT_EQ(to_string(a.shape()), to_string(b.shape())) << what;
  if (a.dtype() != DType::f32) {
    EXPECT_TRUE(equal_bits(a, b)) << what;
    return;
  }
  for (std::size_t i = 0; i < a.elements(); ++i) {
    double x = static_cast<double>(a.data<float>()[i]);
    double y = static_cast<double>(b.data<float>()[i]);
    if (std::isnan(x) && std::isnan(y)) continue;
    ASSERT_LE(std::abs(x - y), absolute + relative * std::abs(y)) << what << " at " << i << ": " << x << " and " << y;
  }
}

TEST_F(Ops, InferenceIsWhatKernelsCompute) {
  for (const OpCase& c : cases_) {
    auto values = run_reference(c.node, c.inputs);
    ASSERT_TRUE(values.has_value()) << text_of(c) << ": " << values.error().message;
    std::vector<ValueType> types;
    for (const Tensor& t : c.inputs) types.push_back(t.empty() ? ValueType{} : ValueType{t.dtype(), t.shape(), &t});
    auto inferred = infer_node(c.node, types, kOpset);
    ASSERT_TRUE(inferred.has_value()) << text_of(c);
    for (std::size_t i = 0; i < values->size(); ++i) {
      EXPECT_EQ((*values)[i].dtype(), (*inferred)[i].dtype) << text_of(c);
      EXPECT_EQ(to_string((*values)[i].shape()), to_string((*inferred)[i].shape)) << text_of(c);
    }
  }
}

TEST_F(Ops, CpuAgreesWithReference) {
  for (const OpCase& given : cases_) {
    OpCase c = given;
    for (Tensor& t : c.inputs) t = c.as_given ? t : as_f32(t);
    std::vector<Tensor> inputs;
    Graph g = graph_of(c, inputs);
    for (const auto& name : c.node.outputs) g.outputs.push_back({name, DType::undefined, {}, {}, false});
    auto slow = run(g, inputs, {&reference_backend()}, false);
    ASSERT_TRUE(slow.has_value()) << text_of(c) << ": " << slow.error().message;
    on_each_width([&] {
      auto fast = run(g, inputs, {});
      ASSERT_TRUE(fast.has_value()) << text_of(c) << ": " << fast.error().message;
      for (std::size_t i = 0; i < fast->size(); ++i) expect_close((*fast)[i], (*slow)[i], 1e-5, 5e-6, text_of(c));
    });
  }
}

// The same with weights known before the run, for which kernels are chosen that pack them.
TEST_F(Ops, CpuAgreesWithReferenceWhereWeightsAreKnown) {
  std::size_t met = 0;
  for (const OpCase& given : cases_) {
    const bool weighted =
        given.node.op == "Conv" || given.node.op == "ConvTranspose" || given.node.op == "MatMul" || given.node.op == "Gemm";
    if (!weighted) continue;
    OpCase c = given;
    for (Tensor& t : c.inputs) t = as_f32(t);
    c.differentiated = 1;  // all but the first are constants
    std::vector<Tensor> inputs;
    Graph g = graph_of(c, inputs, true);
    for (const auto& name : c.node.outputs) g.outputs.push_back({name, DType::undefined, {}, {}, false});
    auto slow = run(g, inputs, {&reference_backend()}, false);
    ASSERT_TRUE(slow.has_value()) << text_of(c) << ": " << slow.error().message;
    on_each_width([&] {
      auto fast = run(g, inputs, {});
      ASSERT_TRUE(fast.has_value()) << text_of(c) << ": " << fast.error().message;
      expect_close((*fast)[0], (*slow)[0], 1e-5, 3e-6, text_of(c));
    });
    ++met;
  }
  EXPECT_GE(met, 20U);
}

// sum(weights * output) of the case, as a graph over its float inputs.
std::string add_target(Graph& g, const OpCase& c, Random& random) {
  auto values = run_reference(c.node, c.inputs);
  std::string total;
  for (std::size_t i = 0; i < values->size(); ++i) {
    if ((*values)[i].dtype() != DType::f64 && (*values)[i].dtype() != DType::f32) continue;
    const bool all = c.node.op == "Split" || c.node.op == "RNN" || c.node.op == "GRU" || c.node.op == "LSTM";
    if (i > 0 && !all) continue;
    std::string y = c.node.outputs[i];
    if ((*values)[i].dtype() == DType::f32) y = g.add("Cast", {y}, Attributes{{"to", std::int64_t{11}}});
    std::string weights = g.add_initializer(g.fresh("weights"), testing::random_tensor(random, (*values)[i].shape()));
    std::string sum = g.add("ReduceSum", {g.add("Mul", {y, weights})}, Attributes{{"keepdims", std::int64_t{0}}});
    total = total.empty() ? sum : g.add("Add", {total, sum});
  }
  return total;
}

void check_gradient(const OpCase& c, Random& random, std::set<std::string>& seen) {
  std::vector<Tensor> inputs;
  Graph forward = graph_of(c, inputs, true);
  std::string target = add_target(forward, c, random);
  std::vector<std::string> wrt;
  for (const auto& input : forward.inputs) wrt.push_back(input.name);
  Graph backward = forward;
  auto gradients = append_gradients(backward, target, wrt);
  ASSERT_TRUE(gradients.has_value()) << text_of(c) << ": " << gradients.error().message;
  for (const Node& node : backward.nodes) seen.insert(node.domain + ":" + node.op);
  forward.add_output(target, DType::f64, {});
  auto compiled = compile(forward, {.backends = {&reference_backend()}});
  ASSERT_TRUE(compiled.has_value()) << compiled.error().message;
  Executor executor(*compiled);
  std::vector<Tensor> value;
  auto at = [&](std::size_t k, std::size_t i, double step) {
    std::vector<Tensor> moved = inputs;
    moved[k] = inputs[k].clone();
    moved[k].mutable_data<double>()[i] += step;
    EXPECT_TRUE(executor.run(moved, value).has_value());
    return value[0].data<double>()[0];
  };
  bool rounded = c.node.op == "Cast";  // through f32: its steps are coarse
  for (std::size_t k = 0; k < wrt.size(); ++k) {
    Tensor computed(DType::f64, inputs[k].shape());
    if (!(*gradients)[k].empty()) {
      Graph one = backward;
      one.outputs.clear();
      one.add_output((*gradients)[k], DType::f64, inputs[k].shape());
      auto result = run(std::move(one), inputs, {&reference_backend()});
      ASSERT_TRUE(result.has_value()) << text_of(c) << ": " << result.error().message;
      computed = (*result)[0];
    }
    ASSERT_EQ(to_string(computed.shape()), to_string(inputs[k].shape())) << text_of(c);
    double step = rounded ? 1e-2 : 1e-5;
    for (std::size_t i = 0; i < inputs[k].elements(); ++i) {
      double difference = (at(k, i, step) - at(k, i, -step)) / (2 * step);
      ASSERT_NEAR(computed.data<double>()[i], difference, (rounded ? 1e-3 : 2e-6) * (1 + std::abs(difference)))
          << text_of(c) << ", input " << k << ", element " << i;
    }
  }
}

// Gradients in f32, by the fast kernels and by the plain ones.
TEST_F(Ops, CpuGradientsAgreeWithReference) {
  for (const OpCase& given : cases_) {
    if (!given.differentiable) continue;
    OpCase c = given;
    for (Tensor& t : c.inputs) t = as_f32(t);
    std::vector<Tensor> inputs;
    Graph g = graph_of(c, inputs, true);
    const std::string target = add_target(g, c, random_);
    std::vector<std::string> wrt;
    for (const auto& input : g.inputs) wrt.push_back(input.name);
    auto gradients = append_gradients(g, target, wrt);
    ASSERT_TRUE(gradients.has_value()) << text_of(c) << ": " << gradients.error().message;
    for (const std::string& name : *gradients) {
      if (!name.empty() && g.find_output(name) == nullptr) g.outputs.push_back({name, DType::undefined, {}, {}, false});
    }
    if (g.outputs.empty()) continue;
    auto fast = run(g, inputs, {});
    auto slow = run(g, inputs, {&reference_backend()}, false);
    ASSERT_TRUE(fast.has_value()) << text_of(c) << ": " << fast.error().message;
    ASSERT_TRUE(slow.has_value()) << text_of(c) << ": " << slow.error().message;
    for (std::size_t i = 0; i < fast->size(); ++i) expect_close((*fast)[i], (*slow)[i], 1e-4, 1e-4, text_of(c));
  }
}

TEST_F(Ops, GradientsAgreeWithCentralDifferencesAndEveryOpIsMet) {
  std::set<std::string> seen;
  std::set<std::string> checked;
  for (const OpCase& c : cases_) {
    seen.insert(c.node.domain + ":" + c.node.op);
    if (!c.differentiable) continue;
    check_gradient(c, random_, seen);
    if (HasFatalFailure()) return;
    checked.insert(c.node.domain + ":" + c.node.op);
  }
  std::size_t standard = 0;  // of ai.onnx and ai.onnx.ml
  for (const OpDef* op : all_ops()) {
    const std::string name = std::string(op->domain) + ":" + std::string(op->type);
    EXPECT_TRUE(op->eager != nullptr || seen.contains(name))
        << name << " has no case in op_cases.cpp";  // interpret_test.cpp meets eager ones
    if (op->gradient == nullptr || op->domain == kFalaj) continue;
    EXPECT_TRUE(checked.contains(name)) << name << " has a gradient, and no case that checks it";
    ++standard;
  }
  RecordProperty("differentiable_ops", static_cast<int>(standard));
  EXPECT_GE(standard, 100U);
}

// What attains an extremum twice gives its gradient once: to the first, whichever op it is.
TEST_F(Ops, TiedInputsShareNoGradient) {
  const Tensor tied = Tensor::of<double>({1, 1, 4}, {1, 3, 3, 3});
  const Attributes window = {{"kernel_shape", std::vector<std::int64_t>{4}}};
  const Attributes one = {{"keepdims", std::int64_t{1}}};
  for (const auto& [op, attributes] : {std::pair{"MaxPool", window}, {"GlobalMaxPool", Attributes{}}, {"ReduceMax", one}}) {
    Graph g;
    g.add_input("x", DType::f64, {1, 1, 4});
    const std::string y = g.add(op, {"x"}, attributes);
    const std::vector<std::string> wrt = {"x"};
    auto gradient = append_gradients(g, y, wrt);
    ASSERT_TRUE(gradient.has_value()) << gradient.error().message;
    g.add_output(gradient->front(), DType::f64, {1, 1, 4});
    auto result = run(g, std::vector<Tensor>{tied}, {&reference_backend()});
    ASSERT_TRUE(result.has_value()) << result.error().message;
    EXPECT_TRUE(equal_bits(result->front(), Tensor::of<double>({1, 1, 4}, {0, 1, 0, 0}))) << op;
  }
}

TEST_F(Ops, BadDataIsReportedByNode) {
  Graph g;
  g.add_input("rows", DType::f32, {-1, 2});
  g.add_input("index", DType::i64, {-1}, "M");
  g.add("Gather", {"rows", "index"}, {}, "y");
  g.add_output("y", DType::f32, {-1, 2});
  auto result = run(g, std::vector<Tensor>{Tensor(DType::f32, {3, 2}), Tensor::vector<std::int64_t>({0, 3})}, {});
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, ErrorCode::invalid);
  EXPECT_NE(result.error().message.find("Gather"), std::string::npos) << result.error().message;
  EXPECT_NE(result.error().message.find("index 3"), std::string::npos) << result.error().message;
}

}  // namespace
}  // namespace falaj::kernels
