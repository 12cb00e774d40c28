// Resize in f32 beside the reference: all modes and coordinates, images in both layouts, NaN and infinities, and the same bits on any
// number of threads.
#include <cmath>
#include <limits>

#include "kernels/cpu/isa.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/run_graph.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

class Resizes : public testing::Seeded {
 protected:
  Tensor draw(const Shape& shape, bool edges) {
    constexpr std::array kEdges = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                   -std::numeric_limits<float>::infinity()};
    Tensor t(DType::f32, shape);
    for (float& v : t.mutable_data<float>()) v = static_cast<float>(random_.normal());
    if (edges) {
      for (std::int64_t i = up_to(5); i > 0; --i) t.mutable_data<float>()[random_.below(t.elements())] = kEdges[random_.below(3)];
    }
    return t;
  }
  template <std::size_t N>
  std::string one_of(const std::array<const char*, N>& texts) {
    return texts[random_.below(N)];
  }

  static Tensor run(const Graph& g, const Tensor& x, std::size_t threads, bool fast) {
    const auto got = testing::run_graph(g, std::span(&x, 1), threads, fast,
                                        [](const std::string& why) { return why.find("reference/") == std::string::npos; });
    return got.empty() ? Tensor() : got[0];
  }

  static void check(const Graph& g, const Tensor& x, bool exact) {
    const Tensor wanted = run(g, x, 1, false);
    const auto compare = [&] {
      const Tensor one = run(g, x, 1, true);
      EXPECT_TRUE(equal_bits(one, run(g, x, 3, true)));
      ASSERT_EQ(to_string(one.shape()), to_string(wanted.shape()));
      for (std::size_t i = 0; i < one.elements(); ++i) {
        const auto a = static_cast<double>(one.data<float>()[i]);
        const auto b = static_cast<double>(wanted.data<float>()[i]);
        if ((std::isnan(a) && std::isnan(b)) || a == b) continue;
        ASSERT_TRUE(!exact && std::abs(a - b) <= 4e-6 * (1 + std::abs(b))) << a << " and " << b << " at " << i;
      }
    };
    compare();
    const cpu::WithoutAvx512 limit;
    compare();
  }
};

TEST_F(Resizes, AgreeWithTheReferenceOnAnyNumberOfThreads) {
  for (int round = 0; round < 150; ++round) {
    const std::string mode = one_of(std::array{"nearest", "linear", "cubic"});
    Attributes attributes = {
        {"mode", mode},
        {"coordinate_transformation_mode", one_of(std::array{"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
                                                             "asymmetric", "tf_half_pixel_for_nn"})},
        {"nearest_mode", one_of(std::array{"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"})}};
    if (random_.chance(0.2)) attributes.emplace("antialias", std::int64_t{mode == "nearest" ? 0 : 1});
    if (random_.chance(0.2)) attributes.emplace("exclude_outside", std::int64_t{1});
    // Rows and pixels are at `first` and after it; either may stay as it is.
    Shape in{up_to(3), up_to(20), up_to(40), up_to(40)};
    if (random_.chance(0.2)) in.push_back(up_to(20));
    if (random_.chance(0.2)) in = {up_to(3), up_to(9), up_to(70)};
    const std::size_t first = in.rank() == 3 || random_.chance(0.4) ? 1 : 2;
    std::vector<float> scales(in.rank(), 1);
    std::vector<std::int64_t> sizes(in.begin(), in.end());
    for (std::size_t d = first; d < std::min(first + 2, in.rank()); ++d) {
      scales[d] = random_.chance(0.5) ? static_cast<float>(up_to(8)) : static_cast<float>(0.4 + 2 * random_.uniform());
      if (static_cast<float>(in[d]) * scales[d] < 1) scales[d] = 1;
      sizes[d] = up_to(90);
      // More taps than there are kernels for.
      if (attributes.contains("antialias") && sizes[d] * 3 < in[d]) sizes[d] = in[d] + 1;
    }
    if (random_.chance(0.2)) scales[first] = 1, sizes[first] = in[first];
    scales[first + 1] = scales[first + 1] == 1 && scales[first] == 1 ? 2 : scales[first + 1];
    if (sizes[first + 1] == in[first + 1] && sizes[first] == in[first]) ++sizes[first + 1];
    Graph g;
    g.opsets[""] = 18;
    g.add_input("x", DType::f32, in);
    const bool by_scales = random_.chance(0.5);
    const Shape count{static_cast<std::int64_t>(in.rank())};
    const std::string by = by_scales ? g.add_initializer("by", Tensor::of<float>(count, std::span<const float>(scales)))
                                     : g.add_initializer("by", Tensor::of<std::int64_t>(count, std::span<const std::int64_t>(sizes)));
    SCOPED_TRACE(format("round {}, {} of {} by {}", round, mode, to_string(in), by_scales ? "scales" : "sizes"));
    if (by_scales) {
      g.add("Resize", {"x", "", by}, attributes, "y");
    } else {
      g.add("Resize", {"x", "", "", by}, attributes, "y");
    }
    g.outputs.push_back({"y", DType::undefined, {}, {}, false});
    check(g, draw(in, random_.chance(0.3)), mode == "nearest");
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

TEST_F(Resizes, OldUpsamplingToo) {
  Graph g;
  g.opsets[""] = 9;
  g.add_input("x", DType::f32, {2, 3, 17, 13});
  g.add("Upsample", {"x", g.add_initializer("scales", Tensor::vector<float>({1, 1, 2, 2}))}, {}, "y");
  g.outputs.push_back({"y", DType::undefined, {}, {}, false});
  check(g, draw({2, 3, 17, 13}, true), true);
}

}  // namespace
}  // namespace falaj::kernels
