// Sample calls of the ops beyond the common ones. See op_cases.hpp.
#include "kernels/convert.hpp"
#include "tests/kernels/op_cases.hpp"

namespace falaj::kernels::testing {
namespace {

using Ints = std::vector<std::int64_t>;
using Floats = std::vector<float>;
using Strings = std::vector<std::string>;

class Maker : public CaseMaker {
 public:
  using CaseMaker::CaseMaker;

  Tensor in(DType dtype, const Shape& shape, double low = 0, double high = 20) { return converted(t(shape, low, high), dtype); }

  void elements() {
    for (const char* op : {"Tan", "Round", "Hardmax", "IsInf"}) plain(op, {t({3, 4})});
    for (const char* op : {"Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh", "Softsign", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish",
                           "Mish", "Swish", "ThresholdedRelu", "Shrink"})
      smooth(op, {t({3, 4}, -5, 5)});
    smooth("Tan", {t({7}, -1, 1)});
    smooth("Round", {t({7})});
    for (const char* op : {"Asin", "Acos", "Atanh"}) smooth(op, {t({5}, -0.9, 0.9)});
    smooth("Acosh", {t({5}, 1.1, 4)});
    for (const char* op : {"Elu", "Celu", "Swish", "ThresholdedRelu"}) smooth(op, {t({9})}, {{"alpha", 0.7F}});
    smooth("Selu", {t({9})}, {{"alpha", 1.5F}, {"gamma", 0.5F}});
    smooth("HardSigmoid", {t({9}, -4, 4)}, {{"alpha", 0.3F}, {"beta", 0.4F}});
    smooth("Shrink", {t({9})}, {{"lambd", 0.8F}, {"bias", 0.3F}});
    smooth("PRelu", {t({2, 3, 4}), t({3, 1})});
    smooth("PRelu", {t({2, 3}), t({1})});
    plain("Mod", {t({4}), t({4}, 0.5, 2)}, {{"fmod", std::int64_t{1}}});
    plain("Mod", {ints({-7, 7, 5}), ints({3, -3, 0})});
    plain("BitShift", {in(DType::u8, {5}), in(DType::u8, {5}, 0, 9)}, {{"direction", std::string("LEFT")}});
    for (const char* op : {"BitwiseAnd", "BitwiseOr", "BitwiseXor"}) plain(op, {in(DType::i16, {2, 3}), in(DType::i16, {3})});
    plain("BitwiseNot", {in(DType::u8, {5})});
    plain("Xor", {in(DType::boolean, {4}, -1, 1), in(DType::boolean, {1}, -1, 1)});
    for (const char* op : {"Sum", "Mean"}) smooth(op, {t({3, 4}), t({4}), t({3, 1})});
    plain("CastLike", {t({3}), in(DType::i32, {1})});
    smooth("CastLike", {t({3}), t({1})});
    plain("Add", {in(DType::u8, {6}, 0, 255), in(DType::u8, {6}, 0, 255)});
    plain("Mul", {in(DType::f16, {6}), in(DType::f16, {6})});
    plain("Sigmoid", {in(DType::bf16, {6}, -3, 3)});
    for (const char* op : {"ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd"}) {
      smooth(op, {t({2, 3, 4}), ints({1})});
      smooth(op, {t({2, 3, 4}), ints({-1, 0})}, {{"keepdims", std::int64_t{0}}});
      smooth(op, {t({5})});
    }
    smooth("ReduceLogSum", {t({2, 3}, 0.5, 2)});
    Tensor zeros = t({3, 3});  // products with no zero, one, and two
    for (std::size_t at : {4U, 7U, 8U}) zeros.mutable_data<double>()[at] = 0;
    smooth("ReduceProd", {zeros, ints({1})});
  }

  void places() {
    Tensor crossed = Tensor::of<std::int64_t>({2, 3}, {1, 2, 0, -1, 0, 0});
    smooth("GatherElements", {t({3, 3}), crossed});
    smooth("GatherElements", {t({2, 5}), crossed}, {{"axis", std::int64_t{-1}}});
    for (const char* op : {"ScatterElements", "Scatter"})
      smooth(op, {t({3, 3}), Tensor::of<std::int64_t>({2, 3}, {1, 0, 2, 0, 2, 1}), t({2, 3})});
    smooth("ScatterElements", {t({1, 5}), Tensor::of<std::int64_t>({1, 2}, {1, 1}), t({1, 2})},
           {{"axis", std::int64_t{1}}, {"reduction", std::string("add")}});
    smooth("GatherND", {t({2, 3, 4}), Tensor::of<std::int64_t>({3, 2}, {0, 1, 1, -1, 0, 1})});
    smooth("GatherND", {t({2, 3, 4}), Tensor::of<std::int64_t>({2, 1}, {2, 0})}, {{"batch_dims", std::int64_t{1}}});
    smooth("ScatterND", {t({4, 2}), Tensor::of<std::int64_t>({2, 1}, {1, 3}), t({2, 2})});
    smooth("ScatterND", {t({4, 2}), Tensor::of<std::int64_t>({2, 1}, {1, 1}), t({2, 2})}, {{"reduction", std::string("add")}});
    smooth("Tile", {t({2, 3}), ints({2, 3})});
    for (const char* mode : {"constant", "edge", "reflect", "wrap"})
      smooth("Pad", {t({3, 4}), ints({1, 0, 2, 3})}, {{"mode", std::string(mode)}});
    smooth("Pad", {t({3, 4}), ints({-1, 2}), Tensor(), ints({-1})});
    for (const char* mode : {"DCR", "CRD"})
      smooth("DepthToSpace", {t({1, 8, 2, 3})}, {{"blocksize", std::int64_t{2}}, {"mode", std::string(mode)}});
    smooth("SpaceToDepth", {t({1, 2, 4, 6})}, {{"blocksize", std::int64_t{2}}});
    smooth("CenterCropPad", {t({5, 4}), ints({3, 7})});
    smooth("ReverseSequence", {t({4, 3, 2}), ints({4, 2, 0})});
    smooth("Trilu", {t({2, 3, 4}), Tensor::scalar<std::int64_t>(1)});
    smooth("Trilu", {t({3, 3})}, {{"upper", std::int64_t{0}}});
    plain("EyeLike", {t({3, 4})}, {{"k", std::int64_t{1}}});
    plain("Range", {Tensor::scalar<double>(1), Tensor::scalar<double>(4), Tensor::scalar<double>(0.5)});
    for (std::int64_t exclusive : {0, 1}) {
      for (std::int64_t reverse : {0, 1})
        smooth("CumSum", {t({2, 5}), Tensor::scalar<std::int64_t>(-1)}, {{"exclusive", exclusive}, {"reverse", reverse}});
    }
    smooth("TopK", {t({3, 5}), ints({2})}, {}, 2);
    smooth("TopK", {t({4, 3}), ints({3})}, {{"axis", std::int64_t{0}}, {"largest", std::int64_t{0}}});
    for (const char* equation : {"ij,jk->ki", "ij,jk", "ij,jk->"})
      smooth("Einsum", {t({2, 3}), t({3, 4})}, {{"equation", std::string(equation)}});
    smooth("Einsum", {t({2, 3, 4}), t({4, 5})}, {{"equation", std::string("...j,jk")}});
    smooth("Einsum", {t({2, 3, 4}), t({1, 3, 4})}, {{"equation", std::string("bij,bkj->bik")}});
    smooth("Einsum", {t({3, 3})}, {{"equation", std::string("ii->i")}});
    plain("Det", {t({2, 3, 3})});
  }

  void windows() {
    Attributes strided = {{"strides", Ints{2, 1}}, {"pads", Ints{1, 0, 1, 1}}, {"dilations", Ints{1, 2}}};
    Attributes grouped = strided;
    grouped.emplace("group", std::int64_t{2});
    smooth("Conv", {t({2, 4, 6, 7}), t({6, 2, 3, 2}), t({6})}, grouped);
    smooth("Conv", {t({2, 3, 5}), t({4, 3, 3})}, {{"auto_pad", std::string("SAME_LOWER")}, {"strides", Ints{2}}});
    smooth("Conv", {t({1, 3, 4, 4}), t({3, 1, 3, 3}), t({3})}, {{"group", std::int64_t{3}}, {"pads", Ints{1, 1, 1, 1}}});
    smooth("Conv", {t({1, 2, 3, 3, 3}), t({2, 2, 2, 2, 2})});
    smooth("ConvTranspose", {t({1, 4, 3, 4}), t({4, 3, 3, 2}), t({6})}, grouped);
    smooth("ConvTranspose", {t({2, 2, 3}), t({2, 3, 2})}, {{"strides", Ints{2}}, {"output_padding", Ints{1}}});
    smooth("ConvTranspose", {t({2, 3, 2, 3}), t({3, 4, 2, 2}), t({4})}, {{"strides", Ints{2, 2}}});
    smooth("ConvTranspose", {t({1, 2, 3, 3}), t({2, 2, 4, 4})}, {{"strides", Ints{2, 2}}, {"pads", Ints{1, 1, 1, 1}}});
    plain("DeformConv", {t({1, 2, 4, 4}), t({3, 2, 2, 2}), t({1, 8, 3, 3})});
    plain("ConvInteger", {in(DType::u8, {1, 2, 4, 4}), in(DType::i8, {3, 2, 2, 2}, -9, 9), Tensor::scalar<std::uint8_t>(3)});
    plain("QLinearConv",
          {in(DType::u8, {1, 1, 4, 4}), Tensor::scalar<float>(0.1F), Tensor::scalar<std::uint8_t>(2), in(DType::u8, {2, 1, 2, 2}),
           Tensor::scalar<float>(0.2F), Tensor::scalar<std::uint8_t>(9), Tensor::scalar<float>(0.5F), Tensor::scalar<std::uint8_t>(7)});
    add(kFalaj, "Conv", {t({2, 6, 7, 4}, -1, 1), t({6, 2, 3, 2}, -1, 1), t({6}), t({2, 3, 6, 6})}, grouped);
    for (const char* activation : {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu"})
      add(kFalaj, "Conv", {t({1, 5, 3, 3}, -1, 1), t({20, 3, 3, 3}, -1, 1), t({20})},
          {{"pads", Ints{1, 1, 1, 1}}, {"activation", std::string(activation)}});
    for (const std::int64_t channels : {1, 2, 5})
      add(kFalaj, "Conv", {t({2, 7, 9, channels}, -1, 1), t({19, channels, 3, 3}, -1, 1), t({19})},
          {{"pads", Ints{1, 0, 1, 1}}, {"pooled", std::int64_t{1}}, {"activation", std::string(channels == 2 ? "Tanh" : "Relu")}});
    Attributes pool = strided;
    pool.emplace("kernel_shape", Ints{3, 2});
    for (const char* op : {"MaxPool", "AveragePool"}) add(kFalaj, op, {t({2, 6, 7, 11})}, pool);
    pool.emplace("count_include_pad", std::int64_t{1});
    pool.erase("dilations");
    add(kFalaj, "AveragePool", {t({2, 6, 7, 3})}, pool);
    pool.erase("count_include_pad");
    pool.emplace("dilations", Ints{1, 2});
    for (const char* op : {"GlobalMaxPool", "GlobalAveragePool"}) add(kFalaj, op, {t({2, 5, 4, 9})});
    smooth("MaxPool", {t({2, 3, 6, 7})}, pool, 2);
    for (const char* op : {"AveragePool", "LpPool"}) smooth(op, {t({2, 3, 6, 7})}, pool);
    for (const char* op : {"MaxPool", "AveragePool", "LpPool"})
      smooth(op, {t({1, 2, 5})}, {{"kernel_shape", Ints{2}}, {"strides", Ints{2}}, {"ceil_mode", std::int64_t{1}}});
    smooth("AveragePool", {t({1, 2, 5, 5})},
           {{"kernel_shape", Ints{3, 3}}, {"pads", Ints{1, 1, 1, 1}}, {"count_include_pad", std::int64_t{1}}});
    smooth("LpPool", {t({1, 2, 5})}, {{"kernel_shape", Ints{3}}, {"p", std::int64_t{3}}});
    for (const char* op : {"GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"}) smooth(op, {t({2, 3, 4, 5})});
    plain("MaxUnpool", {t({1, 1, 2, 2}), Tensor::of<std::int64_t>({1, 1, 2, 2}, {5, 7, 13, 15})},
          {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}});
    plain("Col2Im", {t({1, 4, 9}), ints({4, 4}), ints({2, 2})});
    for (const char* mode : {"nearest", "linear", "cubic"}) {
      partly(kOnnx, "Resize", {t({1, 2, 3, 4}), Tensor(), Tensor::vector<float>({1, 1, 1.5F, 2})}, {{"mode", std::string(mode)}}, 1, 1);
      partly(kOnnx, "Resize", {t({2, 4, 5}), Tensor(), Tensor::vector<float>({0.6F})},
             {{"mode", std::string(mode)}, {"axes", Ints{1}}, {"antialias", std::int64_t{std::string(mode) != "nearest"}}}, 1, 1);
      plain("GridSample", {t({1, 2, 4, 5}), t({1, 3, 3, 2}, -1.2, 1.2)}, {{"mode", std::string(mode)}});
    }
    partly(kOnnx, "Resize", {t({1, 1, 4, 5}), Tensor::vector<float>({0, 0, 0.2F, -0.1F, 1, 1, 0.7F, 1.2F}), Tensor(), ints({1, 1, 3, 6})},
           {{"mode", std::string("linear")}, {"coordinate_transformation_mode", std::string("tf_crop_and_resize")}}, 1, 1);
    partly(kOnnx, "Upsample", {t({1, 1, 2, 2}), Tensor::vector<float>({1, 1, 2, 3})}, {}, 1, 1);
    plain("AffineGrid", {t({1, 2, 3}), ints({1, 1, 3, 4})});
    plain("RoiAlign", {t({1, 2, 6, 6}), t({2, 4}, 0, 5), ints({0, 0})},
          {{"output_height", std::int64_t{2}}, {"output_width", std::int64_t{2}}});
  }

  // Layers as exporters write them, and what else the standard has: directions, lengths, states, peepholes, functions.
  void recurrent() {
    const auto text = [](const char* value) { return std::string(value); };
    const auto both = text("bidirectional");
    const Attributes lengths_in_batch = {{"layout", std::int64_t{1}}, {"direction", text("reverse")}};
    const Tensor none;
    const Tensor lengths = Tensor::of<std::int32_t>({2}, {3, 1});
    smooth("RNN", {t({3, 2, 4}), t({1, 5, 4}), t({1, 5, 5}), t({1, 10})}, {}, 2);
    smooth("RNN", {t({3, 2, 4}), t({2, 5, 4}), t({2, 5, 5}), none, lengths, t({2, 2, 5})},
           {{"direction", both},
            {"activations", std::vector<std::string>{"Softsign", "Affine"}},
            {"activation_alpha", std::vector<float>{0.5F}}},
           2);
    smooth("RNN", {t({2, 3, 4}), t({1, 5, 4}), t({1, 5, 5}), none, lengths}, lengths_in_batch, 2);
    smooth("RNN", {t({3, 2, 4}), t({1, 17, 4}), t({1, 17, 17})}, {{"activations", std::vector<std::string>{"Relu"}}}, 2);
    for (const std::int64_t after : {0, 1}) {
      const Attributes reset = {{"linear_before_reset", after}};
      smooth("GRU", {t({3, 2, 4}), t({1, 15, 4}), t({1, 15, 5}), t({1, 30}), none, t({1, 2, 5})}, reset, 2);
      Attributes two = reset;
      two.emplace("direction", both);
      smooth("GRU", {t({3, 2, 4}), t({2, 15, 4}), t({2, 15, 5}), none, lengths}, two, 2);
    }
    smooth("GRU", {t({2, 3, 4}), t({1, 51, 4}), t({1, 51, 17}), t({1, 102})},
           {{"layout", std::int64_t{1}}, {"linear_before_reset", std::int64_t{1}}}, 2);
    smooth("LSTM", {t({3, 2, 4}), t({1, 20, 4}), t({1, 20, 5}), t({1, 40})}, {}, 3);
    smooth("LSTM", {t({3, 2, 4}), t({2, 20, 4}), t({2, 20, 5}), t({2, 40}), lengths, t({2, 2, 5}), t({2, 2, 5}), t({2, 15})},
           {{"direction", both}, {"clip", 1.5F}}, 3);
    smooth("LSTM", {t({2, 3, 4}), t({1, 68, 4}), t({1, 68, 17}), none, lengths, t({2, 1, 17}), t({2, 1, 17})}, lengths_in_batch, 3);
    smooth("LSTM", {t({3, 2, 4}), t({1, 20, 4}), t({1, 20, 5})}, {{"input_forget", std::int64_t{1}}}, 3);
    smooth("LSTM", {t({3, 2, 4}), t({1, 20, 4}), t({1, 20, 5})},
           {{"activations", std::vector<std::string>{"HardSigmoid", "ScaledTanh", "Elu"}},
            {"activation_alpha", std::vector<float>{0.1F, 1.5F, 0.5F}},
            {"activation_beta", std::vector<float>{0.5F, 0.5F}}},
           3);
  }

  void layers() {
    smooth("InstanceNormalization", {t({2, 3, 4}), t({3}), t({3})});
    smooth("GroupNormalization", {t({2, 4, 3}), t({2}), t({2})}, {{"num_groups", std::int64_t{2}}});
    plain("MeanVarianceNormalization", {t({2, 3, 2, 2})});
    plain("MeanVarianceNormalization", {t({2, 3, 2, 2})}, {{"axes", Ints{-1, 1, 2}}});
    smooth("LpNormalization", {t({2, 3})});
    smooth("LpNormalization", {t({2, 3, 2})}, {{"p", std::int64_t{1}}, {"axis", std::int64_t{1}}});
    for (const std::int64_t size : {3, 4}) smooth("LRN", {t({1, 5, 2, 2})}, {{"size", size}, {"alpha", 0.5F}});
    smooth("RMSNormalization", {t({2, 3}), t({3})});
    smooth("RMSNormalization", {t({2, 3, 4}), t({3, 1})}, {{"axis", std::int64_t{1}}, {"epsilon", 0.1F}});
    recurrent();
    Tensor places = Tensor::of<std::int64_t>({3, 2}, {0, 3, 1, 2, 2, 0});
    for (const char* reduction : {"mean", "sum", "none"}) {
      Attributes attributes = {{"reduction", std::string(reduction)}};
      partly(kOnnx, "NegativeLogLikelihoodLoss", {t({3, 4}, -3, 0), ints({0, 3, 1}), t({4}, 0.5, 1)}, attributes, 1, 1);
      partly(kOnnx, "SoftmaxCrossEntropyLoss", {t({3, 4}), ints({0, 3, 1})}, attributes, 1, 1);
      attributes.emplace("ignore_index", std::int64_t{2});
      partly(kOnnx, "NegativeLogLikelihoodLoss", {t({3, 4, 2}, -3, 0), places}, attributes, 1, 1);
      partly(kOnnx, "SoftmaxCrossEntropyLoss", {t({3, 4, 2}), places, t({4}, 0.5, 1)}, attributes, 2, 1);
    }
    Tensor rate = Tensor::scalar<double>(0.1);
    Tensor step = Tensor::scalar<std::int64_t>(2);
    add(kOnnxTraining, "Adagrad", {rate, step, t({3}), t({3}), t({3}, 0, 1)}, {}, 2);
    add(kOnnxTraining, "Adam", {rate, step, t({3}), t({3}), t({3}), t({3}, 0, 1)}, {{"epsilon", 1e-3F}}, 3);
    add(kOnnxTraining, "Momentum", {rate, step, t({3}), t({3}), t({3})},
        {{"alpha", 0.9F}, {"beta", 0.8F}, {"mode", std::string("nesterov")}}, 2);
  }

  void others() {
    plain("DFT", {t({1, 6, 1})}, {{"axis", std::int64_t{1}}});
    plain("STFT", {t({1, 16, 1}), Tensor::scalar<std::int64_t>(4), Tensor(), Tensor::scalar<std::int64_t>(8)});
    for (const char* op : {"HannWindow", "HammingWindow", "BlackmanWindow"}) plain(op, {Tensor::scalar<std::int64_t>(7)});
    plain("MelWeightMatrix", {Tensor::scalar<std::int64_t>(4), Tensor::scalar<std::int64_t>(16), Tensor::scalar<std::int64_t>(8000),
                              Tensor::scalar<float>(0), Tensor::scalar<float>(4000)});
    plain("QuantizeLinear", {in(DType::f32, {2, 3}), Tensor::vector<float>({0.5F, 1, 2}), in(DType::u8, {3})});
    plain("DequantizeLinear", {in(DType::u8, {2, 3}), Tensor::scalar<float>(0.5F), Tensor::scalar<std::uint8_t>(3)});
    plain("DynamicQuantizeLinear", {in(DType::f32, {7}, -3, 5)}, {}, 3);
    plain("MatMulInteger", {in(DType::u8, {2, 3}), in(DType::i8, {3, 4}, -9, 9), Tensor::scalar<std::uint8_t>(1)});
    plain("QLinearMatMul",
          {in(DType::u8, {2, 3}), Tensor::scalar<float>(0.1F), Tensor::scalar<std::uint8_t>(1), in(DType::u8, {3, 2}),
           Tensor::scalar<float>(0.2F), Tensor::scalar<std::uint8_t>(2), Tensor::scalar<float>(0.3F), Tensor::scalar<std::uint8_t>(3)});
    plain("StringConcat", {Tensor::vector<std::string>({"a", "b"}), Tensor::vector<std::string>({"c"})});
    plain("TfIdfVectorizer", {ints({1, 1, 3, 3, 3, 7, 8, 6, 7, 5, 6, 8})},
          {{"mode", std::string("TF")},
           {"min_gram_length", std::int64_t{2}},
           {"max_gram_length", std::int64_t{2}},
           {"max_skip_count", std::int64_t{0}},
           {"ngram_counts", Ints{0, 4}},
           {"ngram_indexes", Ints{0, 1, 2, 3, 4, 5, 6}},
           {"pool_int64s", Ints{2, 3, 5, 4, 5, 6, 7, 8, 6, 7}}});
    add(kOnnxMl, "Binarizer", {t({3, 2})}, {{"threshold", 0.5F}});
    trees();
  }

  void trees() {
    Attributes nodes = {{"nodes_treeids", Ints{0, 0, 0}},
                        {"nodes_nodeids", Ints{0, 1, 2}},
                        {"nodes_featureids", Ints{1, 0, 0}},
                        {"nodes_values", Floats{0.25F, 0, 0}},
                        {"nodes_modes", Strings{"BRANCH_LEQ", "LEAF", "LEAF"}},
                        {"nodes_truenodeids", Ints{1, 0, 0}},
                        {"nodes_falsenodeids", Ints{2, 0, 0}}};
    Attributes target = nodes;
    for (const char* stem : {"target", "class"}) {
      Attributes& to = std::string(stem) == "target" ? target : nodes;
      to.emplace(std::string(stem) + "_treeids", Ints{0, 0});
      to.emplace(std::string(stem) + "_nodeids", Ints{1, 2});
      to.emplace(std::string(stem) + "_ids", std::string(stem) == "target" ? Ints{0, 0} : Ints{0, 1});
      to.emplace(std::string(stem) + "_weights", Floats{1.5F, 2.5F});
    }
    nodes.emplace("classlabels_int64s", Ints{7, 9});
    add(kOnnxMl, "TreeEnsembleRegressor", {t({4, 2})}, target);
    add(kOnnxMl, "TreeEnsembleClassifier", {t({4, 2})}, nodes, 2);
    add(kOnnxMl, "TreeEnsemble", {t({4, 2})},
        {{"nodes_featureids", Ints{1}},
         {"nodes_splits", Tensor::vector<double>({0.25})},
         {"nodes_modes", Tensor::vector<std::uint8_t>({0})},
         {"nodes_truenodeids", Ints{0}},
         {"nodes_falsenodeids", Ints{1}},
         {"nodes_trueleafs", Ints{1}},
         {"nodes_falseleafs", Ints{1}},
         {"tree_roots", Ints{0}},
         {"leaf_targetids", Ints{0, 0}},
         {"leaf_weights", Tensor::vector<double>({1.5, 2.5})}});
  }
};

}  // namespace

std::vector<OpCase> more_op_cases(Random& random) {
  Maker m(random);
  m.elements();
  m.places();
  m.windows();
  m.layers();
  m.others();
  return std::move(m.cases);
}

}  // namespace falaj::kernels::testing
