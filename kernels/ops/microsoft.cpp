#include "kernels/ops/microsoft.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/ops/quantize.hpp"

namespace falaj::kernels {

std::optional<MicrosoftOp> microsoft_op(const Node& node) {
  if (node.domain != kMicrosoft || !node.op.starts_with("QLinear")) return {};
  MicrosoftOp op{{node.op.substr(7), "", node.name, {}, {""}, node.attributes}, {{0, 1, 2}}, {0, 3, 4}};
  if (op.plain.op == "Add" || op.plain.op == "Mul") {
    op.inputs.push_back({3, 4, 5});
    op.result = {0, 6, 7};
  } else if (op.plain.op == "Concat") {
    op.result = {0, 0, 1};
    op.inputs.clear();
    for (std::size_t i = 2; i + 2 < node.inputs.size(); i += 3) op.inputs.push_back({i, i + 1, i + 2});
  } else if (op.plain.op == "Softmax") {
    op.plain.attributes.erase("opset");
  } else if (op.plain.op == "AveragePool" || op.plain.op == "GlobalAveragePool") {
    if (attr_int(node, "channels_last", 0).value_or(1) != 0) return {};
    op.plain.attributes.erase("channels_last");
  } else if (op.plain.op != "Sigmoid" && op.plain.op != "LeakyRelu") {
    return {};
  }
  std::size_t most = std::max(op.result.scale, op.result.zero);
  for (const auto& x : op.inputs) most = std::max(most, x.zero);
  if (op.inputs.empty() || most >= node.inputs.size()) return {};
  return op;
}

namespace {

Error unsupported(const OpCall& call) {
  return Error{ErrorCode::unimplemented, format("{} with these inputs and attributes is not supported", call.node.op)};
}

std::vector<ValueType> plain_types(const OpCall& call, const MicrosoftOp& op) {
  std::vector<ValueType> types;
  for (const auto& x : op.inputs) types.push_back({DType::f32, call.in(x.value).shape, nullptr});
  return types;
}

Status infer_quantised(InferCall& call) {
  const auto op = microsoft_op(call.node);
  if (!op || !call.has(op->result.scale)) return unsupported(call);
  for (const auto& x : op->inputs) {
    FALAJ_TRY(check_dtype(call, x.value, {DType::u8, DType::i8}));
    FALAJ_TRY(check_dtype(call, x.scale, {DType::f32}));
    if (call.has(x.zero)) FALAJ_TRY(check_same_dtype(call, x.zero, x.value));
    if (call.in(x.scale).shape.elements() != 1 || (call.has(x.zero) && call.in(x.zero).shape.elements() != 1)) return unsupported(call);
  }
  const auto& y = op->result;
  FALAJ_TRY(check_dtype(call, y.scale, {DType::f32}));
  if (call.in(y.scale).shape.elements() != 1 || (call.has(y.zero) && call.in(y.zero).shape.elements() != 1)) return unsupported(call);
  const auto types = plain_types(call, *op);
  std::vector<ValueType> outputs(1);
  InferCall inner{{op->plain, types, kOpset}, outputs};
  FALAJ_TRY(find_op(kOnnx, op->plain.op)->infer(inner));
  return set_output(call, 0, call.in(op->inputs[0].value).dtype, outputs[0].shape);
}

// Rounds to nearest even, saturates.
void put_quantised(std::span<const float> values, float scale, double zero, DType to, void* y) {
  const double low = to == DType::i8 ? -128 : 0;
  std::vector<double> quanta(values.size());
  for (std::size_t i = 0; i < quanta.size(); ++i)
    quanta[i] = std::clamp(std::nearbyint(static_cast<double>(values[i] / scale)) + zero, low, low + 255);
  convert_elements(DType::f64, quanta.data(), to, y, static_cast<std::int64_t>(quanta.size()));
}

Result<KernelPtr> make_quantised(const KernelCall& c) {
  const auto op = microsoft_op(c.node);
  if (!op) return unsupported(c);
  const auto types = plain_types(c, *op);
  const std::vector<ValueType> outputs = {{DType::f32, c.outputs[0].shape, nullptr}};
  FALAJ_ASSIGN(KernelPtr made, make_reference(*find_op(kOnnx, op->plain.op), KernelCall{{op->plain, types, kOpset}, outputs}));
  std::vector<ValueType> all(c.inputs.begin(), c.inputs.end());
  for (auto& type : all) type.constant = nullptr;
  const std::size_t scratch = made->scratch_bytes();
  std::shared_ptr<const Kernel> inner = std::move(made);
  return make_kernel(
      [op = *op, all, inner, out = c.outputs[0]](const Io& io) {
        std::vector<std::vector<float>> values;
        std::vector<void*> in;
        for (const auto& x : op.inputs) {
          const double zero = numbers_or_zero(all, x.zero, io)[0];
          const double scale = numbers_or_zero(all, x.scale, io)[0];
          values.emplace_back();
          for (const double v : dequantised(all[x.value], io.in[x.value], {zero})) values.back().push_back(static_cast<float>(v * scale));
        }
        for (auto& v : values) in.push_back(v.data());
        std::vector<float> y(static_cast<std::size_t>(out.shape.elements()));
        void* const results[] = {y.data()};
        inner->run(Io{in.data(), results, io.scratch, io.failure});
        put_quantised(y, *io.input<float>(op.result.scale), numbers_or_zero(all, op.result.zero, io)[0], out.dtype, io.out[0]);
      },
      scratch);
}

// A, a_scale, a_zero, B, b_scale, b_zero, C i32?, y_scale?, y_zero?
Status infer_gemm(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::u8, DType::i8}));
  FALAJ_TRY(check_dtype(call, 3, {DType::u8, DType::i8}));
  for (const std::size_t i : {1U, 4U, 7U}) {
    if (call.has(i)) FALAJ_TRY(check_dtype(call, i, {DType::f32}));
  }
  FALAJ_ASSIGN(const auto trans_a, attr_int(call.node, "transA", 0));
  FALAJ_ASSIGN(const auto trans_b, attr_int(call.node, "transB", 0));
  const Shape& a = call.in(0).shape;
  const Shape& b = call.in(3).shape;
  if (a.rank() != 2 || b.rank() != 2) return invalid(format("A {} and B {} must be matrices", to_string(a), to_string(b)));
  const std::int64_t m = a[trans_a != 0 ? 1 : 0];
  const std::int64_t n = b[trans_b != 0 ? 0 : 1];
  if (a[trans_a != 0 ? 0 : 1] != b[trans_b != 0 ? 1 : 0])
    return invalid(format("{} and {} cannot be multiplied", to_string(a), to_string(b)));
  FALAJ_TRY(check_same_dtype(call, 2, 0));
  FALAJ_TRY(check_zero_point(call, 5, 3, n));
  const std::int64_t scales = call.in(4).shape.elements();
  if (call.in(1).shape.elements() != 1 || call.in(2).shape.elements() != 1 || (scales != 1 && scales != n)) return unsupported(call);
  if (call.has(6)) {
    FALAJ_TRY(check_dtype(call, 6, {DType::i32}));
    const auto terms = call.in(6).shape.elements();
    if (terms != 1 && (terms != n || call.in(6).shape.back() != n)) return unsupported(call);
  }
  if (!call.has(7)) return set_output(call, 0, DType::f32, {m, n});
  if (!call.has(8) || call.in(7).shape.elements() != 1 || call.in(8).shape.elements() != 1) return unsupported(call);
  return set_output(call, 0, call.in(8).dtype, {m, n});
}
Result<KernelPtr> make_gemm(const KernelCall& c) {
  FALAJ_ASSIGN(const auto trans_a, attr_int(c.node, "transA", 0));
  FALAJ_ASSIGN(const auto trans_b, attr_int(c.node, "transB", 0));
  FALAJ_ASSIGN(const auto alpha, attr_float(c.node, "alpha", 1.0));
  std::vector<ValueType> types(c.inputs.begin(), c.inputs.end());
  for (auto& type : types) type.constant = nullptr;
  return make_kernel([types, alpha, ta = trans_a != 0, tb = trans_b != 0, out = c.outputs[0]](const Io& io) {
    const auto a_zero = numbers_or_zero(types, 2, io);
    const auto b_zero = numbers_or_zero(types, 5, io);
    const auto a = dequantised(types[0], io.in[0], a_zero);
    const auto b = dequantised(types[3], io.in[3], {0});
    const auto a_scale = numbers_or_zero(types, 1, io);
    const auto b_scale = numbers_or_zero(types, 4, io);
    const auto bias = numbers_or_zero(types, 6, io);
    const auto m = static_cast<std::size_t>(out.shape[0]);
    const auto n = static_cast<std::size_t>(out.shape[1]);
    const auto k = static_cast<std::size_t>(types[0].shape[ta ? 0 : 1]);
    std::vector<float> y(m * n);
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        double sum = bias[bias.size() == 1 ? 0 : j];
        const double zero = b_zero[b_zero.size() == 1 ? 0 : j];
        for (std::size_t t = 0; t < k; ++t) sum += a[ta ? t * m + i : i * k + t] * (b[tb ? j * k + t : t * n + j] - zero);
        y[i * n + j] = static_cast<float>(sum * alpha * a_scale[0] * b_scale[b_scale.size() == 1 ? 0 : j]);
      }
    }
    if (out.dtype == DType::f32) {
      std::ranges::copy(y, io.output<float>(0));
    } else {
      put_quantised(y, *io.input<float>(7), numbers_or_zero(types, 8, io)[0], out.dtype, io.out[0]);
    }
  });
}

constexpr OpDef kOps[] = {
    {kMicrosoft, "QGemm", 6, 9, 1, 1, infer_gemm, make_gemm},
    {kMicrosoft, "QLinearAdd", 7, 8, 1, 1, infer_quantised, make_quantised},
    {kMicrosoft, "QLinearMul", 7, 8, 1, 1, infer_quantised, make_quantised},
    {kMicrosoft, "QLinearConcat", 5, kVariadic, 1, 1, infer_quantised, make_quantised},
    {kMicrosoft, "QLinearSoftmax", 5, 5, 1, 1, infer_quantised, make_quantised},
    {kMicrosoft, "QLinearSigmoid", 4, 5, 1, 1, infer_quantised, make_quantised},
    {kMicrosoft, "QLinearLeakyRelu", 4, 5, 1, 1, infer_quantised, make_quantised},
    {kMicrosoft, "QLinearAveragePool", 4, 5, 1, 1, infer_quantised, make_quantised},
    {kMicrosoft, "QLinearGlobalAveragePool", 4, 5, 1, 1, infer_quantised, make_quantised},
};

}  // namespace

std::span<const OpDef> microsoft_ops() { return kOps; }

}  // namespace falaj::kernels
