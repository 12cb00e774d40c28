#include "kernels/ops/blocks.hpp"

#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {

Shape blocks_of(const Shape& plain) { return {plain[0], plain[1] / kBlockChannels, plain[2], plain[3], kBlockChannels}; }
Shape plain_of(const Shape& shape) { return is_blocks(shape) ? Shape{shape[0], shape[1] * kBlockChannels, shape[2], shape[3]} : shape; }

namespace {

Status check_blocks(const OpCall& call, std::size_t input) {
  FALAJ_TRY(check_dtype(call, input, {DType::f32, DType::bf16}));
  const Shape& shape = call.in(input).shape;
  if (is_blocks(shape) && shape.back() == kBlockChannels) return {};
  return invalid(format("'{}' has shape {}; blocks are [N, C / 16, H, W, 16]", call.node.inputs[input], to_string(shape)));
}
// Blocks, or f32 as it came.
Status check_either(const OpCall& call, std::size_t input) {
  if (is_blocks(call.in(input).shape)) return check_blocks(call, input);
  FALAJ_TRY(check_dtype(call, input, {DType::f32}));
  if (call.in(input).shape.rank() == 4) return {};
  return invalid(format("'{}' has shape {}; it must have four dimensions", call.node.inputs[input], to_string(call.in(input).shape)));
}
Status check_like(const OpCall& call, std::size_t a, std::size_t b) {
  FALAJ_TRY(check_same_dtype(call, a, b));
  if (call.in(a).shape == call.in(b).shape) return {};
  return invalid(format("'{}' has shape {}; it must be {}", call.node.inputs[b], to_string(call.in(b).shape), to_string(call.in(a).shape)));
}
Status check_channels(const OpCall& call, std::size_t input, const Blocks& b) {
  FALAJ_TRY(check_dtype(call, input, {DType::f32}));
  if (call.in(input).shape == Shape{b.channels()}) return {};
  return invalid(format("'{}' has shape {}; it must be [{}]", call.node.inputs[input], to_string(call.in(input).shape), b.channels()));
}
Result<DType> made_type(const OpCall& call) {
  FALAJ_ASSIGN(const auto half, attr_int(call.node, "half", 0));
  return half != 0 ? DType::bf16 : DType::f32;
}

}  // namespace

Result<ConvSpec> block_conv_spec(const OpCall& call) {
  const bool data = call.node.op == "BlockConvDataGrad";
  const bool forward = call.node.op == "BlockConv";
  const std::size_t x = data ? 2 : (forward ? 0 : 1);
  const std::size_t w = data || forward ? 1 : 2;
  FALAJ_TRY(check_either(call, x));
  FALAJ_TRY(check_dtype(call, w, {DType::f32}));
  std::array<ValueType, 2> plain = {call.in(x), call.in(w)};
  plain[0].shape = plain_of(plain[0].shape);
  FALAJ_ASSIGN(auto spec, conv_spec(OpCall{call.node, plain, call.opset}, 0, 1));
  if (spec.groups != 1) return invalid("convolutions in blocks have one group");
  if (spec.maps % kBlockChannels != 0) return invalid(format("{} maps are no blocks of {}", spec.maps, kBlockChannels));
  if (forward) return spec;
  FALAJ_TRY(check_blocks(call, 0));
  if (plain_of(call.in(0).shape) != conv_shape(spec)) return invalid("the gradient does not fit the convolution");
  return spec;
}

Result<Window> block_window(const OpCall& call) {
  const bool forward = call.node.op == "BlockPool";
  FALAJ_TRY(check_blocks(call, forward ? 0 : 1));
  FALAJ_ASSIGN(const auto function, attr_string(call.node, "function"));
  const Shape in = plain_of(call.in(forward ? 0 : 1).shape);
  if (function.starts_with("Global")) return whole_plane(in);
  FALAJ_ASSIGN(const auto kernel, attr_ints(call.node, "kernel_shape"));
  return sliding_window(call, in.dims().subspan(2), kernel);
}

Result<Blocks> blocks_in(const OpCall& call, std::size_t input) {
  FALAJ_TRY(check_blocks(call, input));
  const ValueType& type = call.in(input);
  return Blocks{type.shape[0], type.shape[1], type.shape[2] * type.shape[3], type.dtype == DType::bf16};
}

namespace {

// --- values in f64, channels apart: what the reference kernels work on ------------------------------------------------------------

std::size_t elements_of(const ValueType& type) { return static_cast<std::size_t>(type.shape.elements()); }

// Where the element of blocks is that is the i-th of [N, C, H, W].
std::size_t in_blocks(const Shape& blocks, std::size_t i) {
  const auto pixels = static_cast<std::size_t>(blocks[2] * blocks[3]);
  const std::size_t plane = i / pixels;
  return (plane / kBlockChannels * pixels + i % pixels) * kBlockChannels + plane % kBlockChannels;
}
std::vector<double> read(const ValueType& type, const void* from) {
  std::vector<double> lying(elements_of(type));
  to_doubles(type.dtype, from, lying.data(), type.shape.elements());
  if (!is_blocks(type.shape)) return lying;
  std::vector<double> plain(lying.size());
  for (std::size_t i = 0; i < plain.size(); ++i) plain[i] = lying[in_blocks(type.shape, i)];
  return plain;
}
void write(const ValueType& type, const std::vector<double>& plain, void* to) {
  std::vector<double> lying(plain.size());
  for (std::size_t i = 0; i < plain.size(); ++i) lying[is_blocks(type.shape) ? in_blocks(type.shape, i) : i] = plain[i];
  if (type.dtype == DType::f64) {
    std::ranges::copy(lying, static_cast<double*>(to));
    return;
  }
  // By way of f32, as the kernels that compute in it.
  std::vector<float> narrow(lying.begin(), lying.end());
  convert_elements(DType::f32, narrow.data(), type.dtype, to, type.shape.elements());
}

// A kernel from f(inputs, outputs), both in f64; outputs come as zeros, those that nobody wants too.
using Values = std::vector<std::vector<double>>;
template <class F>
KernelPtr plain_kernel(const KernelCall& c, std::size_t outputs, F f) {
  std::vector<ValueType> in(c.inputs.begin(), c.inputs.end());
  std::vector<ValueType> out(c.outputs.begin(), c.outputs.end());
  const OpDef* op = find_op(c.node.domain, c.node.op);
  const std::uint32_t unread = op == nullptr ? 0 : op->shape_only;
  return make_kernel([in, out, outputs, unread, f](const Io& io) {
    Values x(in.size());
    Values y(outputs);
    for (std::size_t i = 0; i < in.size(); ++i) {
      if (in[i].dtype != DType::undefined && ((unread >> i) & 1U) == 0) x[i] = read(in[i], io.in[i]);
    }
    for (std::size_t i = 0; i < out.size(); ++i) y[i].assign(elements_of(out[i]), 0.0);
    f(x, y);
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (out[i].dtype != DType::undefined && io.out[i] != nullptr) write(out[i], y[i], io.out[i]);
    }
  });
}
// visit(element, channel)
template <class Visit>
void each(const Blocks& b, Visit visit) {
  for (std::int64_t i = 0; i < b.elements(); ++i) visit(static_cast<std::size_t>(i), static_cast<std::size_t>(i / b.pixels % b.channels()));
}
std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

// --- ops ----------------------------------------------------------------------------------------------------------------------------

Status infer_to_blocks(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::f32}));
  const Shape& x = call.in(0).shape;
  if (x.rank() != 4 || x[1] % kBlockChannels != 0) return invalid(format("{} has no blocks of {} channels", to_string(x), kBlockChannels));
  FALAJ_ASSIGN(const DType type, made_type(call));
  return set_output(call, 0, type, blocks_of(x));
}
Status infer_from_blocks(InferCall& call) {
  FALAJ_TRY(check_blocks(call, 0));
  return set_output(call, 0, DType::f32, plain_of(call.in(0).shape));
}
Result<KernelPtr> make_moved(const KernelCall& c) {
  return plain_kernel(c, 1, [](const Values& x, Values& y) { y[0] = x[0]; });
}

Status infer_conv(InferCall& call) {
  FALAJ_ASSIGN(const auto spec, block_conv_spec(call));
  if (call.has(2) && (call.in(2).dtype != DType::f32 || call.in(2).shape != Shape{spec.maps}))
    return invalid(format("the bias {} is not [{}]", to_string(call.in(2).shape), spec.maps));
  FALAJ_ASSIGN(const DType type, made_type(call));
  return set_output(call, 0, type, blocks_of(conv_shape(spec)));
}
Status infer_conv_grad(InferCall& call) {
  FALAJ_TRY(block_conv_spec(call));
  const ValueType& like = call.in(2);
  return set_output(call, 0, is_blocks(like.shape) ? call.in(0).dtype : DType::f32, like.shape);
}
Result<KernelPtr> make_conv(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, block_conv_spec(c));
  const bool forward = c.node.op == "BlockConv";
  const bool data = c.node.op == "BlockConvDataGrad";
  // What is in bfloat16, or is to be, is computed of operands in bfloat16.
  const bool half = c.outputs[0].dtype == DType::bf16 || (!forward && c.in(0).dtype == DType::bf16);
  return plain_kernel(c, 1, [spec, forward, data, half](Values& x, Values& y) {
    for (std::size_t i = 0; half && i < 2; ++i) {
      for (double& v : x[i]) v = bfloat16_to_double(bfloat16_from_double(v));
    }
    if (forward) {
      convolve(spec, x[0].data(), x[1].data(), x.size() > 2 && !x[2].empty() ? x[2].data() : nullptr, y[0].data());
    } else {
      (data ? convolve_back_to_input : convolve_back_to_weights)(spec, x[0].data(), x[1].data(), y[0].data());
    }
  });
}

Status infer_statistics(InferCall& call) {
  FALAJ_ASSIGN(const Blocks b, blocks_in(call, 0));
  FALAJ_TRY(set_output(call, 0, DType::f64, {2, b.channels()}));
  for (std::size_t i = 1; i < call.outputs.size(); ++i) {
    if (!call.has(i)) return invalid("running statistics move from those before");
    FALAJ_TRY(check_channels(call, i, b));
    FALAJ_TRY(set_output(call, i, DType::f32, {b.channels()}));
  }
  return {};
}
Result<KernelPtr> make_statistics(const KernelCall& c) {
  FALAJ_ASSIGN(const Blocks b, blocks_in(c, 0));
  FALAJ_ASSIGN(const double momentum, attr_float(c.node, "momentum", static_cast<double>(0.9F)));
  return plain_kernel(c, 3, [b, momentum, outputs = c.outputs.size()](const Values& x, Values& y) {
    const std::size_t channels = size(b.channels());
    each(b, [&](std::size_t i, std::size_t k) { y[0][k] += x[0][i] / b.count(); });
    each(b, [&](std::size_t i, std::size_t k) { y[0][channels + k] += (x[0][i] - y[0][k]) * (x[0][i] - y[0][k]) / b.count(); });
    const double unbiased = b.count() > 1 ? b.count() / (b.count() - 1) : 1.0;
    for (std::size_t o = 1; o < outputs; ++o) {
      for (std::size_t k = 0; k < y[o].size(); ++k)
        y[o][k] = x[o][k] * momentum + (o == 1 ? y[0][k] : y[0][channels + k] * unbiased) * (1 - momentum);
    }
  });
}

Status infer_given(InferCall& call) {
  for (const std::size_t i : {0U, 1U}) FALAJ_TRY(check_dtype(call, i, {DType::f32}));
  const Shape& mean = call.in(0).shape;
  if (mean.rank() != 1 || call.in(1).shape != mean) return invalid("mean and variance are two lists of one length");
  return set_output(call, 0, DType::f64, {2, mean[0]});
}
Result<KernelPtr> make_given(const KernelCall& c) {
  return plain_kernel(c, 1, [](const Values& x, Values& y) {
    std::ranges::copy(x[0], y[0].begin());
    std::ranges::copy(x[1], y[0].begin() + static_cast<std::ptrdiff_t>(x[0].size()));
  });
}

Status check_norm(const OpCall& call, std::size_t x, const Blocks& b) {
  FALAJ_TRY(check_dtype(call, x + 1, {DType::f64}));
  if (call.in(x + 1).shape != Shape{2, b.channels()}) return invalid("the statistics do not fit the input");
  FALAJ_TRY(check_channels(call, x + 2, b));
  if (call.has(x + 3)) FALAJ_TRY(check_channels(call, x + 3, b));
  return {};
}
Status infer_norm(InferCall& call) {
  FALAJ_ASSIGN(const Blocks b, blocks_in(call, 0));
  FALAJ_TRY(check_norm(call, 0, b));
  if (call.has(4)) FALAJ_TRY(check_like(call, 0, 4));
  return set_output(call, 0, call.in(0).dtype, call.in(0).shape);
}
Result<KernelPtr> make_norm(const KernelCall& c) {
  FALAJ_ASSIGN(const Blocks b, blocks_in(c, 0));
  FALAJ_ASSIGN(const double epsilon, attr_float(c.node, "epsilon", static_cast<double>(1e-5F)));
  FALAJ_ASSIGN(const auto relu, attr_int(c.node, "relu", 0));
  return plain_kernel(c, 1, [b, epsilon, relu, addend = c.has(4)](const Values& x, Values& y) {
    each(b, [&](std::size_t i, std::size_t k) {
      const double factor = x[2][k] / std::sqrt(x[1][size(b.channels()) + k] + epsilon);
      const double v = (x[0][i] - x[1][k]) * factor + x[3][k] + (addend ? x[4][i] : 0.0);
      y[0][i] = relu != 0 && v < 0 ? 0 : v;
    });
  });
}

Status infer_norm_grad(InferCall& call) {
  FALAJ_ASSIGN(const Blocks b, blocks_in(call, 0));
  FALAJ_TRY(check_like(call, 0, 1));
  FALAJ_TRY(check_norm(call, 1, b));
  FALAJ_ASSIGN(const auto relu, attr_int(call.node, "relu", 0));
  if (relu != 0 && !call.has(4)) return invalid("where Relu passed depends on the shift");
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, call.in(0).shape));
  for (std::size_t i = 1; i < call.outputs.size(); ++i) FALAJ_TRY(set_output(call, i, DType::f32, {b.channels()}));
  return {};
}
Result<KernelPtr> make_norm_grad(const KernelCall& c) {
  FALAJ_ASSIGN(const Blocks b, blocks_in(c, 0));
  FALAJ_ASSIGN(const double epsilon, attr_float(c.node, "epsilon", static_cast<double>(1e-5F)));
  FALAJ_ASSIGN(const auto relu, attr_int(c.node, "relu", 0));
  FALAJ_ASSIGN(const auto fixed, attr_int(c.node, "fixed", 0));
  return plain_kernel(c, 3, [b, epsilon, relu, fixed](Values& x, Values& y) {
    const std::size_t channels = size(b.channels());
    y[1].assign(channels, 0.0);
    y[2].assign(channels, 0.0);
    const auto inverse = [&](std::size_t k) { return 1.0 / std::sqrt(x[2][channels + k] + epsilon); };
    const auto normal = [&](std::size_t i, std::size_t k) { return (x[1][i] - x[2][k]) * inverse(k); };
    each(b, [&](std::size_t i, std::size_t k) {
      if (relu != 0 && !(normal(i, k) * x[3][k] + x[4][k] > 0)) x[0][i] = 0;
      y[1][k] += x[0][i] * normal(i, k);
      y[2][k] += x[0][i];
    });
    each(b, [&](std::size_t i, std::size_t k) {
      const double moved = fixed != 0 ? 0.0 : (y[2][k] + normal(i, k) * y[1][k]) / b.count();
      y[0][i] = x[3][k] * inverse(k) * (x[0][i] - moved);
    });
  });
}

Status infer_sum(InferCall& call) {
  FALAJ_TRY(blocks_in(call, 0));
  for (std::size_t i = 1; i < call.inputs.size(); ++i) {
    if (call.has(i)) FALAJ_TRY(check_like(call, 0, i));
  }
  return set_output(call, 0, call.in(0).dtype, call.in(0).shape);
}
Result<KernelPtr> make_sum(const KernelCall& c) {
  FALAJ_ASSIGN(const auto relu, attr_int(c.node, "relu", 0));
  return plain_kernel(c, 1, [relu, two = c.has(1), masked = c.has(2)](const Values& x, Values& y) {
    for (std::size_t i = 0; i < y[0].size(); ++i) {
      const double v = x[0][i] + (two ? x[1][i] : 0.0);
      y[0][i] = (relu != 0 && v < 0) || (masked && !(x[2][i] > 0)) ? 0 : v;
    }
  });
}

Status infer_channel_sums(InferCall& call) {
  FALAJ_ASSIGN(const Blocks b, blocks_in(call, 0));
  return set_output(call, 0, DType::f32, {b.channels()});
}
Result<KernelPtr> make_channel_sums(const KernelCall& c) {
  FALAJ_ASSIGN(const Blocks b, blocks_in(c, 0));
  return plain_kernel(c, 1, [b](const Values& x, Values& y) { each(b, [&](std::size_t i, std::size_t k) { y[0][k] += x[0][i]; }); });
}

Result<Shape> pooled(const OpCall& call, const Shape& in) {
  FALAJ_ASSIGN(const Window window, block_window(call));
  return Shape{in[0], in[1], window.out[0], window.out[1], kBlockChannels};
}
Status infer_pool(InferCall& call) {
  FALAJ_TRY(check_blocks(call, 0));
  FALAJ_ASSIGN(const Shape out, pooled(call, call.in(0).shape));
  return set_output(call, 0, call.in(0).dtype, out);
}
Status infer_pool_grad(InferCall& call) {
  FALAJ_TRY(check_blocks(call, 0));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(const Shape out, pooled(call, call.in(1).shape));
  if (call.in(0).shape != out) return invalid("the gradient does not fit the pool");
  if (call.has(2)) FALAJ_TRY(check_like(call, 0, 2));
  return set_output(call, 0, call.in(0).dtype, call.in(1).shape);
}
// By the kernels of ai.onnx's pools.
Result<KernelPtr> make_pool(const KernelCall& c) {
  const bool forward = c.node.op == "BlockPool";
  Node node = c.node;
  FALAJ_ASSIGN(const auto function, attr_string(c.node, "function"));
  node.op = forward ? function : "PoolGrad";
  node.domain = forward ? kOnnx : kFalaj;
  node.inputs.resize(forward ? 1 : 3, node.inputs[0]);
  const auto plain = [](const ValueType& type) { return ValueType{DType::f64, plain_of(type.shape)}; };
  std::vector<ValueType> inputs;
  for (const ValueType& type : c.inputs) inputs.push_back(plain(type));
  inputs.resize(node.inputs.size(), inputs[0]);  // the mean's gradient reads neither x nor y
  const ValueType out = plain(c.outputs[0]);
  FALAJ_ASSIGN(auto kernel, make_reference(*find_op(node.domain, node.op), KernelCall{{node, inputs, c.opset}, {&out, 1}}));
  return plain_kernel(c, 1, [inputs, kernel = std::shared_ptr<const Kernel>(std::move(kernel))](Values& x, Values& y) {
    x.resize(inputs.size());
    std::vector<void*> from;
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i].resize(elements_of(inputs[i]));
      from.push_back(x[i].data());
    }
    std::vector<std::byte> scratch(kernel->scratch_bytes());
    void* to = y[0].data();
    std::string failure;
    kernel->run(Io{from.data(), &to, scratch.data(), &failure});
  });
}

constexpr OpDef kOps[] = {
    {kFalaj, "ToBlocks", 1, 1, 1, 1, infer_to_blocks, make_moved},
    {kFalaj, "FromBlocks", 1, 1, 1, 1, infer_from_blocks, make_moved},
    {kFalaj, "BlockConv", 2, 3, 1, 1, infer_conv, make_conv},
    {kFalaj, "BlockConvDataGrad", 3, 3, 1, 1, infer_conv_grad, make_conv, nullptr, Placement::own, 0b100},
    {kFalaj, "BlockConvWeightGrad", 3, 3, 1, 1, infer_conv_grad, make_conv, nullptr, Placement::own, 0b100},
    {kFalaj, "BlockStatistics", 1, 3, 1, 3, infer_statistics, make_statistics},
    {kFalaj, "GivenStatistics", 2, 2, 1, 1, infer_given, make_given},
    {kFalaj, "BlockNorm", 4, 5, 1, 1, infer_norm, make_norm, nullptr, Placement::in_place},
    {kFalaj, "BlockNormGrad", 4, 5, 1, 3, infer_norm_grad, make_norm_grad, nullptr, Placement::in_place},
    {kFalaj, "BlockSum", 1, 3, 1, 1, infer_sum, make_sum, nullptr, Placement::in_place},
    {kFalaj, "ChannelSums", 1, 1, 1, 1, infer_channel_sums, make_channel_sums},
    {kFalaj, "BlockPool", 1, 1, 1, 1, infer_pool, make_pool},
    {kFalaj, "BlockMaxPoolGrad", 3, 3, 1, 1, infer_pool_grad, make_pool},
    {kFalaj, "BlockMeanPoolGrad", 2, 2, 1, 1, infer_pool_grad, make_pool, nullptr, Placement::own, 0b10},
};

}  // namespace

std::span<const OpDef> blocks_ops() { return kOps; }

}  // namespace falaj::kernels
