// Sample calls of the ops on integers and halves: those of ai.falaj and of com.microsoft. See op_cases.hpp.
#include "kernels/convert.hpp"
#include "kernels/ops/halves.hpp"
#include "kernels/ops/microsoft.hpp"
#include "tests/kernels/op_cases.hpp"

namespace falaj::kernels::testing {
namespace {

using Ints = std::vector<std::int64_t>;

class Maker : public CaseMaker {
 public:
  using CaseMaker::CaseMaker;

  Tensor u8(const Shape& shape) { return converted(t(shape, 0, 255.9), DType::u8); }
  Tensor s8(const Shape& shape) { return converted(t(shape, -127, 127), DType::i8); }
  Tensor f32(const Shape& shape, double low, double high) { return as_f32(t(shape, low, high)); }
  static Tensor scale(float value) { return Tensor::scalar<float>(value); }
  static Tensor zero(std::uint8_t value) { return Tensor::scalar<std::uint8_t>(value); }

  void falaj() {
    add(kFalaj, "QMatMul", {u8({3, 5}), s8({5, 4}), f32({4}, 1e-4, 1e-2), f32({4}, -9, 9)}, {{"x_zero", std::int64_t{7}}});
    add(kFalaj, "QMatMul", {u8({2, 3, 6}), s8({18, 6}), f32({18}, 1e-4, 1e-2), f32({18}, -9, 9), u8({2, 3, 18})},
        {{"transB", std::int64_t{1}}, {"to", std::int64_t{1}}, {"relu", std::int64_t{1}}, {"addend_scale", 0.1F}});
    add(kFalaj, "QConv", {u8({2, 5, 4, 4}), s8({6, 2, 3, 3}), f32({6}, 1e-4, 1e-2), f32({6}, -9, 9)},
        {{"group", std::int64_t{2}}, {"pads", Ints{1, 0, 1, 2}}, {"x_zero", std::int64_t{128}}, {"y_zero", std::int64_t{100}}});
    add(kFalaj, "QAdd", {u8({2, 9}), u8({2, 9})}, {{"a_scale", 0.5F}, {"b_scale", 0.3F}, {"a_zero", std::int64_t{4}}});
    add(kFalaj, "QMaxPool", {u8({2, 5, 4, 3})}, {{"kernel_shape", Ints{3, 2}}, {"pads", Ints{1, 0, 1, 1}}, {"strides", Ints{2, 1}}});
    add(kFalaj, "QGlobalAveragePool", {u8({2, 5, 4, 3})}, {{"scale", 0.04F}, {"x_zero", std::int64_t{9}}});
    add(kFalaj, "Quantize", {f32({2, 3, 3, 5}, -3, 3), scale(0.02F)}, {{"y_zero", std::int64_t{128}}});
  }

  // Whole numbers, so that each sum is exact in bfloat16 too.
  Tensor whole(const Shape& shape) { return converted(converted(t(shape, -3, 3), DType::i32), DType::f32); }
  Tensor half(const Shape& shape) { return converted(whole(shape), DType::bf16); }

  void halves() {
    add(kFalaj, "HalfMatMul", {whole({5, 3}), whole({3, 4}), whole({4})}, {{"relu", std::int64_t{1}}}, 4);
    add(kFalaj, "HalfMatMul", {half({6, 4}), whole({18, 4}), {}, half(pairs_form(6, 18))}, {{"transB", std::int64_t{1}}}, 4);
    add(kFalaj, "HalfWeightGrad", {whole({6, 4}), half(pairs_form(6, 16)), whole({4, 16})});
  }

  // Blocks of channels; what is f64 stays f64.
  void blocks(std::string_view op, std::vector<Tensor> inputs, Attributes attributes = {}, std::size_t outputs = 1) {
    add(kFalaj, op, std::move(inputs), std::move(attributes), outputs);
    cases.back().as_given = true;
  }
  void blocks() {
    const Attributes in_half{{"half", std::int64_t{1}}};
    const Attributes relu{{"relu", std::int64_t{1}}};
    blocks("ToBlocks", {whole({2, 32, 3, 2})}, in_half);
    blocks("ToBlocks", {whole({1, 16, 3, 2})});
    blocks("FromBlocks", {half({2, 2, 3, 2, 16})});
    Attributes conv{{"pads", Ints{1, 1, 1, 1}}, {"strides", Ints{2, 2}}, {"half", std::int64_t{1}}};
    blocks("BlockConv", {whole({2, 3, 5, 4}), whole({32, 3, 3, 3}), whole({32})}, conv);
    blocks("BlockConv", {half({2, 1, 5, 4, 16}), whole({32, 16, 3, 3})}, conv);
    blocks("BlockConvDataGrad", {half({2, 2, 3, 2, 16}), whole({32, 16, 3, 3}), half({2, 1, 5, 4, 16})}, conv);
    blocks("BlockConvDataGrad", {half({2, 2, 3, 2, 16}), whole({32, 3, 3, 3}), whole({2, 3, 5, 4})}, conv);
    blocks("BlockConvWeightGrad", {half({2, 2, 3, 2, 16}), half({2, 1, 5, 4, 16}), whole({32, 16, 3, 3})}, conv);
    blocks("BlockConvWeightGrad", {half({2, 2, 3, 2, 16}), whole({2, 3, 5, 4}), whole({32, 3, 3, 3})}, conv);
    conv.erase("half");
    blocks("BlockConv", {whole({2, 1, 5, 4, 16}), whole({32, 16, 3, 3})}, conv);
    const Tensor x = whole({2, 2, 2, 2, 16});  // eight pixels: means are exact
    const Tensor statistics = t({2, 32}, 0.5, 2);
    blocks("BlockStatistics", {x, whole({32}), whole({32})}, {}, 3);
    blocks("BlockStatistics", {half({2, 2, 2, 2, 16})});
    blocks("BlockNorm", {x, statistics, whole({32}), whole({32}), whole({2, 2, 2, 2, 16})}, relu);
    blocks("BlockNorm", {x, statistics, whole({32}), whole({32})});
    blocks("BlockNormGrad", {whole({2, 2, 2, 2, 16}), x, statistics, whole({32}), whole({32})}, relu, 3);
    blocks("BlockNormGrad", {whole({2, 2, 2, 2, 16}), x, statistics, whole({32})}, {}, 3);
    blocks("BlockNormGrad", {whole({2, 2, 2, 2, 16}), x, statistics, whole({32}), whole({32})},
           {{"relu", std::int64_t{1}}, {"fixed", std::int64_t{1}}}, 3);
    blocks("GivenStatistics", {whole({32}), whole({32})});
    blocks("BlockSum", {x, whole({2, 2, 2, 2, 16}), whole({2, 2, 2, 2, 16})});
    blocks("BlockSum", {x}, relu);
    blocks("ChannelSums", {x});
    Attributes pool{{"kernel_shape", Ints{3, 2}}, {"strides", Ints{2, 1}}, {"pads", Ints{1, 0, 1, 1}}};
    for (const char* function : {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}) {
      pool["function"] = std::string(function);
      const bool global = std::string_view(function).starts_with("Global");
      const Shape out = global ? Shape{2, 1, 1, 1, 16} : Shape{2, 1, 3, 4, 16};
      blocks("BlockPool", {whole({2, 1, 5, 4, 16})}, pool);
      if (std::string_view(function).ends_with("MaxPool")) {
        blocks("BlockMaxPoolGrad", {whole(out), whole({2, 1, 5, 4, 16}), whole(out)}, pool);
      } else {
        blocks("BlockMeanPoolGrad", {whole(out), whole({2, 1, 5, 4, 16})}, pool);
      }
    }
  }

  void microsoft() {
    const auto quantised = [&](std::string_view op, const Shape& shape, Attributes attributes = {}) {
      add(kMicrosoft, op, {u8(shape), scale(0.05F), zero(100), scale(0.04F), zero(90)}, std::move(attributes));
    };
    quantised("QLinearSigmoid", {2, 5});
    quantised("QLinearLeakyRelu", {2, 5}, {{"alpha", 0.1F}});
    quantised("QLinearSoftmax", {2, 5}, {{"axis", std::int64_t{1}}});
    quantised("QLinearGlobalAveragePool", {2, 3, 4, 4}, {{"channels_last", std::int64_t{0}}});
    quantised("QLinearAveragePool", {1, 2, 4, 4}, {{"kernel_shape", Ints{2, 2}}});
    for (const char* op : {"QLinearAdd", "QLinearMul"})
      add(kMicrosoft, op, {u8({2, 5}), scale(0.1F), zero(3), u8({5}), scale(0.2F), zero(200), scale(0.3F), zero(7)});
    add(kMicrosoft, "QLinearConcat", {scale(0.1F), zero(3), u8({2, 3}), scale(0.2F), zero(1), u8({2, 2}), scale(0.1F), zero(2)},
        {{"axis", std::int64_t{1}}});
    Tensor bias = converted(t({4}, -900, 900), DType::i32);
    add(kMicrosoft, "QGemm",
        {u8({2, 3}), scale(0.1F), zero(3), s8({4, 3}), scale(0.02F), Tensor::scalar<std::int8_t>(0), bias, scale(0.5F), zero(9)},
        {{"transB", std::int64_t{1}}});
    add(kMicrosoft, "QGemm", {u8({2, 3}), scale(0.1F), zero(3), s8({3, 4}), scale(0.02F), Tensor::scalar<std::int8_t>(1)});
  }
};

}  // namespace

std::vector<OpCase> integer_op_cases(Random& random) {
  Maker maker(random);
  maker.falaj();
  maker.halves();
  maker.blocks();
  maker.microsoft();
  return std::move(maker.cases);
}

}  // namespace falaj::kernels::testing
