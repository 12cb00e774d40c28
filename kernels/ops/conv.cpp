// Convolutions: Conv ConvTranspose DeformConv; on integers ConvInteger and QLinearConv.
#include "kernels/ops/conv.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/ops/quantize.hpp"

namespace falaj::kernels {
namespace {

std::int64_t product(const std::vector<std::int64_t>& v) {
  return std::accumulate(v.begin(), v.end(), std::int64_t{1}, std::multiplies<>{});
}
constexpr std::int64_t kSizeMax = std::int64_t{1} << 32;                   // of a pad, a stride, a dilation
constexpr double kPlacesMax = static_cast<double>(std::int64_t{1} << 40);  // of a kernel: products of sizes stay far from overflow

Result<std::vector<std::int64_t>> sizes_attr(const Node& node, std::string_view name, std::size_t count, std::int64_t fallback,
                                             std::int64_t least) {
  std::vector<std::int64_t> values(count, fallback);
  FALAJ_ASSIGN(values, attr_ints(node, name, values));
  if (values.size() != count) return invalid(format("attribute '{}' has {} values; it must have {}", name, values.size(), count));
  for (auto v : values) {
    if (v < least || v > kSizeMax) return invalid(format("attribute '{}' has the value {}", name, v));
  }
  return values;
}

}  // namespace

std::int64_t Window::in_elements() const { return product(in); }
std::int64_t Window::out_elements() const { return product(out); }
std::int64_t Window::kernel_elements() const { return product(kernel); }

Result<Window> sliding_window(const OpCall& call, std::span<const std::int64_t> in, std::span<const std::int64_t> kernel) {
  Window w;
  w.in.assign(in.begin(), in.end());
  w.kernel.assign(kernel.begin(), kernel.end());
  std::size_t n = in.size();
  if (kernel.size() != n) return invalid(format("the kernel has {} dimensions, the input {}", kernel.size(), n));
  for (auto k : kernel) {
    if (k < 1 || k > kSizeMax) return invalid(format("a kernel of size {}", k));
  }
  FALAJ_ASSIGN(w.strides, sizes_attr(call.node, "strides", n, 1, 1));
  FALAJ_ASSIGN(w.dilations, sizes_attr(call.node, "dilations", n, 1, 1));
  FALAJ_ASSIGN(auto pads, sizes_attr(call.node, "pads", 2 * n, 0, 0));
  FALAJ_ASSIGN(auto automatic, attr_string(call.node, "auto_pad", "NOTSET"));
  FALAJ_ASSIGN(auto ceil, attr_int(call.node, "ceil_mode", 0));
  if (automatic != "NOTSET" && automatic != "VALID" && automatic != "SAME_UPPER" && automatic != "SAME_LOWER")
    return invalid(format("attribute 'auto_pad' is '{}'", automatic));
  for (std::size_t d = 0; d < n; ++d) {
    std::int64_t begin = automatic == "NOTSET" ? pads[d] : 0;
    std::int64_t end = automatic == "NOTSET" ? pads[d + n] : 0;
    std::int64_t reach = w.extent(d);
    std::int64_t out = 0;
    if (automatic.starts_with("SAME")) {
      out = (in[d] + w.strides[d] - 1) / w.strides[d];
      std::int64_t total = std::max<std::int64_t>((out - 1) * w.strides[d] + reach - in[d], 0);
      begin = automatic == "SAME_UPPER" ? total / 2 : total - total / 2;
      end = total - begin;
    } else {
      std::int64_t room = in[d] + begin + end - reach;
      if (room < 0) return invalid(format("a window of {} does not fit into {} with pads {} and {}", reach, in[d], begin, end));
      out = (room + (ceil != 0 ? w.strides[d] - 1 : 0)) / w.strides[d] + 1;
      if (ceil != 0 && (out - 1) * w.strides[d] >= in[d] + begin) --out;  // a window that starts in the padding at the end
    }
    w.pad_begin.push_back(begin);
    w.pad_end.push_back(end);
    w.out.push_back(out);
  }
  double places = 1;
  for (auto k : w.kernel) places *= static_cast<double>(k);
  if (places > kPlacesMax) return invalid(format("a kernel of {} places", places));
  return w;
}

void meetings(const Window& w, std::int64_t o, std::vector<Meeting>& found) {
  found.clear();
  std::array<std::int64_t, kRankMax> start{};
  for (std::size_t d = w.rank(); d-- > 0;) {
    start[d] = o % w.out[d] * w.strides[d] - w.pad_begin[d];
    o /= w.out[d];
  }
  std::array<std::int64_t, kRankMax> k{};
  std::int64_t n = w.kernel_elements();
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t at = 0;
    bool inside = true;
    for (std::size_t d = 0; inside && d < w.rank(); ++d) {
      std::int64_t x = start[d] + k[d] * w.dilations[d];
      inside = x >= 0 && x < w.in[d];
      at = at * w.in[d] + x;
    }
    if (inside) found.push_back({i, at});
    for (std::size_t d = w.rank(); d-- > 0;) {
      if (++k[d] < w.kernel[d]) break;
      k[d] = 0;
    }
  }
}

Result<ConvSpec> conv_spec(const OpCall& call, std::size_t x, std::size_t w) {
  const Shape& in = call.in(x).shape;
  const Shape& weights = call.in(w).shape;
  if (in.rank() < 3 || weights.rank() != in.rank())
    return invalid(format("input {} and weights {} must have one rank, at least 3", to_string(in), to_string(weights)));
  ConvSpec spec;
  FALAJ_ASSIGN(spec.groups, attr_int(call.node, "group", 1));
  spec.batch = in[0];
  spec.channels = in[1];
  spec.maps = weights[0];
  if (spec.groups < 1 || spec.channels % spec.groups != 0 || spec.maps % spec.groups != 0 || weights[1] != spec.channels / spec.groups)
    return invalid(format("input {}, weights {} and {} groups do not fit", to_string(in), to_string(weights), spec.groups));
  auto kernel = weights.dims().subspan(2);
  FALAJ_ASSIGN(auto given, attr_ints(call.node, "kernel_shape", std::vector<std::int64_t>(kernel.begin(), kernel.end())));
  if (!std::ranges::equal(given, kernel))
    return invalid(format("attribute 'kernel_shape' does not fit the weights {}", to_string(weights)));
  FALAJ_ASSIGN(spec.window, sliding_window(call, in.dims().subspan(2), kernel));
  return spec;
}
Shape conv_shape(const ConvSpec& spec) {
  Shape out{spec.batch, spec.maps};
  for (auto d : spec.window.out) out.push_back(d);
  return out;
}

void convolve(const ConvSpec& spec, const double* x, const double* w, const double* bias, double* y) {
  const Window& window = spec.window;
  std::int64_t in = window.in_elements();
  std::int64_t out = window.out_elements();
  std::int64_t kernel = window.kernel_elements();
  std::int64_t depth = spec.channels / spec.groups;
  std::vector<Meeting> pairs;
  for (std::int64_t o = 0; o < out; ++o) {
    meetings(window, o, pairs);
    for (std::int64_t n = 0; n < spec.batch; ++n) {
      for (std::int64_t m = 0; m < spec.maps; ++m) {
        std::int64_t first = m / (spec.maps / spec.groups) * depth;
        double sum = bias == nullptr ? 0 : bias[m];
        for (std::int64_t c = 0; c < depth; ++c) {
          const double* from = x + (n * spec.channels + first + c) * in;
          const double* weights = w + (m * depth + c) * kernel;
          for (const Meeting& p : pairs) sum += from[p.in] * weights[p.kernel];
        }
        y[(n * spec.maps + m) * out + o] = sum;
      }
    }
  }
}

namespace {

// Walks over all products of a convolution backwards: visit(slope, where its input channel begins, where its weights begin, meetings).
template <class Visit>
void each_slope(const ConvSpec& spec, const double* dy, Visit visit) {
  const Window& window = spec.window;
  std::int64_t in = window.in_elements();
  std::int64_t out = window.out_elements();
  std::int64_t kernel = window.kernel_elements();
  std::int64_t depth = spec.channels / spec.groups;
  std::int64_t share = spec.maps / spec.groups;
  std::vector<Meeting> pairs;
  for (std::int64_t o = 0; o < out; ++o) {
    meetings(window, o, pairs);
    for (std::int64_t n = 0; n < spec.batch; ++n) {
      for (std::int64_t m = 0; m < spec.maps; ++m) {
        double slope = dy[(n * spec.maps + m) * out + o];
        for (std::int64_t c = 0; c < depth; ++c)
          visit(slope, (n * spec.channels + m / share * depth + c) * in, (m * depth + c) * kernel, pairs);
      }
    }
  }
}

}  // namespace

void convolve_back_to_input(const ConvSpec& spec, const double* dy, const double* w, double* dx) {
  each_slope(spec, dy, [&](double slope, std::int64_t channel, std::int64_t weights, const std::vector<Meeting>& pairs) {
    for (const Meeting& p : pairs) dx[channel + p.in] += slope * w[weights + p.kernel];
  });
}
void convolve_back_to_weights(const ConvSpec& spec, const double* dy, const double* x, double* dw) {
  each_slope(spec, dy, [&](double slope, std::int64_t channel, std::int64_t weights, const std::vector<Meeting>& pairs) {
    for (const Meeting& p : pairs) dw[weights + p.kernel] += slope * x[channel + p.in];
  });
}

namespace {

Status check_bias(const OpCall& call, std::size_t input, std::int64_t maps) {
  if (!call.has(input) || call.in(input).shape == Shape{maps}) return {};
  return invalid(format("the bias has shape {}; it must be [{}]", to_string(call.in(input).shape), maps));
}

Status infer_conv(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(auto spec, conv_spec(call, 0, 1));
  FALAJ_TRY(check_bias(call, 2, spec.maps));
  return set_output(call, 0, call.in(0).dtype, conv_shape(spec));
}
Result<KernelPtr> make_conv(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, conv_spec(c, 0, 1));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([spec, bias = c.has(2)](const Io& io) {
      convolve(spec, io.input<T>(0), io.input<T>(1), bias ? io.input<T>(2) : nullptr, io.output<T>(0));
    });
  });
}

// dy, w, x (for its shape) -> dx; dy, x, w (for its shape) -> dw.
Status infer_conv_grad(InferCall& call) {
  const bool data = call.node.op == "ConvDataGrad";
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(auto spec, conv_spec(call, data ? 2 : 1, data ? 1 : 2));
  if (call.in(0).shape != conv_shape(spec)) return invalid("the gradient does not fit the convolution");
  return set_output(call, 0, call.in(0).dtype, call.in(2).shape);
}
Result<KernelPtr> make_conv_grad(const KernelCall& c) {
  const bool data = c.node.op == "ConvDataGrad";
  FALAJ_ASSIGN(auto spec, conv_spec(c, data ? 2 : 1, data ? 1 : 2));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([spec, data, n = c.outputs[0].shape.elements()](const Io& io) {
      std::fill_n(io.output<T>(0), n, T{0});
      (data ? convolve_back_to_input : convolve_back_to_weights)(spec, io.input<T>(0), io.input<T>(1), io.output<T>(0));
    });
  });
}
// The bias is added to every place of its map.
std::string bias_gradient(GradientCall& g) {
  std::vector<std::int64_t> axes = {0};
  for (std::size_t d = 2; d < g.output_type(0).shape.rank(); ++d) axes.push_back(static_cast<std::int64_t>(d));
  Tensor list = Tensor::of<std::int64_t>({static_cast<std::int64_t>(axes.size())}, std::span<const std::int64_t>(axes));
  return g.add("ReduceSum", {g.dy(), g.graph().add_initializer(g.graph().fresh("axes"), std::move(list))},
               attr("keepdims", std::int64_t{0}));
}
Status grad_conv(GradientCall& g) {
  const std::string& op = g.node().op;  // Conv, ConvTranspose
  // That of the weights first: then its input is free.
  if (g.wants(1)) g.set(1, g.add_falaj(op + "WeightGrad", {g.dy(), g.input(0), g.input(1)}, g.node().attributes));
  if (g.wants(0)) g.set(0, g.add_falaj(op + "DataGrad", {g.dy(), g.input(1), g.input(0)}, g.node().attributes));
  if (g.wants(2)) g.set(2, bias_gradient(g));
  return {};
}

// --- ConvTranspose: the window runs over the output ------------------------------------------------------------------------------

}  // namespace

Result<ConvSpec> transpose_spec(const OpCall& call) {
  const Shape& x = call.in(0).shape;
  const Shape& w = call.in(1).shape;
  if (x.rank() < 3 || w.rank() != x.rank() || w[0] != x[1])
    return invalid(format("input {} and weights {} do not fit", to_string(x), to_string(w)));
  ConvSpec s;
  FALAJ_ASSIGN(s.groups, attr_int(call.node, "group", 1));
  if (s.groups < 1 || x[1] % s.groups != 0) return invalid(format("{} groups of {} channels", s.groups, x[1]));
  s.batch = x[0];
  s.channels = x[1];
  s.maps = w[1] * s.groups;
  std::size_t n = x.rank() - 2;
  Window& v = s.window;
  v.out.assign(x.begin() + 2, x.end());
  v.kernel.assign(w.begin() + 2, w.end());
  FALAJ_ASSIGN(v.strides, sizes_attr(call.node, "strides", n, 1, 1));
  FALAJ_ASSIGN(v.dilations, sizes_attr(call.node, "dilations", n, 1, 1));
  FALAJ_ASSIGN(auto pads, sizes_attr(call.node, "pads", 2 * n, 0, 0));
  FALAJ_ASSIGN(auto extra, sizes_attr(call.node, "output_padding", n, 0, 0));
  FALAJ_ASSIGN(auto automatic, attr_string(call.node, "auto_pad", "NOTSET"));
  FALAJ_ASSIGN(auto wanted, attr_ints(call.node, "output_shape", std::vector<std::int64_t>{}));
  if (wanted.size() == n + 2) wanted.erase(wanted.begin(), wanted.begin() + 2);
  if (!wanted.empty() && wanted.size() != n) return invalid("attribute 'output_shape' does not fit the input");
  for (std::size_t d = 0; d < n; ++d) {
    if (v.kernel[d] < 1) return invalid("an empty kernel");
    std::int64_t full = v.strides[d] * (v.out[d] - 1) + extra[d] + v.extent(d);
    std::int64_t size = full - pads[d] - pads[d + n];
    std::int64_t begin = pads[d];
    if (!wanted.empty() || automatic.starts_with("SAME")) {
      size = wanted.empty() ? v.out[d] * v.strides[d] : wanted[d];
      std::int64_t total = std::max<std::int64_t>(full - size, 0);
      begin = automatic == "SAME_UPPER" ? total / 2 : total - total / 2;
    } else if (automatic == "VALID") {
      size = full;
      begin = 0;
    }
    if (size < 0 || size > kSizeMax) return invalid(format("the output would have size {}", size));
    v.in.push_back(size);
    v.pad_begin.push_back(begin);
    v.pad_end.push_back(0);
  }
  return s;
}

namespace {

Status infer_conv_transpose(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(auto s, transpose_spec(call));
  FALAJ_TRY(check_bias(call, 2, s.maps));
  Shape out{s.batch, s.maps};
  for (auto d : s.window.in) out.push_back(d);
  return set_output(call, 0, call.in(0).dtype, out);
}
// The convolution whose way back this is: from the large tensor's maps to the small one's channels.
ConvSpec forward_of(const ConvSpec& transpose) {
  ConvSpec spec = transpose;
  std::swap(spec.channels, spec.maps);
  return spec;
}
Result<KernelPtr> make_conv_transpose(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, transpose_spec(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([spec, has_bias = c.has(2)](const Io& io) {
      std::int64_t large = spec.window.in_elements();
      for (std::int64_t i = 0; i < spec.batch * spec.maps; ++i)
        std::fill_n(io.output<T>(0) + i * large, large, has_bias ? io.input<T>(2)[i % spec.maps] : 0);
      convolve_back_to_input(forward_of(spec), io.input<T>(0), io.input<T>(1), io.output<T>(0));
    });
  });
}

}  // namespace

Result<ConvSpec> transpose_grad_spec(const OpCall& call) {
  const bool data = call.node.op == "ConvTransposeDataGrad";
  const std::array<ValueType, 2> forward = {call.in(data ? 2 : 1), call.in(data ? 1 : 2)};
  FALAJ_ASSIGN(auto spec, transpose_spec(OpCall{call.node, forward, call.opset}));
  return forward_of(spec);
}

namespace {

// As for Conv: dy, w, x -> dx; dy, x, w -> dw.
Status infer_conv_transpose_grad(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(auto spec, transpose_grad_spec(call));
  Shape out{spec.batch, spec.channels};
  for (auto d : spec.window.in) out.push_back(d);
  if (call.in(0).shape != out) return invalid("the gradient does not fit the convolution");
  return set_output(call, 0, call.in(0).dtype, call.in(2).shape);
}
Result<KernelPtr> make_conv_transpose_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, transpose_grad_spec(c));
  const bool data = c.node.op == "ConvTransposeDataGrad";
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([spec, data, n = c.outputs[0].shape.elements()](const Io& io) {
      if (data) return convolve(spec, io.input<T>(0), io.input<T>(1), nullptr, io.output<T>(0));
      std::fill_n(io.output<T>(0), n, T{0});
      convolve_back_to_weights(spec, io.input<T>(1), io.input<T>(0), io.output<T>(0));
    });
  });
}

// --- DeformConv: each kernel position is moved by an offset, and weighted by a mask ------------------------------------------------

struct Deform {
  ConvSpec conv;
  std::int64_t offset_groups = 1;
};
Result<Deform> deform(const OpCall& call) {
  Deform d;
  FALAJ_ASSIGN(d.conv, conv_spec(call, 0, 1));
  FALAJ_ASSIGN(d.offset_groups, attr_int(call.node, "offset_group", 1));
  const Window& w = d.conv.window;
  if (w.rank() != 2) return Error{ErrorCode::unimplemented, "only two spatial dimensions are supported"};
  if (d.offset_groups < 1 || d.conv.channels % d.offset_groups != 0) return invalid(format("{} offset groups", d.offset_groups));
  Shape offsets{d.conv.batch, d.offset_groups * w.kernel_elements() * 2, w.out[0], w.out[1]};
  if (call.in(2).shape != offsets)
    return invalid(format("the offsets are {}; they must be {}", to_string(call.in(2).shape), to_string(offsets)));
  offsets[1] /= 2;
  if (call.has(4) && call.in(4).shape != offsets) return invalid("the mask does not fit the offsets");
  return d;
}
Status infer_deform(InferCall& call) {
  for (std::size_t i = 0; i < call.inputs.size(); ++i) {
    if (call.has(i)) FALAJ_TRY(check_same_dtype(call, 0, i));
  }
  FALAJ_TRY(check_float(call, 0));
  FALAJ_ASSIGN(auto d, deform(call));
  FALAJ_TRY(check_bias(call, 3, d.conv.maps));
  return set_output(call, 0, call.in(0).dtype, conv_shape(d.conv));
}
double bilinear(const double* plane, std::int64_t height, std::int64_t width, double y, double x) {
  if (!(y > -1 && y < static_cast<double>(height) && x > -1 && x < static_cast<double>(width))) return 0;
  auto top = static_cast<std::int64_t>(std::floor(y));
  auto left = static_cast<std::int64_t>(std::floor(x));
  double sum = 0;
  for (std::int64_t r : {top, top + 1}) {
    for (std::int64_t c : {left, left + 1}) {
      if (r < 0 || r >= height || c < 0 || c >= width) continue;
      sum += plane[r * width + c] * (1 - std::abs(y - static_cast<double>(r))) * (1 - std::abs(x - static_cast<double>(c)));
    }
  }
  return sum;
}
void run_deform(const Deform& d, const Io& io, bool has_bias, bool has_mask) {
  const ConvSpec& s = d.conv;
  const Window& w = s.window;
  std::int64_t kernel = w.kernel_elements();
  std::int64_t out = w.out_elements();
  std::int64_t depth = s.channels / s.groups;
  const auto* offsets = io.input<double>(2);
  auto* y = io.output<double>(0);
  for (std::int64_t i = 0; i < s.batch * s.maps * out; ++i) y[i] = has_bias ? io.input<double>(3)[i / out % s.maps] : 0;
  for (std::int64_t n = 0; n < s.batch; ++n) {
    for (std::int64_t c = 0; c < s.channels; ++c) {
      std::int64_t part = n * d.offset_groups + c / (s.channels / d.offset_groups);
      const double* plane = io.input<double>(0) + (n * s.channels + c) * w.in[0] * w.in[1];
      for (std::int64_t k = 0; k < kernel; ++k) {
        for (std::int64_t o = 0; o < out; ++o) {
          double row = static_cast<double>(o / w.out[1] * w.strides[0] - w.pad_begin[0] + k / w.kernel[1] * w.dilations[0]);
          double col = static_cast<double>(o % w.out[1] * w.strides[1] - w.pad_begin[1] + k % w.kernel[1] * w.dilations[1]);
          row += offsets[((part * kernel + k) * 2) * out + o];
          col += offsets[((part * kernel + k) * 2 + 1) * out + o];
          double value = bilinear(plane, w.in[0], w.in[1], row, col);
          if (has_mask) value *= io.input<double>(4)[(part * kernel + k) * out + o];
          std::int64_t maps = s.maps / s.groups;
          std::int64_t first = c / depth * maps;
          for (std::int64_t m = first; m < first + maps; ++m)
            y[(n * s.maps + m) * out + o] += value * io.input<double>(1)[(m * depth + c % depth) * kernel + k];
        }
      }
    }
  }
}
Result<KernelPtr> make_deform(const KernelCall& c) {
  FALAJ_ASSIGN(auto d, deform(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([d, has_bias = c.has(3), has_mask = c.has(4)](const Io& io) { run_deform(d, io, has_bias, has_mask); });
  });
}

// --- integers ---------------------------------------------------------------------------------------------------------------

Status infer_conv_integer(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::u8, DType::i8}));
  FALAJ_TRY(check_dtype(call, 1, {DType::u8, DType::i8}));
  FALAJ_ASSIGN(auto spec, conv_spec(call, 0, 1));
  FALAJ_TRY(check_zero_point(call, 2, 0, 1));
  FALAJ_TRY(check_zero_point(call, 3, 1, spec.maps));
  return set_output(call, 0, DType::i32, conv_shape(spec));
}
// w's values less its zero points, one for all or one for each map.
std::vector<double> shifted_weights(const ValueType& type, const void* w, const std::vector<double>& zero) {
  auto n = type.shape.elements();
  std::vector<double> values(static_cast<std::size_t>(n));
  to_doubles(type.dtype, w, values.data(), n);
  std::size_t each = values.size() / static_cast<std::size_t>(std::max<std::int64_t>(type.shape[0], 1));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] -= zero.size() == 1 ? zero[0] : zero[i / each];
  return values;
}
Result<KernelPtr> make_conv_integer(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, conv_spec(c, 0, 1));
  std::vector<ValueType> types(c.inputs.begin(), c.inputs.end());
  for (auto& type : types) type.constant = nullptr;
  return make_kernel([spec, types](const Io& io) {
    auto x = dequantised(types[0], io.in[0], numbers_or_zero(types, 2, io));
    auto w = shifted_weights(types[1], io.in[1], numbers_or_zero(types, 3, io));
    std::vector<double> y(static_cast<std::size_t>(conv_shape(spec).elements()));
    convolve(spec, x.data(), w.data(), nullptr, y.data());
    convert_elements(DType::f64, y.data(), DType::i32, io.out[0], static_cast<std::int64_t>(y.size()));
  });
}

// x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias?
Status infer_qlinear_conv(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::u8, DType::i8}));
  FALAJ_TRY(check_dtype(call, 3, {DType::u8, DType::i8}));
  FALAJ_TRY(check_dtype(call, 7, {DType::u8, DType::i8}));
  FALAJ_ASSIGN(auto spec, conv_spec(call, 0, 3));
  FALAJ_TRY(check_zero_point(call, 2, 0, 1));
  FALAJ_TRY(check_zero_point(call, 5, 3, spec.maps));
  for (std::size_t i : {1U, 6U}) {
    if (call.in(i).dtype != DType::f32 || call.in(i).shape.elements() != 1)
      return invalid("the scales of input and output must be one float32");
  }
  std::int64_t scales = call.in(4).shape.elements();
  if (call.in(4).dtype != DType::f32 || (scales != 1 && scales != spec.maps))
    return invalid("the scales of the weights must be one, or one for each map");
  if (call.has(8) && call.in(8).dtype != DType::i32) return invalid("the bias must be int32");
  FALAJ_TRY(check_bias(call, 8, spec.maps));
  return set_output(call, 0, call.in(7).dtype, conv_shape(spec));
}
Result<KernelPtr> make_qlinear_conv(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, conv_spec(c, 0, 3));
  std::vector<ValueType> types(c.inputs.begin(), c.inputs.end());
  for (auto& type : types) type.constant = nullptr;
  return make_kernel([spec, types, out = c.outputs[0].dtype](const Io& io) {
    auto x = dequantised(types[0], io.in[0], numbers_or_zero(types, 2, io));
    auto w = shifted_weights(types[3], io.in[3], numbers_or_zero(types, 5, io));
    std::vector<double> bias =
        types.size() > 8 && types[8].dtype != DType::undefined ? numbers_or_zero(types, 8, io) : std::vector<double>();
    std::vector<double> y(static_cast<std::size_t>(conv_shape(spec).elements()));
    convolve(spec, x.data(), w.data(), bias.empty() ? nullptr : bias.data(), y.data());
    auto w_scale = numbers_or_zero(types, 4, io);
    double x_scale = numbers_or_zero(types, 1, io)[0];
    double y_scale = numbers_or_zero(types, 6, io)[0];
    double zero = numbers_or_zero(types, 7, io)[0];
    std::size_t each = y.size() / static_cast<std::size_t>(std::max<std::int64_t>(spec.batch * spec.maps, 1));
    for (std::size_t i = 0; i < y.size(); ++i) {
      double scale = w_scale.size() == 1 ? w_scale[0] : w_scale[i / each % static_cast<std::size_t>(spec.maps)];
      y[i] = std::nearbyint(y[i] * (x_scale * scale / y_scale)) + zero;
    }
    convert_elements(DType::f64, y.data(), out, io.out[0], static_cast<std::int64_t>(y.size()));
  });
}

constexpr OpDef kOps[] = {
    {kOnnx, "Conv", 2, 3, 1, 1, infer_conv, make_conv, grad_conv},
    {kOnnx, "ConvTranspose", 2, 3, 1, 1, infer_conv_transpose, make_conv_transpose, grad_conv},
    {kOnnx, "DeformConv", 3, 5, 1, 1, infer_deform, make_deform},
    {kOnnx, "ConvInteger", 2, 4, 1, 1, infer_conv_integer, make_conv_integer},
    {kOnnx, "QLinearConv", 8, 9, 1, 1, infer_qlinear_conv, make_qlinear_conv},
    {kFalaj, "ConvDataGrad", 3, 3, 1, 1, infer_conv_grad, make_conv_grad, nullptr, Placement::own, 0b100},
    {kFalaj, "ConvWeightGrad", 3, 3, 1, 1, infer_conv_grad, make_conv_grad, nullptr, Placement::own, 0b100},
    {kFalaj, "ConvTransposeDataGrad", 3, 3, 1, 1, infer_conv_transpose_grad, make_conv_transpose_grad, nullptr, Placement::own, 0b100},
    {kFalaj, "ConvTransposeWeightGrad", 3, 3, 1, 1, infer_conv_transpose_grad, make_conv_transpose_grad, nullptr, Placement::own, 0b100},
};

}  // namespace

std::span<const OpDef> conv_ops() { return kOps; }

}  // namespace falaj::kernels
