// Convolutions and pools on [N, spatial..., C], of ai.falaj: what kernels/channels_last.cpp makes of ONNX's own, for channels that lie
// together are read and written as vectors. Conv carries bias, another summand and an activation. They are made for running, after
// differentiation.
#include "kernels/ops/channels_last.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/ops/activate.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {

Shape channels_first(const Shape& last) {
  Shape out = last;
  if (last.rank() < 3) return out;
  out.erase(last.rank() - 1);
  out.insert(1, last.back());
  return out;
}
Shape channels_last(const Shape& first) {
  Shape out = first;
  if (first.rank() < 3) return out;
  out.erase(1);
  out.push_back(first[1]);
  return out;
}

Result<FusedConv> fused_conv(const OpCall& call) {
  std::array<ValueType, 2> types = {call.in(0), call.in(1)};
  types[0].shape = channels_first(types[0].shape);
  FusedConv fused;
  FALAJ_ASSIGN(fused.conv, conv_spec(OpCall{call.node, types, call.opset}, 0, 1));
  fused.has_bias = call.has(2);
  fused.has_addend = call.has(3);
  FALAJ_ASSIGN(const auto activation, attr_string(call.node, "activation", ""));
  FALAJ_ASSIGN(fused.activation, activation_of(activation));
  FALAJ_ASSIGN(fused.activation_alpha, attr_float(call.node, "activation_alpha", static_cast<double>(0.01F)));
  FALAJ_ASSIGN(const auto pooled, attr_int(call.node, "pooled", 0));
  fused.pooled = pooled != 0;
  if (fused.pooled && (fused.conv.window.rank() != 2 || fused.has_addend))
    return invalid("only the results of two-dimensional convolutions without an addend can be pooled");
  const auto& out = fused.conv.window.out;
  if (fused.pooled && (out[0] < 2 || out[1] < 2))
    return invalid(format("a window of 2 x 2 does not fit the convolution's result of {} x {}", out[0], out[1]));
  return fused;
}

namespace {

// Elements of each image from [channels, places] to [places, channels].
template <class T>
void to_last(const T* from, T* to, std::int64_t images, std::int64_t channels, std::int64_t places) {
  for (std::int64_t n = 0; n < images; ++n) {
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t p = 0; p < places; ++p) to[(n * places + p) * channels + c] = from[(n * channels + c) * places + p];
    }
  }
}

Status infer_conv(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  for (std::size_t i = 1; i < call.inputs.size(); ++i) {
    if (call.has(i)) FALAJ_TRY(check_same_dtype(call, 0, i));
  }
  FALAJ_ASSIGN(const auto fused, fused_conv(call));
  if (fused.has_bias && call.in(2).shape != Shape{fused.conv.maps})
    return invalid(format("the bias has shape {}; it must be [{}]", to_string(call.in(2).shape), fused.conv.maps));
  Shape out = channels_last(conv_shape(fused.conv));
  if (fused.pooled) out = {out[0], fused.out(0), fused.out(1), out[3]};
  if (fused.has_addend && call.in(3).shape != out)
    return invalid(format("what is added has shape {}; it must be {}", to_string(call.in(3).shape), to_string(out)));
  return set_output(call, 0, call.in(0).dtype, out);
}
// [N, H, W, C] -> [N, H / 2, W / 2, C]
template <class T>
void largest_of_four(const FusedConv& fused, const T* from, T* to) {
  const std::int64_t maps = fused.conv.maps;
  const std::int64_t width = fused.conv.window.out[1];
  for (std::int64_t n = 0; n < fused.conv.batch; ++n, from += fused.conv.window.out_elements() * maps) {
    for (std::int64_t i = 0; i < fused.out(0) * fused.out(1) * maps; ++i, ++to) {
      const std::int64_t row = 2 * (i / maps / fused.out(1));
      const std::int64_t column = 2 * (i / maps % fused.out(1));
      *to = from[(row * width + column) * maps + i % maps];
      for (const std::int64_t next : {row * width + column + 1, (row + 1) * width + column, (row + 1) * width + column + 1}) {
        const T value = from[next * maps + i % maps];
        if (value > *to || std::isnan(value)) *to = value;
      }
    }
  }
}
Result<KernelPtr> make_conv(const KernelCall& c) {
  FALAJ_ASSIGN(auto fused, fused_conv(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([fused](const Io& io) {
      const ConvSpec& spec = fused.conv;
      const std::int64_t in = spec.window.in_elements();
      const std::int64_t out = spec.window.out_elements();
      std::vector<T> x(static_cast<std::size_t>(spec.batch * spec.channels * in));
      std::vector<T> first(static_cast<std::size_t>(spec.batch * spec.maps * out));
      to_last(io.input<T>(0), x.data(), spec.batch, in, spec.channels);  // the other way round
      convolve(spec, x.data(), io.input<T>(1), fused.has_bias ? io.input<T>(2) : nullptr, first.data());
      std::vector<T> whole(fused.pooled ? first.size() : 0);
      T* y = fused.pooled ? whole.data() : io.output<T>(0);
      to_last(first.data(), y, spec.batch, spec.maps, out);
      for (std::size_t i = 0; i < first.size(); ++i)
        y[i] = activate(y[i] + (fused.has_addend ? io.input<T>(3)[i] : T{0}), fused.activation, fused.activation_alpha);
      if (fused.pooled) largest_of_four(fused, y, io.output<T>(0));
    });
  });
}

// --- pools: ONNX's own between two transpositions ------------------------------------------------------------------------------

// The node as ONNX has it, and its input's type.
struct Inner {
  Node node;
  std::array<ValueType, 1> inputs;
  const OpDef* op;
};
Inner inner_of(const OpCall& call) {
  Inner inner{call.node, {call.in(0)}, nullptr};
  inner.node.domain = "";
  inner.inputs[0].shape = channels_first(call.in(0).shape);
  inner.inputs[0].constant = nullptr;
  inner.op = find_op(kOnnx, inner.node.op);
  return inner;
}
Status infer_pool(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  if (call.in(0).shape.rank() < 3)
    return invalid(format("the input {} needs a batch, spatial dimensions and channels", to_string(call.in(0).shape)));
  const Inner inner = inner_of(call);
  std::vector<ValueType> outputs(1);
  InferCall inner_call{{inner.node, inner.inputs, kOpset}, outputs};
  FALAJ_TRY(inner.op->infer(inner_call));
  return set_output(call, 0, outputs[0].dtype, channels_last(outputs[0].shape));
}

class PoolKernel final : public Kernel {
 public:
  PoolKernel(KernelPtr inner, const Shape& in, const Shape& out) : inner_(std::move(inner)), in_(in), out_(out) {}
  void run(const Io& io) const override {
    auto* x = reinterpret_cast<double*>(io.scratch);
    double* y = x + in_.elements();
    to_last(io.input<double>(0), x, in_[0], in_.elements(1, in_.rank() - 1), in_.back());
    void* const in[] = {x};
    void* const out[] = {y};
    inner_->run(Io{in, out, reinterpret_cast<std::byte*>(y + out_.elements()), io.failure});
    to_last(y, io.output<double>(0), out_[0], out_.back(), out_.elements(1, out_.rank() - 1));
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return static_cast<std::size_t>(in_.elements() + out_.elements()) * sizeof(double) + inner_->scratch_bytes();
  }

 private:
  KernelPtr inner_;
  Shape in_, out_;
};
Result<KernelPtr> make_pool(const KernelCall& c) {
  return dispatch<double>(c.in(0).dtype, [&]<class T>() -> Result<KernelPtr> {
    const Inner inner = inner_of(c);
    std::array<ValueType, 1> outputs = {c.outputs[0]};
    outputs[0].shape = channels_first(outputs[0].shape);
    FALAJ_ASSIGN(auto kernel, inner.op->reference(KernelCall{{inner.node, inner.inputs, kOpset}, outputs}));
    return std::make_unique<PoolKernel>(std::move(kernel), c.in(0).shape, c.outputs[0].shape);
  });
}

constexpr OpDef kOps[] = {
    {kFalaj, "Conv", 2, 4, 1, 1, infer_conv, make_conv},
    {kFalaj, "MaxPool", 1, 1, 1, 1, infer_pool, make_pool},
    {kFalaj, "AveragePool", 1, 1, 1, 1, infer_pool, make_pool},
    {kFalaj, "GlobalMaxPool", 1, 1, 1, 1, infer_pool, make_pool},
    {kFalaj, "GlobalAveragePool", 1, 1, 1, 1, infer_pool, make_pool},
};

}  // namespace

std::span<const OpDef> nhwc_ops() { return kOps; }

Result<Window> channels_last_window(const OpCall& call) {
  const Shape first = channels_first(call.in(0).shape);
  if (call.node.op.starts_with("Global")) return whole_plane(first);
  FALAJ_ASSIGN(const auto kernel, attr_ints(call.node, "kernel_shape"));
  return sliding_window(call, first.dims().subspan(2), kernel);
}

}  // namespace falaj::kernels
