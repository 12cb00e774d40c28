// ConvTranspose by vectors, in all forms: beside the reference, on any number of threads, and an image alone or in a batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/isa.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/run_graph.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;

class ConvTransposes : public testing::Seeded {
 protected:
  Tensor draw(const Shape& shape) { return testing::as_f32(testing::random_tensor(random_, shape, -1, 1)); }

  struct Form {
    std::size_t rank = 2;
    bool tiled = false;
    bool known = true;  // the weights, before the run
  };
  Graph layer(const Form& form, std::vector<Tensor>& inputs) {
    const std::int64_t groups = random_.chance(0.3) ? up_to(3) : 1;
    const std::int64_t channels = groups * up_to(20);
    const std::int64_t share = up_to(form.rank == 2 ? 70 : 20);
    Shape x{up_to(3), channels};
    Shape w{channels, share};
    Ints strides, pads, dilations, extra;
    for (std::size_t d = 0; d < form.rank; ++d) {
      strides.push_back(up_to(3));
      dilations.push_back(form.tiled ? 1 : up_to(2));
      w.push_back(form.tiled ? strides.back() : up_to(4));
      x.push_back((w.back() - 1) * dilations.back() + up_to(form.rank == 1 ? 60 : 9));  // so that pads leave something
      pads.push_back(form.tiled ? 0 : static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(w.back()))));
      extra.push_back(form.tiled ? 0 : static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(strides.back()))));
    }
    for (std::size_t d = 0; d < form.rank; ++d)
      pads.push_back(form.tiled ? 0 : static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(w[d + 2]))));
    Attributes attributes{{"strides", strides}, {"dilations", dilations}, {"group", groups}};
    switch (form.tiled ? 0 : random_.below(4)) {
      case 1:
        attributes.emplace("auto_pad", std::string(std::array{"SAME_UPPER", "SAME_LOWER", "VALID"}[random_.below(3)]));
        break;
      case 2: {
        Ints wanted;
        for (std::size_t d = 0; d < form.rank; ++d) wanted.push_back(x[d + 2] * strides[d] + up_to(4) - 1);
        attributes.emplace("output_shape", std::move(wanted));
        break;
      }
      default:
        attributes.emplace("pads", pads);
        attributes.emplace("output_padding", extra);
    }
    Graph g;
    g.add_input("x", DType::f32, x);
    inputs = {draw(x)};
    std::vector<std::string> names = {"x", "w"};
    const auto give = [&](const char* name, const Shape& shape) {
      if (form.known) {
        g.add_initializer(name, draw(shape));
      } else {
        g.add_input(name, DType::f32, shape);
        inputs.push_back(draw(shape));
      }
    };
    give("w", w);
    if (random_.chance(0.6)) {
      give("b", {groups * share});
      names.emplace_back("b");
    }
    g.add_node(Node{"ConvTranspose", "", "layer", names, {"y"}, std::move(attributes)});
    g.outputs.push_back({"y", DType::undefined, {}, {}, false});
    return g;
  }

  static Tensor run(const Graph& graph, const std::vector<Tensor>& inputs, std::size_t threads, bool fast = true) {
    const auto got = testing::run_graph(graph, inputs, threads, fast,
                                        [](const std::string& why) { return why.find("transposed convolution") != std::string::npos; });
    return got.empty() ? Tensor() : got[0];
  }
};

TEST_F(ConvTransposes, AgreeWithTheReferenceOnAnyNumberOfThreads) {
  for (std::size_t round = 0; round < 90; ++round) {
    SCOPED_TRACE(format("round {}", round));
    std::vector<Tensor> inputs;
    const Graph g = layer({1 + round % 3, round % 4 == 0, round % 5 != 0}, inputs);
    const Tensor wanted = run(g, inputs, 1, false);
    const auto check = [&] {
      const Tensor one = run(g, inputs, 1);
      ASSERT_EQ(to_string(one.shape()), to_string(wanted.shape()));
      for (std::size_t i = 0; i < one.elements(); ++i) ASSERT_NEAR(one.data<float>()[i], wanted.data<float>()[i], 3e-5) << i;
      EXPECT_TRUE(equal_bits(one, run(g, inputs, 3)));
    };
    check();
    const cpu::WithoutAvx512 limit;
    check();
    if (HasFatalFailure()) return;
  }
}

// Large enough to be done in parts.
TEST_F(ConvTransposes, GradientsAgreeWithTheReference) {
  Graph g;
  const std::vector<Tensor> inputs = {draw({8, 32, 10, 10}), draw({32, 64, 4, 4}), draw({8, 64, 20, 20})};
  g.add_input("x", DType::f32, inputs[0].shape());
  g.add_input("w", DType::f32, inputs[1].shape());
  g.add_input("slope", DType::f32, inputs[2].shape());
  g.add_node(Node{"ConvTranspose", "", "layer", {"x", "w"}, {"y"}, {{"strides", Ints{2, 2}}, {"pads", Ints{1, 1, 1, 1}}}});
  const std::vector<std::string> wrt = {"x", "w"};
  const auto names = append_gradients(g, "y", wrt, "slope");
  ASSERT_TRUE(names) << names.error().message;
  for (const auto& name : *names) g.outputs.push_back({name, DType::undefined, {}, {}, false});
  const auto gradients = [&](std::size_t threads, bool fast) {
    CompileOptions options{.batch_invariant = false, .threads = threads};
    if (!fast) options.backends = {&reference_backend()};
    const auto compiled = compile(g, std::move(options));
    EXPECT_TRUE(compiled) << compiled.error().message;
    EXPECT_EQ(fast, (*compiled)->why(8)->find("reference") == std::string::npos) << *(*compiled)->why(8);
    Executor executor(*compiled, threads);
    std::vector<Tensor> got;
    EXPECT_TRUE(executor.run(inputs, got));
    return got;
  };
  const auto wanted = gradients(1, false);
  const auto one = gradients(1, true);
  const auto three = gradients(3, true);
  for (std::size_t k = 0; k < 2; ++k) {
    ASSERT_EQ(to_string(one[k].shape()), to_string(wanted[k].shape()));
    for (std::size_t i = 0; i < one[k].elements(); ++i)
      ASSERT_NEAR(one[k].data<float>()[i], wanted[k].data<float>()[i], 5e-4) << k << " " << i;
    EXPECT_TRUE(equal_bits(one[k], three[k])) << k;
  }
}

TEST_F(ConvTransposes, AnImageIsTheSameAloneAndInABatch) {
  for (int round = 0; round < 12; ++round) {
    std::vector<Tensor> inputs;
    Graph g = layer({2, round % 2 == 0, true}, inputs);
    g.inputs[0].shape[0] = -1;
    Shape shape = inputs[0].shape();
    shape[0] = 5;
    inputs[0] = draw(shape);
    const Tensor all = run(g, inputs, 1);
    shape[0] = 1;
    Tensor one = Tensor::uninitialised(DType::f32, shape);
    const std::size_t at = random_.below(5);
    std::ranges::copy(inputs[0].data<float>().subspan(at * one.elements(), one.elements()), one.mutable_data<float>().begin());
    const Tensor alone = run(g, {one}, 1);
    ASSERT_GT(alone.elements(), 0U);
    ASSERT_EQ(all.elements(), 5 * alone.elements());
    EXPECT_EQ(0, std::memcmp(alone.raw(), all.data<float>().data() + at * alone.elements(), alone.elements() * sizeof(float))) << round;
  }
}

}  // namespace
}  // namespace falaj::kernels
