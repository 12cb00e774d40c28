#include "tests/kernels/op_cases.hpp"

#include <cmath>
#include <limits>

namespace falaj::kernels::testing {
namespace {

using Ints = std::vector<std::int64_t>;
using Floats = std::vector<float>;
using Strings = std::vector<std::string>;

class Maker : public CaseMaker {
 public:
  using CaseMaker::CaseMaker;

  Tensor bools(const Shape& shape) {
    Tensor b(DType::boolean, shape);
    for (bool& v : b.mutable_data<bool>()) v = random().chance(0.5);
    return b;
  }

  void arithmetic() {
    for (const char* op : {"Add", "Sub", "Mul"}) {
      smooth(op, {t({3, 4}), t({3, 4})});
      smooth(op, {t({2, 3, 4}), t({4})});
      smooth(op, {t({3, 1}), t({2, 1, 5})});
      smooth(op, {t({17}), t({})});
      smooth(op, {t({5, 33}), t({1, 33})});
    }
    smooth("Div", {t({3, 4}), t({3, 4}, 0.5, 2)});
    smooth("Div", {t({3, 9}), t({9}, 0.5, 2)});
    smooth("Div", {t({4}), t({2, 3, 1}, -2, -0.5)});
    smooth("Pow", {t({3, 4}, 0.5, 2), t({4})});
    smooth("Pow", {t({3, 4}), Tensor::scalar<std::int64_t>(2)});
    smooth("Pow", {t({3, 4}), Tensor::scalar<std::int32_t>(3)});
    for (const char* op : {"Min", "Max"}) {
      smooth(op, {t({3, 4}), t({4}), t({3, 1})});
      smooth(op, {t({5})});
    }
    for (const char* op : {"Neg", "Abs", "Exp", "Erf", "Sign", "Floor", "Ceil"}) smooth(op, {t({3, 7})});
    for (const char* op : {"Sqrt", "Log", "Reciprocal"}) smooth(op, {t({3, 7}, 0.5, 3)});
    smooth("Clip", {t({4, 5}), Tensor::scalar<double>(-1), Tensor::scalar<double>(0.7)});
    smooth("Clip", {t({4, 5}), Tensor(), Tensor::scalar<double>(0.7)});
    for (const char* op : {"Relu", "Sigmoid", "Tanh", "Gelu", "Softplus"}) {
      smooth(op, {t({3, 11}, -4, 4)});
      smooth(op, {t({1})});
    }
    smooth("Gelu", {t({3, 5})}, {{"approximate", std::string("tanh")}});
    smooth("LeakyRelu", {t({3, 5})}, {{"alpha", 0.2F}});
    smooth("LeakyRelu", {t({3, 5})}, {{"alpha", -0.5F}});
    for (const char* op : {"Softmax", "LogSoftmax"}) {
      smooth(op, {t({3, 5})});
      smooth(op, {t({2, 3, 4})}, {{"axis", std::int64_t{1}}});
    }
  }

  void logic() {
    for (const char* op : {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}) {
      plain(op, {t({3, 4}), t({4})});
      plain(op, {ints({1, 2, 3}), ints({3, 2, 1})});
    }
    plain("Equal", {Tensor::vector<std::string>({"a", "b"}), Tensor::scalar<std::string>("b")});
    for (const char* op : {"And", "Or"}) plain(op, {bools({3, 4}), bools({4})});
    plain("Not", {bools({3, 4})});
    Tensor holes = t({3, 4});
    holes.mutable_data<double>()[5] = std::numeric_limits<double>::quiet_NaN();
    plain("IsNaN", {holes});
    smooth("Where", {bools({3, 4}), t({3, 4}), t({4})});
    smooth("Where", {bools({4}), t({3, 1}), t({})});
    smooth("Cast", {t({3, 4})}, {{"to", std::int64_t{1}}});
    plain("Cast", {ints({1, 0, 7})}, {{"to", std::int64_t{9}}});
    plain("Cast", {t({5})}, {{"to", std::int64_t{7}}});
    plain("Cast", {ints({1, 0, 7})}, {{"to", std::int64_t{8}}});
    plain("Cast", {Tensor::vector<std::string>({"1.5", "-2"})}, {{"to", std::int64_t{1}}});
  }

  void products() {
    smooth("MatMul", {t({3, 4}), t({4, 5})});
    smooth("MatMul", {t({2, 3, 4}), t({4, 5})});
    smooth("MatMul", {t({2, 3, 4}), t({2, 4, 5})});
    smooth("MatMul", {t({2, 1, 3, 4}), t({3, 4, 2})});
    smooth("MatMul", {t({4}), t({4, 5})});
    smooth("MatMul", {t({3, 4}), t({4})});
    smooth("MatMul", {t({4}), t({4})});
    smooth("MatMul", {t({2, 3, 4}), t({4})});
    smooth("MatMul", {t({13, 37}), t({37, 35})});
    for (std::int64_t ta : {0, 1}) {
      for (std::int64_t tb : {0, 1}) {
        Attributes attributes = {{"transA", ta}, {"transB", tb}, {"alpha", 0.5F}, {"beta", 2.0F}};
        Tensor a = ta != 0 ? t({6, 3}) : t({3, 6});
        Tensor b = tb != 0 ? t({5, 6}) : t({6, 5});
        smooth("Gemm", {a, b, t({5})}, attributes);
        smooth("Gemm", {a, b, t({3, 1})}, attributes);
        smooth("Gemm", {a, b}, attributes);
        add(kFalaj, "MatMul", {a, b, t({5})}, attributes, true);
      }
    }
    smooth("Gemm", {t({7, 24}), t({24, 64}), t({64})});
    add(kFalaj, "Attention", {t({2, 9, 3, 5}), t({2, 21, 3, 5}), t({2, 21, 3, 18})}, {{"scale", 0.5F}});
    add(kFalaj, "Attention", {t({1, 70, 1, 40}), t({1, 16, 1, 40}), t({1, 16, 1, 9}), t({1})});
    add(kFalaj, "MatMul", {t({9, 5}), t({5, 70}), t({70})}, {{"activation", std::string("Relu")}});
    add(kFalaj, "MatMul", {t({9, 5}), t({5, 3}), t({3})}, {{"activation", std::string("Tanh")}});
    add(kFalaj, "MatMul", {t({9, 5}), t({5, 3})}, {{"activation", std::string("Sigmoid")}});
    add(kFalaj, "MatMul", {t({9, 5}), t({5, 3})}, {{"activation", std::string("Gelu")}});
    add(kFalaj, "MatMul", {t({9, 5}), t({5, 3})}, {{"activation", std::string("LeakyRelu")}, {"activation_alpha", 0.3F}});
  }

  void reductions() {
    for (const char* op : {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"}) {
      smooth(op, {t({2, 3, 4})});
      smooth(op, {t({2, 3, 4}), ints({1})}, {{"keepdims", std::int64_t{0}}});
      smooth(op, {t({2, 3, 4}), ints({0, -1})});
      smooth(op, {t({2, 3, 4})}, {{"axes", Ints{-1}}, {"keepdims", std::int64_t{0}}});
    }
    for (const char* op : {"ArgMax", "ArgMin"}) {
      plain(op, {t({3, 4})}, {{"axis", std::int64_t{1}}, {"keepdims", std::int64_t{0}}});
      plain(op, {ints({3, 1, 3})}, {{"select_last_index", std::int64_t{1}}});
    }
  }

  void shapes() {
    smooth("Identity", {t({3, 4})});
    smooth("Dropout", {t({3, 4})}, {}, 2);
    smooth("Reshape", {t({3, 4}), ints({2, -1})});
    smooth("Reshape", {t({3, 4}), ints({0, 2, 2})});
    smooth("Flatten", {t({2, 3, 4})}, {{"axis", std::int64_t{2}}});
    smooth("Squeeze", {t({3, 1, 4, 1}), ints({1})});
    smooth("Squeeze", {t({3, 1, 4, 1})});
    smooth("Unsqueeze", {t({3, 4}), ints({0, -1})});
    smooth("Transpose", {t({2, 3, 4})}, {{"perm", Ints{1, 2, 0}}});
    smooth("Transpose", {t({3, 4})});
    smooth("Expand", {t({3, 1}), ints({2, 1, 4})});
    plain("Shape", {t({2, 3, 4})}, {{"start", std::int64_t{1}}});
    plain("Size", {t({2, 3, 4})});
    plain("Constant", {}, {{"value_floats", Floats{1, 2}}});
    plain("ConstantOfShape", {ints({2, 3})}, {{"value", Tensor::vector<std::int64_t>({7})}});
    add(kFalaj, "ZerosLike", {t({2, 3})});
    smooth("Concat", {t({2, 3}), t({2, 1}), t({2, 5})}, {{"axis", std::int64_t{1}}});
    smooth("Concat", {t({2, 3}), t({4, 3})}, {{"axis", std::int64_t{-2}}});
    smooth("Split", {t({4, 6}), ints({2, 4})}, {{"axis", std::int64_t{1}}}, 2);
    smooth("Split", {t({5, 3})}, {{"num_outputs", std::int64_t{2}}}, 2);
    smooth("Slice", {t({5, 6}), ints({1, -1}), ints({4, -7}), ints({0, 1}), ints({2, -2})});
    smooth("Slice", {t({5, 6}), ints({1}), ints({1000})});
    smooth("Gather", {t({5, 3}), ints({4, 0, -1, 4})});
    smooth("Gather", {t({2, 5}), Tensor::of<std::int64_t>({2, 2}, {1, 1, 3, 0})}, {{"axis", std::int64_t{1}}});
    plain("OneHot", {ints({1, -1, 9}), Tensor::scalar<std::int64_t>(4), Tensor::vector<float>({0, 1})});
    plain("OneHot", {ints({1, 2}), Tensor::scalar<std::int64_t>(4), Tensor::vector<float>({0, 1})}, {{"axis", std::int64_t{0}}});
    add(kOnnxMl, "ArrayFeatureExtractor", {t({3, 4}), ints({2, 0})}, {}, 1, true);
  }

  void norms_and_losses() {
    smooth("LayerNormalization", {t({3, 5}), t({5}), t({5})});
    smooth("LayerNormalization", {t({2, 3, 4}), t({3, 4})}, {{"axis", std::int64_t{1}}}, 3);
    for (const char* domain : {"", "ai.falaj"}) {
      Attributes attributes = {{"momentum", 0.8F}};
      attributes.emplace("training_mode", std::int64_t{*domain == 0 ? 1 : 0});  // ours always trains
      partly(domain, "BatchNormalization", {t({3, 4, 2}), t({4}), t({4}), t({4}), t({4}, 0.5, 2)}, attributes, 3, 3);
    }
    partly(kOnnx, "BatchNormalization", {t({3, 4, 2}), t({4}), t({4}), t({4}), t({4}, 0.5, 2)}, {}, 1, 3);
    partly(kOnnx, "BatchNormalization", {t({3, 2}), t({2}), t({2}), t({2}), t({2}, 0.5, 2)}, {{"epsilon", 0.1F}}, 1, 3);
    for (const char* reduction : {"mean", "sum"}) {
      Attributes attributes = {{"reduction", std::string(reduction)}};
      for (const char* op : {"MeanSquare", "MeanAbsolute"}) partly(kFalaj, op, {t({4, 2}), t({4, 2})}, attributes, 1, 1);
      partly(kFalaj, "Huber", {t({5, 2}), t({5, 2})}, {{"reduction", std::string(reduction)}, {"delta", 0.7F}}, 1, 1);
      partly(kFalaj, "SigmoidCrossEntropy", {t({4, 1}), t({4, 1}, 0, 1)}, attributes, 1, 1);
      partly(kFalaj, "SigmoidCrossEntropy", {t({4, 1}), t({4, 1}, 0, 1), t({4, 1}, 0.5, 2)}, attributes, 1, 1);
      partly(kFalaj, "SoftmaxCrossEntropy", {t({4, 3}), ints({2, 0, 1, 2})}, attributes, 1, 1);
      partly(kFalaj, "SoftmaxCrossEntropy", {t({4, 3}), ints({2, 0, 1, 2}), t({4}, 0.5, 2)}, attributes, 1, 1);
      attributes.emplace("ignore_index", std::int64_t{-100});
      partly(kFalaj, "SoftmaxCrossEntropy", {t({4, 3}), ints({2, -100, 1, 2})}, attributes, 1, 1);
    }
  }

  void preprocessing() {
    Tensor words = Tensor::of<std::string>({3, 1}, {"red", "green", "?"});
    add(kOnnxMl, "LabelEncoder", {words},
        {{"keys_strings", Strings{"red", "green"}}, {"values_int64s", Ints{4, 5}}, {"default_int64", std::int64_t{9}}});
    add(kOnnxMl, "LabelEncoder", {words}, {{"keys_strings", Strings{"red"}}, {"values_floats", Floats{0.5F}}});
    add(kOnnxMl, "LabelEncoder", {ints({1, 2, 3})}, {{"keys_int64s", Ints{1, 2}}, {"values_strings", Strings{"a", "b"}}});
    Attributes both = {{"cats_strings", Strings{"red", "green"}}, {"cats_int64s", Ints{4, 5}}};
    add(kOnnxMl, "CategoryMapper", {words}, both);
    add(kOnnxMl, "CategoryMapper", {ints({5, 7})}, both);
    add(kOnnxMl, "FeatureVectorizer", {as_f32(t({3, 2})), t({3, 1}), ints({1, 2, 3})}, {{"inputdimensions", Ints{1, 2, 1}}});
    add(kOnnxMl, "OneHotEncoder", {words}, {{"cats_strings", Strings{"green", "red"}}});
    add(kOnnxMl, "OneHotEncoder", {ints({1, 7})}, {{"cats_int64s", Ints{7, 8}}});
    add(kOnnxMl, "Scaler", {t({3, 2})}, {{"offset", Floats{1, 2}}, {"scale", Floats{0.5F, 3}}});
    add(kOnnxMl, "Imputer", {t({3, 2})},
        {{"imputed_value_floats", Floats{1, 2}}, {"replaced_value_float", std::numeric_limits<float>::quiet_NaN()}});
    for (const char* norm : {"MAX", "L1", "L2"}) add(kOnnxMl, "Normalizer", {t({3, 2})}, {{"norm", std::string(norm)}});
    add(kOnnxMl, "ZipMap", {as_f32(t({3, 2}))}, {{"classlabels_int64s", Ints{0, 1}}});
    add(kOnnxMl, "LinearRegressor", {t({3, 2})},
        {{"coefficients", Floats{1, 2, 3, 4}}, {"intercepts", Floats{0, 1}}, {"targets", std::int64_t{2}}});
    Attributes classifier = {{"coefficients", Floats{1, 2, -1, -2}}, {"intercepts", Floats{0, 1}}, {"classlabels_ints", Ints{0, 1}}};
    add(kOnnxMl, "LinearClassifier", {t({3, 2})}, classifier, 2);
    classifier["post_transform"] = std::string("SOFTMAX");
    add(kOnnxMl, "LinearClassifier", {t({3, 2})}, classifier, 2);
    svms();
  }

  void svms() {
    Attributes regressor = {{"coefficients", Floats{1, -2}}, {"rho", Floats{0.5F}}};
    add(kOnnxMl, "SVMRegressor", {t({3, 2})}, regressor);
    regressor["support_vectors"] = Floats{1, 2, -1, 0.5F};
    regressor["n_supports"] = std::int64_t{2};
    regressor["kernel_params"] = Floats{0.3F, 0.1F, 2};
    for (const char* kind : {"LINEAR", "POLY", "RBF", "SIGMOID"}) {
      regressor["kernel_type"] = std::string(kind);
      add(kOnnxMl, "SVMRegressor", {t({3, 2})}, regressor);
    }
    Attributes classifier = {{"coefficients", Floats{1, -1, 0.5F, 0.25F, -0.5F, -1}},
                             {"support_vectors", Floats{1, 2, -1, 0.5F, 0, -2}},
                             {"vectors_per_class", Ints{1, 1, 1}},
                             {"rho", Floats{0.1F, -0.2F, 0.3F}},
                             {"kernel_type", std::string("RBF")},
                             {"kernel_params", Floats{0.3F, 0, 3}},
                             {"classlabels_strings", Strings{"a", "b", "c"}}};
    add(kOnnxMl, "SVMClassifier", {t({3, 2})}, classifier, 2);
    classifier["prob_a"] = Floats{-1, -2, -1.5F};
    classifier["prob_b"] = Floats{0.1F, 0, -0.1F};
    add(kOnnxMl, "SVMClassifier", {t({3, 2})}, classifier, 2);
  }
};

}  // namespace

void CaseMaker::add(std::string_view domain, std::string_view op, std::vector<Tensor> inputs, Attributes attributes, std::size_t outputs,
                    bool differentiable) {
  OpCase c{Node{std::string(op), std::string(domain), std::string(op), {}, {}, std::move(attributes)}, std::move(inputs), differentiable};
  for (std::size_t i = 0; i < c.inputs.size(); ++i) c.node.inputs.push_back(c.inputs[i].empty() ? "" : "in" + std::to_string(i));
  for (std::size_t i = 0; i < outputs; ++i) c.node.outputs.push_back("out" + std::to_string(i));
  cases.push_back(std::move(c));
}

Tensor random_tensor(Random& random, const Shape& shape, double low, double high) {
  Tensor t(DType::f64, shape);
  for (double& v : t.mutable_data<double>()) v = low + (high - low) * random.uniform();
  return t;
}

Tensor as_f32(const Tensor& tensor) {
  if (tensor.empty() || tensor.dtype() != DType::f64) return tensor;
  Tensor out(DType::f32, tensor.shape());
  auto from = tensor.data<double>();
  auto to = out.mutable_data<float>();
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = static_cast<float>(from[i]);
  return out;
}

std::vector<OpCase> op_cases(Random& random) {
  Maker maker(random);
  maker.arithmetic();
  maker.logic();
  maker.products();
  maker.reductions();
  maker.shapes();
  maker.norms_and_losses();
  maker.preprocessing();
  for (const auto& more : {more_op_cases(random), integer_op_cases(random)})
    maker.cases.insert(maker.cases.end(), more.begin(), more.end());
  return std::move(maker.cases);
}

}  // namespace falaj::kernels::testing
