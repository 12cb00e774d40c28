// Elements in other places, or repeated: Tile Pad DepthToSpace SpaceToDepth CenterCropPad ReverseSequence Trilu; and tensors made from
// sizes: EyeLike Range; CumSum; and MapGrad, the gradient of those that have a map.
#include <algorithm>
#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// The map of mapped_kernel: for each place of `out`, f(index) is an offset or -1.
using Map = std::vector<std::int64_t>;
template <class F>
Map make_map(const Shape& out, F f) {
  Map map;
  std::array<std::int64_t, kRankMax> index{};
  std::int64_t n = out.elements();
  map.reserve(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    map.push_back(f(index));
    for (std::size_t d = out.rank(); d-- > 0;) {
      if (++index[d] < out[d]) break;
      index[d] = 0;
    }
  }
  return map;
}

// --- Tile -------------------------------------------------------------------------------------------------------------------

Status infer_tile(InferCall& call) {
  const Shape& in = call.in(0).shape;
  std::vector<std::int64_t> repeats;
  if (call.opset < 6) return Error{ErrorCode::unimplemented, "this version of Tile is not supported"};
  FALAJ_ASSIGN(repeats, known_ints(call, 1, "the repeats"));
  if (repeats.size() != in.rank()) return invalid(format("{} repeats for {} dimensions", repeats.size(), in.rank()));
  Shape out = in;
  for (std::size_t d = 0; d < in.rank(); ++d) {
    if (repeats[d] < 0 || __builtin_mul_overflow(in[d], repeats[d], &out[d]))
      return invalid(format("{} repeats are not possible", repeats[d]));
  }
  return set_output(call, 0, call.in(0).dtype, out);
}
Result<Map> tile_map(const OpCall& c, const Shape& out) {
  const Shape& in = c.in(0).shape;
  Strides own = row_major(in);
  return make_map(out, [&](const auto& index) {
    std::int64_t at = 0;
    for (std::size_t d = 0; d < in.rank(); ++d) at += index[d] % in[d] * own[d];
    return at;
  });
}

// --- Pad --------------------------------------------------------------------------------------------------------------------

struct Padding {
  std::vector<std::int64_t> before, after;
  std::string mode;
};
Result<Padding> padding(const OpCall& call) {
  const Shape& in = call.in(0).shape;
  Padding p;
  FALAJ_ASSIGN(p.mode, attr_string(call.node, "mode", "constant"));
  if (p.mode != "constant" && p.mode != "edge" && p.mode != "reflect" && p.mode != "wrap")
    return invalid(format("attribute 'mode' is '{}'; it must be constant, edge, reflect or wrap", p.mode));
  std::vector<std::int64_t> pads;
  if (call.opset < 11) {
    FALAJ_ASSIGN(pads, attr_ints(call.node, call.opset < 2 ? "paddings" : "pads"));
  } else {
    if (!call.has(1)) return invalid("the pads are missing");
    FALAJ_ASSIGN(pads, known_ints(call, 1, "the pads"));
  }
  std::vector<std::int64_t> axes;
  if (call.has(3)) {
    FALAJ_ASSIGN(axes, known_ints(call, 3, "the axes"));
    for (auto& axis : axes) {
      FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
    }
  } else {
    for (std::size_t d = 0; d < in.rank(); ++d) axes.push_back(static_cast<std::int64_t>(d));
  }
  if (pads.size() != 2 * axes.size()) return invalid(format("{} pads for {} axes", pads.size(), axes.size()));
  p.before.assign(in.rank(), 0);
  p.after.assign(in.rank(), 0);
  constexpr std::int64_t kMax = std::int64_t{1} << 40;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    auto d = static_cast<std::size_t>(axes[i]);
    p.before[d] = pads[i];
    p.after[d] = pads[i + axes.size()];
    if (std::abs(pads[i]) > kMax || std::abs(p.after[d]) > kMax || in[d] + p.before[d] + p.after[d] < 0)
      return invalid(format("pads {} and {} do not fit a dimension of {}", p.before[d], p.after[d], in[d]));
  }
  return p;
}
Status infer_pad(InferCall& call) {
  FALAJ_ASSIGN(auto p, padding(call));
  if (call.opset >= 11 && call.has(2)) {
    FALAJ_TRY(check_same_dtype(call, 0, 2));
    if (call.in(2).shape.elements() != 1) return invalid("the constant value must be one element");
  }
  Shape out = call.in(0).shape;
  for (std::size_t d = 0; d < out.rank(); ++d) {
    if (p.mode != "constant" && out[d] == 0 && out[d] + p.before[d] + p.after[d] > 0)
      return invalid(format("mode '{}' has nothing to pad an empty dimension with", p.mode));
    out[d] += p.before[d] + p.after[d];
  }
  return set_output(call, 0, call.in(0).dtype, out);
}
// Where position i of a padded dimension comes from; -1: from nowhere.
std::int64_t source(std::int64_t i, std::int64_t size, const std::string& mode) {
  if (i >= 0 && i < size) return i;
  if (mode == "constant") return -1;
  if (mode == "edge") return std::clamp<std::int64_t>(i, 0, size - 1);
  if (mode == "wrap") return ((i % size) + size) % size;
  if (size == 1) return 0;
  std::int64_t period = 2 * (size - 1);
  i = ((i % period) + period) % period;
  return i < size ? i : period - i;
}
Result<Map> pad_map(const OpCall& c, const Shape& out) {
  FALAJ_ASSIGN(auto p, padding(c));
  const Shape& in = c.in(0).shape;
  Strides own = row_major(in);
  return make_map(out, [&](const auto& index) -> std::int64_t {
    std::int64_t at = 0;
    for (std::size_t d = 0; d < in.rank(); ++d) {
      std::int64_t from = source(index[d] - p.before[d], in[d], p.mode);
      if (from < 0) return -1;
      at += from * own[d];
    }
    return at;
  });
}
Result<KernelPtr> make_pad(const KernelCall& c) {
  FALAJ_ASSIGN(auto map, pad_map(c, c.outputs[0].shape));
  if (c.opset >= 11 || c.in(0).dtype == DType::string)
    return mapped_kernel(c.in(0).dtype, std::move(map), c.opset >= 11 && c.has(2) ? 2 : kNoFill);
  FALAJ_ASSIGN(double value, attr_float(c.node, "value", 0.0));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([map = std::move(map), value](const Io& io) {
      for (std::size_t i = 0; i < map.size(); ++i) io.output<T>(0)[i] = map[i] < 0 ? value : io.input<T>(0)[map[i]];
    });
  });
}

// --- DepthToSpace, SpaceToDepth --------------------------------------------------------------------------------------------------

Status infer_depth(InferCall& call) {
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto block, attr_int(call.node, "blocksize"));
  if (in.rank() != 4 || block < 1 || block > (1 << 20)) return invalid("the input must have 4 dimensions, and blocksize be positive");
  bool to_space = call.node.op == "DepthToSpace";
  if (to_space ? in[1] % (block * block) != 0 : (in[2] % block != 0 || in[3] % block != 0))
    return invalid(format("blocks of {} do not divide {}", block, to_string(in)));
  if (to_space) return set_output(call, 0, call.in(0).dtype, {in[0], in[1] / (block * block), in[2] * block, in[3] * block});
  return set_output(call, 0, call.in(0).dtype, {in[0], in[1] * block * block, in[2] / block, in[3] / block});
}
Result<Map> depth_map(const OpCall& c, const Shape& out) {
  FALAJ_ASSIGN(auto b, attr_int(c.node, "blocksize"));
  FALAJ_ASSIGN(auto mode, attr_string(c.node, "mode", "DCR"));
  if (mode != "DCR" && mode != "CRD") return invalid(format("attribute 'mode' is '{}'; it must be DCR or CRD", mode));
  const Shape& in = c.in(0).shape;
  Strides own = row_major(in);
  bool to_space = in[1] > out[1] || (in[1] == out[1] && b == 1);
  return make_map(out, [&](const auto& i) {
    if (to_space) {
      std::int64_t bh = i[2] % b;
      std::int64_t bw = i[3] % b;
      std::int64_t channel = mode == "DCR" ? (bh * b + bw) * out[1] + i[1] : (i[1] * b + bh) * b + bw;
      return i[0] * own[0] + channel * own[1] + i[2] / b * own[2] + i[3] / b;
    }
    std::int64_t channel = i[1] % in[1];
    std::int64_t block = i[1] / in[1];
    return i[0] * own[0] + channel * own[1] + (i[2] * b + block / b) * own[2] + i[3] * b + block % b;
  });
}

// --- CenterCropPad ------------------------------------------------------------------------------------------------------------

Result<Shape> crop_shape(const OpCall& call) {
  Shape out = call.in(0).shape;
  FALAJ_ASSIGN(auto sizes, known_ints(call, 1, "the sizes"));
  std::vector<std::int64_t> axes;
  for (std::size_t d = 0; d < out.rank(); ++d) axes.push_back(static_cast<std::int64_t>(d));
  FALAJ_ASSIGN(axes, attr_ints(call.node, "axes", axes));
  if (sizes.size() != axes.size()) return invalid(format("{} sizes for {} axes", sizes.size(), axes.size()));
  for (std::size_t i = 0; i < axes.size(); ++i) {
    FALAJ_ASSIGN(auto axis, normal_axis(axes[i], out.rank()));
    if (sizes[i] < 0) return invalid("a size is negative");
    out[static_cast<std::size_t>(axis)] = sizes[i];
  }
  return out;
}
Status infer_crop(InferCall& call) {
  FALAJ_ASSIGN(Shape out, crop_shape(call));
  return set_output(call, 0, call.in(0).dtype, out);
}
Result<Map> crop_map(const OpCall& c, const Shape& out) {
  const Shape& in = c.in(0).shape;
  Strides own = row_major(in);
  return make_map(out, [&](const auto& index) -> std::int64_t {
    std::int64_t at = 0;
    for (std::size_t d = 0; d < in.rank(); ++d) {
      std::int64_t from = in[d] >= out[d] ? index[d] + (in[d] - out[d]) / 2 : index[d] - (out[d] - in[d]) / 2;
      if (from < 0 || from >= in[d]) return -1;
      at += from * own[d];
    }
    return at;
  });
}

// --- what has a map: the kernel, and the gradient, which adds each element up where it came from ------------------------------------

using MapFn = Result<Map> (*)(const OpCall&, const Shape& out);
struct Mapped {
  std::string_view op;
  MapFn map;
};
constexpr Mapped kMapped[] = {
    {"Tile", tile_map}, {"Pad", pad_map}, {"DepthToSpace", depth_map}, {"SpaceToDepth", depth_map}, {"CenterCropPad", crop_map},
};
Result<MapFn> map_of(std::string_view op) {
  const auto found = std::ranges::find(kMapped, op, &Mapped::op);
  if (found == std::end(kMapped)) return invalid(format("'{}' does not move elements", op));
  return found->map;
}
Result<KernelPtr> make_mapped(const KernelCall& c) {
  FALAJ_ASSIGN(const MapFn map_fn, map_of(c.node.op));
  FALAJ_ASSIGN(auto map, map_fn(c, c.outputs[0].shape));
  return mapped_kernel(c.in(0).dtype, std::move(map));
}

// dy, then the forward inputs; attributes: those of the forward node, its op and its opset.
Status infer_mapped_grad(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  return set_output(call, 0, call.in(0).dtype, call.in(1).shape);
}
Result<KernelPtr> make_mapped_grad(const KernelCall& c) {
  FALAJ_ASSIGN(const auto op, attr_string(c.node, "function"));
  FALAJ_ASSIGN(const auto opset, attr_int(c.node, "forward_opset"));
  FALAJ_ASSIGN(const MapFn map_fn, map_of(op));
  const std::vector<ValueType> forward(c.inputs.begin() + 1, c.inputs.end());
  FALAJ_ASSIGN(auto map, map_fn(OpCall{c.node, forward, opset}, c.in(0).shape));
  const std::int64_t n = c.in(1).shape.elements();
  if (std::ranges::any_of(map, [n](std::int64_t at) { return at >= n; })) return invalid("the gradient does not fit the input");
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([map = std::move(map), n](const Io& io) {
      T* dx = io.output<T>(0);
      std::fill_n(dx, n, T{0});
      for (std::size_t i = 0; i < map.size(); ++i) {
        if (map[i] >= 0) dx[map[i]] += io.input<T>(0)[i];
      }
    });
  });
}
Status grad_mapped(GradientCall& g) {
  if (g.wants(2)) return Error{ErrorCode::unimplemented, "no gradient for the value that is padded with"};
  Attributes attributes = g.node().attributes;
  attributes.insert_or_assign("function", g.node().op);
  attributes.insert_or_assign("forward_opset", g.graph().opset(g.node().domain));
  std::vector<std::string> inputs = {g.dy()};
  inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
  g.set(0, g.add_falaj("MapGrad", std::move(inputs), std::move(attributes)));
  return {};
}

// --- ReverseSequence, Trilu --------------------------------------------------------------------------------------------------------

Status infer_reverse(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 1, {DType::i64}));
  FALAJ_ASSIGN(auto batch, attr_int(call.node, "batch_axis", 1));
  FALAJ_ASSIGN(auto time, attr_int(call.node, "time_axis", 0));
  const Shape& in = call.in(0).shape;
  if (in.rank() < 2 || !((batch == 0 && time == 1) || (batch == 1 && time == 0)))
    return invalid("batch_axis and time_axis must be 0 and 1, or 1 and 0");
  if (call.in(1).shape != Shape{in[static_cast<std::size_t>(batch)]}) return invalid("one length for each row is needed");
  return infer_same(call);
}
Result<KernelPtr> make_reverse(const KernelCall& c) {
  FALAJ_ASSIGN(auto time, attr_int(c.node, "time_axis", 0));
  const Shape& in = c.in(0).shape;
  auto t = static_cast<std::size_t>(time);
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([rows = in[1 - t], steps = in[t], row_stride = row_major(in)[1 - t], step_stride = row_major(in)[t],
                        inner = in.elements(2, in.rank())](const Io& io) {
      for (std::int64_t r = 0; r < rows; ++r) {
        std::int64_t length = io.input<std::int64_t>(1)[r];
        if (length < 0 || length > steps) return io.fail(format("length {} of row {} is outside [0, {}]", length, r, steps));
        for (std::int64_t k = 0; k < steps; ++k) {
          std::int64_t from = k < length ? length - 1 - k : k;
          std::copy_n(io.input<T>(0) + r * row_stride + from * step_stride, inner, io.output<T>(0) + r * row_stride + k * step_stride);
        }
      }
    });
  });
}

Status grad_reverse(GradientCall& g) { return g.set(0, g.add("ReverseSequence", {g.dy(), g.input(1)}, g.node().attributes)), Status{}; }

Status infer_trilu(InferCall& call) {
  if (call.in(0).shape.rank() < 2) return invalid("the input must have at least 2 dimensions");
  if (call.has(1)) {
    FALAJ_TRY(check_dtype(call, 1, {DType::i64}));
    if (call.in(1).shape.elements() != 1) return invalid("k must be one number");
  }
  return infer_same(call);
}
Result<KernelPtr> make_trilu(const KernelCall& c) {
  FALAJ_ASSIGN(auto upper, attr_int(c.node, "upper", 1));
  const Shape& in = c.in(0).shape;
  std::size_t r = in.rank();
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([upper, n = in.elements(), rows = in[r - 2], cols = in[r - 1], has_k = c.has(1)](const Io& io) {
      std::int64_t k = has_k ? *io.input<std::int64_t>(1) : 0;
      k = std::clamp<std::int64_t>(k, -(std::int64_t{1} << 40), std::int64_t{1} << 40);
      for (std::int64_t i = 0; i < n; ++i) {
        std::int64_t col = i % cols;
        std::int64_t row = i / cols % rows;
        bool keep = upper != 0 ? col - row >= k : col - row <= k;
        io.output<T>(0)[i] = keep ? io.input<T>(0)[i] : T{};
      }
    });
  });
}

Status grad_trilu(GradientCall& g) {
  std::vector<std::string> inputs = {g.dy()};
  inputs.insert(inputs.end(), g.node().inputs.begin() + 1, g.node().inputs.end());
  return g.set(0, g.add("Trilu", std::move(inputs), g.node().attributes)), Status{};
}

// --- EyeLike, Range -----------------------------------------------------------------------------------------------------------

Status infer_eye(InferCall& call) {
  FALAJ_ASSIGN(auto code, attr_int(call.node, "dtype", code_of(call.in(0).dtype)));
  DType dtype = dtype_of_code(code);
  if (dtype == DType::undefined || dtype == DType::string) return invalid(format("attribute 'dtype' is {}: no number type", code));
  if (call.in(0).shape.rank() != 2) return invalid("the input must have 2 dimensions");
  return set_output(call, 0, dtype, call.in(0).shape);
}
Result<KernelPtr> make_eye(const KernelCall& c) {
  FALAJ_ASSIGN(auto k, attr_int(c.node, "k", 0));
  DType dtype = c.outputs[0].dtype;
  Tensor one = converted(Tensor::scalar<std::int64_t>(1), dtype);
  return dispatch_moving(dtype, [&]<class T>() {
    return make_kernel([one, k, rows = c.in(0).shape[0], cols = c.in(0).shape[1]](const Io& io) {
      T* y = io.output<T>(0);
      std::fill_n(y, rows * cols, T{});
      for (std::int64_t r = 0; r < rows; ++r) {
        if (k > -rows && k < cols && r + k >= 0 && r + k < cols) y[r * cols + r + k] = *static_cast<const T*>(one.raw());
      }
    });
  });
}

Status infer_range(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  std::array<double, 3> v{};
  for (std::size_t i = 0; i < 3; ++i) {
    FALAJ_TRY(check_same_dtype(call, 0, i));
    FALAJ_ASSIGN(v[i], known_scalar(call, i, "a bound"));
  }
  double count = std::ceil((v[1] - v[0]) / v[2]);
  if (v[2] == 0 || std::isnan(count) || count > 1e10)
    return invalid(format("a range from {} to {} by {} is not possible", v[0], v[1], v[2]));
  return set_output(call, 0, call.in(0).dtype, {std::max<std::int64_t>(static_cast<std::int64_t>(count), 0)});
}
Result<KernelPtr> make_range(const KernelCall& c) {
  return dispatch<double, std::int64_t>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.outputs[0].shape.elements()](const Io& io) {
      for (std::int64_t i = 0; i < n; ++i) io.output<T>(0)[i] = *io.input<T>(0) + static_cast<T>(i) * *io.input<T>(2);
    });
  });
}

// --- CumSum -----------------------------------------------------------------------------------------------------------------

Status infer_cumsum(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 1, {DType::i64, DType::i32}));
  if (call.in(1).shape.elements() != 1) return invalid("the axis must be one number");
  return infer_numeric(call);
}
Result<KernelPtr> make_cumsum(const KernelCall& c) {
  FALAJ_ASSIGN(auto exclusive, attr_int(c.node, "exclusive", 0));
  FALAJ_ASSIGN(auto reverse, attr_int(c.node, "reverse", 0));
  return dispatch<double, std::int64_t, std::uint64_t>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([shape = c.in(0).shape, exclusive, reverse, i64 = c.in(1).dtype == DType::i64](const Io& io) {
      auto axis = normal_axis(index_at(io, 1, i64, 0), shape.rank());
      if (!axis) return io.fail(axis.error().message);
      AxisSplit s = split_at(shape, *axis);
      for (std::int64_t o = 0; o < s.outer; ++o) {
        for (std::int64_t i = 0; i < s.inner; ++i) {
          T sum{0};
          for (std::int64_t k = 0; k < s.size; ++k) {
            std::int64_t at = (o * s.size + (reverse != 0 ? s.size - 1 - k : k)) * s.inner + i;
            T x = io.input<T>(0)[at];
            io.output<T>(0)[at] = exclusive != 0 ? sum : static_cast<T>(sum + x);
            sum = static_cast<T>(sum + x);
          }
        }
      }
    });
  });
}

Status grad_cumsum(GradientCall& g) {
  FALAJ_ASSIGN(auto reverse, attr_int(g.node(), "reverse", 0));
  Attributes attributes = g.node().attributes;
  attributes.insert_or_assign("reverse", std::int64_t{reverse == 0 ? 1 : 0});
  return g.set(0, g.add("CumSum", {g.dy(), g.input(1)}, std::move(attributes))), Status{};
}

constexpr OpDef kOps[] = {
    {kOnnx, "Tile", 2, 3, 1, 1, infer_tile, make_mapped, grad_mapped},
    {kOnnx, "Pad", 1, 4, 1, 1, infer_pad, make_pad, grad_mapped},
    {kOnnx, "DepthToSpace", 1, 1, 1, 1, infer_depth, make_mapped, grad_mapped},
    {kOnnx, "SpaceToDepth", 1, 1, 1, 1, infer_depth, make_mapped, grad_mapped},
    {kOnnx, "CenterCropPad", 2, 2, 1, 1, infer_crop, make_mapped, grad_mapped},
    {kOnnx, "ReverseSequence", 2, 2, 1, 1, infer_reverse, make_reverse, grad_reverse},
    {kOnnx, "Trilu", 1, 2, 1, 1, infer_trilu, make_trilu, grad_trilu},
    {kOnnx, "EyeLike", 1, 1, 1, 1, infer_eye, make_eye, nullptr, Placement::own, 0b1},
    {kOnnx, "Range", 3, 3, 1, 1, infer_range, make_range},
    {kOnnx, "CumSum", 2, 2, 1, 1, infer_cumsum, make_cumsum, grad_cumsum},
    {kFalaj, "MapGrad", 2, 5, 1, 1, infer_mapped_grad, make_mapped_grad, nullptr, Placement::own, 0b10},
};

}  // namespace

std::span<const OpDef> layout_ops() { return kOps; }

}  // namespace falaj::kernels
