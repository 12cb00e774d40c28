// Ops that change how elements are seen, or make them from a shape: Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose
// Expand Shape Size Constant ConstantOfShape; ReshapeLike and ZerosLike for gradients.
#include <algorithm>

#include "kernels/ops/common.hpp"
#include "kernels/ops/move.hpp"

namespace falaj::kernels {
namespace {

template <class T>
void copy_elements(const T* from, T* to, std::int64_t n) {
  std::copy_n(from, n, to);
}

// For aliases the plan needs no launch; this runs where an output must have memory of its own.
Result<KernelPtr> make_copy(const KernelCall& c) {
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.in(0).shape.elements()](const Io& io) { copy_elements(io.input<T>(0), io.output<T>(0), n); });
  });
}

Status grad_identity(GradientCall& g) { return g.set(0, g.dy()), Status{}; }
Status grad_reshape(GradientCall& g) { return g.set(0, g.add_falaj("ReshapeLike", {g.dy(), g.input(0)})), Status{}; }

// --- Dropout (inference) ----------------------------------------------------------------------------------------------------

Status infer_dropout(InferCall& call) {
  if (call.has(2)) {
    const Tensor* training = call.in(2).constant;
    if (training == nullptr) return Error{ErrorCode::unimplemented, "training_mode depends on data: make it a constant"};
    if (training->dtype() != DType::boolean || training->elements() != 1) return invalid("training_mode must be one bool");
    double ratio = 0.5;
    if (call.has(1)) {
      FALAJ_ASSIGN(ratio, known_scalar(call, 1, "the ratio"));
    }
    if (training->data<bool>()[0] && ratio != 0)
      return Error{ErrorCode::unimplemented,
                   "training_mode is true: export the model for inference (training re-inserts dropout on request)"};
  }
  FALAJ_TRY(infer_same(call));
  return set_output(call, 1, DType::boolean, call.in(0).shape);
}
Result<KernelPtr> make_dropout(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.in(0).shape.elements(), mask = c.outputs.size() > 1](const Io& io) {
      copy_elements(io.input<T>(0), io.output<T>(0), n);
      if (mask && io.out[1] != nullptr) std::fill_n(io.output<bool>(1), n, true);
    });
  });
}

// --- new shapes for the same elements -----------------------------------------------------------------------------------------

Status infer_reshape(InferCall& call) {
  FALAJ_ASSIGN(auto wanted, known_ints(call, 1, "the new shape"));
  FALAJ_ASSIGN(auto allow_zero, attr_int(call.node, "allowzero", 0));
  const Shape& in = call.in(0).shape;
  if (wanted.size() > kRankMax)
    return invalid(format("the new shape has {} dimensions; at most {} are supported", wanted.size(), kRankMax));
  Shape out;
  std::int64_t known = 1;
  std::optional<std::size_t> open;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    std::int64_t d = wanted[i];
    if (d == 0 && allow_zero == 0) {
      if (i >= in.rank()) return invalid(format("the new shape copies dimension {} of {}, which has none", i, to_string(in)));
      d = in[i];
    }
    if (d < -1 || (d == -1 && open)) return invalid("the new shape has a negative dimension, or more than one -1");
    out.push_back(d);
    if (d == -1) {
      open = i;
    } else if (__builtin_mul_overflow(known, d, &known)) {
      return invalid("the new shape is too large");
    }
  }
  if (open) {
    if (known == 0 || in.elements() % known != 0)
      return invalid(format("{} cannot be reshaped to {}: the sizes do not divide", to_string(in), to_string(out)));
    out[*open] = in.elements() / known;
  } else if (known != in.elements()) {
    return invalid(format("{} ({} elements) cannot be reshaped to {} ({} elements)", to_string(in), in.elements(), to_string(out), known));
  }
  return set_output(call, 0, call.in(0).dtype, out);
}

Status infer_reshape_like(InferCall& call) {
  if (call.in(0).shape.elements() != call.in(1).shape.elements()) {
    return invalid(format("{} cannot be reshaped to {}", to_string(call.in(0).shape), to_string(call.in(1).shape)));
  }
  return infer_like_second(call);
}

Status infer_flatten(InferCall& call) {
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", 1));
  auto rank = static_cast<std::int64_t>(in.rank());
  if (axis < -rank || axis > rank) return invalid(format("axis {} does not exist in a tensor of rank {}", axis, rank));
  auto at = static_cast<std::size_t>(axis < 0 ? axis + rank : axis);
  return set_output(call, 0, call.in(0).dtype, {in.elements(0, at), in.elements(at, in.rank())});
}

Status infer_squeeze(InferCall& call) {
  const Shape& in = call.in(0).shape;
  bool given = false;
  FALAJ_ASSIGN(auto axes, known_axes(call, in.rank(), given));
  Shape out;
  for (std::size_t i = 0; i < in.rank(); ++i) {
    bool listed = std::ranges::find(axes, static_cast<std::int64_t>(i)) != axes.end();
    if (listed && in[i] != 1) return invalid(format("dimension {} of {} is not 1", i, to_string(in)));
    if (given ? !listed : in[i] != 1) out.push_back(in[i]);
  }
  return set_output(call, 0, call.in(0).dtype, out);
}

Status infer_unsqueeze(InferCall& call) {
  std::vector<std::int64_t> axes;
  if (call.has(1)) {
    FALAJ_ASSIGN(axes, known_ints(call, 1, "axes"));
  } else {
    FALAJ_ASSIGN(axes, attr_ints(call.node, "axes"));
  }
  std::size_t rank = call.in(0).shape.rank() + axes.size();
  if (rank > kRankMax) return invalid(format("the result has {} dimensions; at most {} are supported", rank, kRankMax));
  for (auto& axis : axes) {
    FALAJ_ASSIGN(axis, normal_axis(axis, rank));
  }
  std::ranges::sort(axes);
  if (std::ranges::adjacent_find(axes) != axes.end()) return invalid("an axis is listed twice");
  Shape out = call.in(0).shape;
  for (std::int64_t axis : axes) out.insert(static_cast<std::size_t>(axis), 1);
  return set_output(call, 0, call.in(0).dtype, out);
}

// --- Transpose ------------------------------------------------------------------------------------------------------------

Result<std::vector<std::int64_t>> permutation(const Node& node, std::size_t rank) {
  std::vector<std::int64_t> reverse(rank);
  for (std::size_t i = 0; i < rank; ++i) reverse[i] = static_cast<std::int64_t>(rank - 1 - i);
  FALAJ_ASSIGN(auto perm, attr_ints(node, "perm", reverse));
  std::vector<std::int64_t> sorted = perm;
  std::ranges::sort(sorted);
  std::ranges::reverse(reverse);
  if (sorted != reverse) return invalid(format("attribute 'perm' is no permutation of {} dimensions", rank));
  return perm;
}

Status infer_transpose(InferCall& call) {
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto perm, permutation(call.node, in.rank()));
  Shape out;
  for (std::int64_t p : perm) out.push_back(in[static_cast<std::size_t>(p)]);
  return set_output(call, 0, call.in(0).dtype, out);
}

Result<KernelPtr> make_transpose(const KernelCall& c) {
  FALAJ_ASSIGN(auto perm, permutation(c.node, c.in(0).shape.rank()));
  Strides own = row_major(c.in(0).shape);
  Strides read{};
  for (std::size_t i = 0; i < perm.size(); ++i) read[i] = own[static_cast<std::size_t>(perm[i])];
  const Shape& out = c.outputs[0].shape;
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([walk = Walk<2>(out, {row_major(out), read})](const Io& io) {
      const T* x = io.input<T>(0);
      T* y = io.output<T>(0);
      walk([&](const auto& at, std::int64_t n, const auto& step) { move_run(x + at[1], step[1], y + at[0], step[0], n); });
    });
  });
}

Status grad_transpose(GradientCall& g) {
  FALAJ_ASSIGN(auto perm, permutation(g.node(), g.input_type(0).shape.rank()));
  std::vector<std::int64_t> inverse(perm.size());
  for (std::size_t i = 0; i < perm.size(); ++i) inverse[static_cast<std::size_t>(perm[i])] = static_cast<std::int64_t>(i);
  g.set(0, g.add("Transpose", {g.dy()}, attr("perm", inverse)));
  return {};
}

// --- Expand ---------------------------------------------------------------------------------------------------------------

Status infer_expand(InferCall& call) {
  FALAJ_ASSIGN(auto wanted, known_ints(call, 1, "the shape"));
  if (wanted.size() > kRankMax || std::ranges::any_of(wanted, [](auto d) { return d < 0; }))
    return invalid("the shape has a negative dimension, or too many");
  FALAJ_ASSIGN(Shape out, broadcast(call.in(0).shape, Shape(wanted)));
  return set_output(call, 0, call.in(0).dtype, out);
}
Result<KernelPtr> make_expand(const KernelCall& c) {
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    const Shape& out = c.outputs[0].shape;
    return make_kernel([walk = broadcast_walk<2>(out, {&out, &c.in(0).shape})](const Io& io) {
      const T* x = io.input<T>(0);
      T* y = io.output<T>(0);
      walk([&](const auto& at, std::int64_t n, const auto& step) { move_run(x + at[1], step[1], y + at[0], step[0], n); });
    });
  });
}
Status grad_expand(GradientCall& g) { return g.set(0, reduce_to_input(g, g.dy(), 0)), Status{}; }

// --- Shape, Size ----------------------------------------------------------------------------------------------------------

Result<std::pair<std::int64_t, std::int64_t>> shape_range(const OpCall& call) {
  auto rank = static_cast<std::int64_t>(call.in(0).shape.rank());
  FALAJ_ASSIGN(auto start, attr_int(call.node, "start", 0));
  FALAJ_ASSIGN(auto end, attr_int(call.node, "end", rank));
  auto clamp = [&](std::int64_t i) { return std::clamp<std::int64_t>(i < 0 ? i + rank : i, 0, rank); };
  return std::pair{clamp(start), std::max(clamp(start), clamp(end))};
}
Status infer_shape(InferCall& call) {
  FALAJ_ASSIGN(auto range, shape_range(call));
  return set_output(call, 0, DType::i64, {range.second - range.first});
}
Result<KernelPtr> make_shape(const KernelCall& c) {
  FALAJ_ASSIGN(auto range, shape_range(c));
  return make_kernel([shape = c.in(0).shape, range](const Io& io) {
    std::copy(shape.begin() + range.first, shape.begin() + range.second, io.output<std::int64_t>(0));
  });
}
Status infer_size(InferCall& call) { return set_output(call, 0, DType::i64, {}); }
Result<KernelPtr> make_size(const KernelCall& c) {
  return make_kernel([n = c.in(0).shape.elements()](const Io& io) { *io.output<std::int64_t>(0) = n; });
}

// --- Constant, ConstantOfShape, ZerosLike -------------------------------------------------------------------------------------

Result<Tensor> constant_value(const Node& node) {
  if (const Tensor* value = attr_tensor(node, "value")) return *value;
  for (const auto& [name, value] : node.attributes) {
    if (name == "value_float") {
      if (const auto* v = std::get_if<float>(&value)) return Tensor::scalar<float>(*v);
    } else if (name == "value_int") {
      if (const auto* v = std::get_if<std::int64_t>(&value)) return Tensor::scalar<std::int64_t>(*v);
    } else if (name == "value_string") {
      if (const auto* v = std::get_if<std::string>(&value)) return Tensor::scalar<std::string>(*v);
    } else if (name == "value_floats") {
      if (const auto* v = std::get_if<std::vector<float>>(&value))
        return Tensor::of<float>({static_cast<std::int64_t>(v->size())}, std::span(*v));
    } else if (name == "value_ints") {
      if (const auto* v = std::get_if<std::vector<std::int64_t>>(&value))
        return Tensor::of<std::int64_t>({static_cast<std::int64_t>(v->size())}, std::span(*v));
    } else if (name == "value_strings") {
      if (const auto* v = std::get_if<std::vector<std::string>>(&value))
        return Tensor::of<std::string>({static_cast<std::int64_t>(v->size())}, std::span(*v));
    }
  }
  return invalid("a Constant needs one of: value, value_float(s), value_int(s), value_string(s)");
}
Status infer_constant(InferCall& call) {
  FALAJ_ASSIGN(Tensor value, constant_value(call.node));
  return set_output(call, 0, value.dtype(), value.shape());
}
Result<KernelPtr> make_constant(const KernelCall& c) {
  FALAJ_ASSIGN(Tensor value, constant_value(c.node));
  return dispatch_moving(value.dtype(), [&]<class T>() {
    return make_kernel(
        [value](const Io& io) { copy_elements(static_cast<const T*>(value.raw()), io.output<T>(0), value.shape().elements()); });
  });
}

Status infer_constant_of_shape(InferCall& call) {
  FALAJ_ASSIGN(auto wanted, known_ints(call, 0, "the shape"));
  if (wanted.size() > kRankMax || std::ranges::any_of(wanted, [](auto d) { return d < 0; }))
    return invalid("the shape has a negative dimension, or too many");
  const Tensor* value = attr_tensor(call.node, "value");
  if (value != nullptr && value->elements() != 1) return invalid("attribute 'value' must have one element");
  return set_output(call, 0, value == nullptr ? DType::f32 : value->dtype(), Shape(wanted));
}
Result<KernelPtr> make_constant_of_shape(const KernelCall& c) {
  const Tensor* given = attr_tensor(c.node, "value");
  Tensor value = given == nullptr ? Tensor::scalar<float>(0.0F) : *given;
  return dispatch_moving(value.dtype(), [&]<class T>() {
    return make_kernel(
        [value, n = c.outputs[0].shape.elements()](const Io& io) { std::fill_n(io.output<T>(0), n, *static_cast<const T*>(value.raw())); });
  });
}

Result<KernelPtr> make_zeros(const KernelCall& c) {
  auto bytes = byte_size(c.outputs[0].dtype, c.outputs[0].shape);
  if (!bytes) return std::move(bytes).error();
  if (c.outputs[0].dtype == DType::string) return no_kernel(DType::string);
  return make_kernel([n = *bytes](const Io& io) { std::memset(io.out[0], 0, n); });
}

constexpr OpDef kOps[] = {
    {kOnnx, "Identity", 1, 1, 1, 1, infer_same, make_copy, grad_identity, Placement::alias},
    {kOnnx, "Dropout", 1, 3, 1, 2, infer_dropout, make_dropout, grad_identity, Placement::alias},
    {kOnnx, "Reshape", 2, 2, 1, 1, infer_reshape, make_copy, grad_reshape, Placement::alias},
    {kOnnx, "Flatten", 1, 1, 1, 1, infer_flatten, make_copy, grad_reshape, Placement::alias},
    {kOnnx, "Squeeze", 1, 2, 1, 1, infer_squeeze, make_copy, grad_reshape, Placement::alias},
    {kOnnx, "Unsqueeze", 1, 2, 1, 1, infer_unsqueeze, make_copy, grad_reshape, Placement::alias},
    {kOnnx, "Transpose", 1, 1, 1, 1, infer_transpose, make_transpose, grad_transpose},
    {kOnnx, "Expand", 2, 2, 1, 1, infer_expand, make_expand, grad_expand},
    {kOnnx, "Shape", 1, 1, 1, 1, infer_shape, make_shape, nullptr, Placement::own, 0b1},
    {kOnnx, "Size", 1, 1, 1, 1, infer_size, make_size, nullptr, Placement::own, 0b1},
    {kOnnx, "Constant", 0, 0, 1, 1, infer_constant, make_constant},
    {kOnnx, "ConstantOfShape", 1, 1, 1, 1, infer_constant_of_shape, make_constant_of_shape},
    {kFalaj, "ReshapeLike", 2, 2, 1, 1, infer_reshape_like, make_copy, nullptr, Placement::alias, 0b10},
    {kFalaj, "ZerosLike", 1, 1, 1, 1, infer_same, make_zeros, nullptr, Placement::own, 0b1},
};

}  // namespace

std::span<const OpDef> shape_ops() { return kOps; }

}  // namespace falaj::kernels
