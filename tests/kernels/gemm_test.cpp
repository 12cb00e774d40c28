// The f32 product on eight lanes and on sixteen: the same bits, whatever the sizes, the strides, the ends of sums and the rows taken
// together. That they are the bits wanted, the comparisons with the reference kernels say.
#include "kernels/cpu/gemm.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "kernels/cpu/isa.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using cpu::Finish;
using testing::as_f32;
using testing::random_tensor;

class Products : public testing::Seeded {
 protected:
  void SetUp() override {
    if (!cpu::has_avx512()) GTEST_SKIP() << "one width of vectors only";
  }
  Tensor f32(std::int64_t size) { return as_f32(random_tensor(random_, {size}, -1, 1)); }
  Finish any_end(const Tensor& bias) {
    constexpr std::array kActivations = {Activation::none,    Activation::none, Activation::relu, Activation::leaky_relu,
                                         Activation::sigmoid, Activation::tanh, Activation::gelu};
    Finish f;
    f.activation = kActivations[random_.below(kActivations.size())];
    if (random_.below(3) == 0) f.alpha = 0.5F;
    if (random_.below(3) == 0) return f;
    f.bias = bias.data<float>().data();
    f.bias_row = static_cast<std::int64_t>(random_.below(2));
    f.bias_col = static_cast<std::int64_t>(random_.below(3));
    if (random_.below(3) == 0) f.beta = 1.5F;
    return f;
  }
};

TEST_F(Products, BothWidthsGiveTheSameBitsAndARowsBitsAreItsOwn) {
  for (int round = 0; round < 150; ++round) {
    const std::int64_t m = up_to(round % 10 == 0 ? 120 : 40);
    const std::int64_t n = up_to(90);
    const std::int64_t k = up_to(round % 10 == 0 ? 1500 : 60);
    const bool turned = random_.below(4) == 0;
    const Tensor a = f32(m * k);
    const Tensor b = f32(k * n);
    const Tensor bias = f32(m + 2 * n);
    const Finish end = any_end(bias);
    Tensor packed = Tensor::uninitialised(DType::f32, {static_cast<std::int64_t>(cpu::packed_elements(k, n))});
    cpu::pack(b.data<float>().data(), n, 1, k, n, packed.mutable_data<float>().data());
    const auto product = [&](cpu::Multiply multiply, std::int64_t first, std::int64_t rows) {
      Tensor y(DType::f32, {rows, n});
      Finish f = end;
      if (f.bias != nullptr) f.bias += first * f.bias_row;
      const std::int64_t row = turned ? 1 : k;
      multiply(a.data<float>().data() + first * row, row, turned ? m : 1, packed.data<float>().data(), y.mutable_data<float>().data(), rows,
               n, k, f);
      return y;
    };
    const std::string what = format("{} x {} x {}, turned {}, activation {}", m, n, k, turned, static_cast<int>(end.activation));
    const Tensor wide = product(cpu::multiply_avx512, 0, m);
    EXPECT_TRUE(equal_bits(wide, product(cpu::multiply_avx2, 0, m))) << what;
    const std::int64_t row = up_to(m) - 1;
    const Tensor one = product(cpu::multiply_avx512, row, 1);
    EXPECT_TRUE(
        std::ranges::equal(one.data<float>(), wide.data<float>().subspan(static_cast<std::size_t>(row * n), static_cast<std::size_t>(n))))
        << what;
  }
}

}  // namespace
}  // namespace falaj::kernels
