#include "kernels/ops/common.hpp"

#include <algorithm>
#include <cmath>

namespace falaj::kernels {

Result<std::int64_t> normal_axis(std::int64_t axis, std::size_t rank) {
  auto r = static_cast<std::int64_t>(rank);
  if (axis < -r || axis >= r) return invalid(format("axis {} does not exist in a tensor of rank {}", axis, rank));
  return axis < 0 ? axis + r : axis;
}

Result<Shape> broadcast(const Shape& a, const Shape& b) {
  const Shape& longer = a.rank() >= b.rank() ? a : b;
  const Shape& shorter = a.rank() >= b.rank() ? b : a;
  Shape out = longer;
  std::size_t shift = longer.rank() - shorter.rank();
  for (std::size_t i = 0; i < shorter.rank(); ++i) {
    std::int64_t x = longer[i + shift];
    std::int64_t y = shorter[i];
    if (x != y && x != 1 && y != 1)
      return invalid(format("shapes {} and {} do not broadcast: sizes {} and {} differ", to_string(a), to_string(b), x, y));
    out[i + shift] = x == 1 ? y : x;
  }
  return out;
}

Status check_dtype(const OpCall& call, std::size_t input, std::initializer_list<DType> allowed) {
  if (!call.has(input)) return invalid(format("input {} is absent", input));
  if (std::ranges::find(allowed, call.in(input).dtype) != allowed.end()) return {};
  std::string names;
  for (DType d : allowed) names += (names.empty() ? "" : ", ") + std::string(to_string(d));
  return invalid(
      format("input {} ('{}') is {}; it must be one of: {}", input, call.node.inputs[input], to_string(call.in(input).dtype), names));
}

Status check_same_dtype(const OpCall& call, std::size_t a, std::size_t b) {
  if (call.in(a).dtype == call.in(b).dtype) return {};
  return invalid(format("inputs '{}' ({}) and '{}' ({}) must have one element type: insert a Cast", call.node.inputs[a],
                        to_string(call.in(a).dtype), call.node.inputs[b], to_string(call.in(b).dtype)));
}

Status set_output(InferCall& call, std::size_t i, DType dtype, const Shape& shape) {
  if (i >= call.outputs.size()) return {};
  auto bytes = byte_size(dtype, shape);
  if (!bytes) return within(format("output {}", i), bytes.error());
  call.outputs[i] = ValueType{dtype, shape, nullptr};
  return {};
}

Result<std::vector<std::int64_t>> known_ints(const OpCall& call, std::size_t input, std::string_view what) {
  const ValueType& value = call.in(input);
  if (value.constant == nullptr) {
    return Error{ErrorCode::unimplemented,
                 format("{} (input {}, '{}') depends on data: only values known from shapes and constants are supported", what, input,
                        call.node.inputs[input])};
  }
  std::vector<std::int64_t> out;
  if (value.dtype == DType::i64) {
    auto data = value.constant->data<std::int64_t>();
    out.assign(data.begin(), data.end());
  } else if (value.dtype == DType::i32) {
    auto data = value.constant->data<std::int32_t>();
    out.assign(data.begin(), data.end());
  } else {
    return invalid(format("{} (input {}) is {}; it must be int64 or int32", what, input, to_string(value.dtype)));
  }
  return out;
}

Result<double> known_scalar(const OpCall& call, std::size_t input, std::string_view what) {
  const ValueType& value = call.in(input);
  if (value.constant == nullptr)
    return Error{ErrorCode::unimplemented,
                 format("{} (input {}, '{}') depends on data: make it a constant", what, input, call.node.inputs[input])};
  if (value.constant->elements() != 1) return invalid(format("{} (input {}) must have one element", what, input));
  switch (value.dtype) {
    case DType::f32:
      return static_cast<double>(value.constant->data<float>()[0]);
    case DType::f64:
      return value.constant->data<double>()[0];
    case DType::i64:
      return static_cast<double>(value.constant->data<std::int64_t>()[0]);
    case DType::i32:
      return static_cast<double>(value.constant->data<std::int32_t>()[0]);
    default:
      return invalid(format("{} (input {}) is {}; it must be a number", what, input, to_string(value.dtype)));
  }
}

Result<std::vector<std::int64_t>> known_axes(const OpCall& call, std::size_t rank, bool& given) {
  std::vector<std::int64_t> axes;
  given = false;
  if (call.has(1)) {
    FALAJ_ASSIGN(axes, known_ints(call, 1, "axes"));
    given = !axes.empty();
  } else if (call.node.attributes.contains("axes")) {
    FALAJ_ASSIGN(axes, attr_ints(call.node, "axes"));
    given = true;
  }
  for (auto& axis : axes) {
    FALAJ_ASSIGN(axis, normal_axis(axis, rank));
  }
  std::ranges::sort(axes);
  if (std::ranges::adjacent_find(axes) != axes.end()) return invalid("an axis is listed twice");
  return axes;
}

Status infer_same(InferCall& call) { return set_output(call, 0, call.in(0).dtype, call.in(0).shape); }

Status infer_float(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::f32, DType::f64}));
  return infer_same(call);
}

Status infer_numeric(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::f32, DType::f64, DType::i64, DType::i32}));
  return infer_same(call);
}

Status infer_like_second(InferCall& call) { return set_output(call, 0, call.in(0).dtype, call.in(1).shape); }

Status infer_grad(InferCall& call) {
  for (std::size_t i = 0; i < call.outputs.size(); ++i) {
    if (i + 1 < call.inputs.size()) FALAJ_TRY(set_output(call, i, call.in(i + 1).dtype, call.in(i + 1).shape));
  }
  return {};
}

Strides row_major(const Shape& shape) {
  Strides strides{};
  std::int64_t step = 1;
  for (std::size_t i = shape.rank(); i-- > 0;) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

Strides broadcast_strides(const Shape& operand, const Shape& out) {
  Strides own = row_major(operand);
  Strides strides{};
  std::size_t shift = out.rank() - operand.rank();
  for (std::size_t i = 0; i < operand.rank(); ++i) strides[i + shift] = operand[i] == 1 ? 0 : own[i];
  return strides;
}

Error no_kernel(DType dtype) { return Error{ErrorCode::unimplemented, format("no kernel for elements of type {}", to_string(dtype))}; }

AxisSplit split_at(const Shape& shape, std::int64_t axis) {
  auto a = static_cast<std::size_t>(axis);
  return {shape.elements(0, a), shape[a], shape.elements(a + 1, shape.rank())};
}

Attributes attr(std::string_view name, Attribute value) {
  Attributes attributes;
  attributes.emplace(name, std::move(value));
  return attributes;
}

std::string reduce_to_input(GradientCall& g, std::string dy, std::size_t i) {
  if (g.input_type(i).shape == g.output_type(0).shape) return dy;
  return g.add_falaj("ReduceLike", {std::move(dy), g.input(i)});
}

}  // namespace falaj::kernels
