#include "kernels/ops/common.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/ops/move.hpp"

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
  FALAJ_ASSIGN(auto values, known_numbers(call, input, what));
  if (values.size() != 1) return invalid(format("{} (input {}) must have one element", what, input));
  return values[0];
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

Status check_float(const OpCall& call, std::size_t input) {
  if (!call.has(input)) return invalid(format("input {} is absent", input));
  if (is_float(call.in(input).dtype)) return {};
  return invalid(format("input {} ('{}') is {}; it must be a float", input, call.node.inputs[input], to_string(call.in(input).dtype)));
}
Status check_number(const OpCall& call, std::size_t input) {
  if (!call.has(input)) return invalid(format("input {} is absent", input));
  if (is_float(call.in(input).dtype) || is_int(call.in(input).dtype)) return {};
  return invalid(format("input {} ('{}') is {}; it must be a number", input, call.node.inputs[input], to_string(call.in(input).dtype)));
}

Status infer_float(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  return infer_same(call);
}

Status infer_numeric(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  return infer_same(call);
}

Shape aligned_second(const OpCall& call) {
  Shape second = call.in(1).shape;
  auto axis = call.opset < 7 ? attr_int(call.node, "axis", -1) : Result<std::int64_t>(-1);
  if (!axis || *axis < 0) return second;
  auto rank = static_cast<std::int64_t>(call.in(0).shape.rank());
  while (*axis + static_cast<std::int64_t>(second.rank()) < rank) second.push_back(1);
  return second;
}

namespace {

// What of a map are neighbours from neighbours, or the fill.
struct MappedRun {
  std::int64_t from, n;  // from = -1: the fill
};
std::vector<MappedRun> runs_of(std::span<const std::int64_t> map) {
  std::vector<MappedRun> runs;
  for (const std::int64_t at : map) {
    const bool goes_on = !runs.empty() && (at < 0 ? runs.back().from < 0 : runs.back().from >= 0 && at == runs.back().from + runs.back().n);
    if (goes_on) {
      ++runs.back().n;
    } else {
      runs.push_back({std::max<std::int64_t>(at, -1), 1});
    }
  }
  return runs;
}

}  // namespace

Result<KernelPtr> mapped_kernel(DType dtype, std::vector<std::int64_t> map, std::size_t fill_input) {
  auto runs = runs_of(map);
  const bool by_runs = runs.size() * 4 <= map.size();  // else one by one is no slower
  return dispatch_moving(dtype, [&]<class T>() {
    const auto fill_of = [fill_input](const Io& io) { return fill_input == kNoFill ? T{} : *io.input<T>(fill_input); };
    if (by_runs) {
      return make_kernel([runs = std::move(runs), fill_of](const Io& io) {
        const T* x = io.input<T>(0);
        T* y = io.output<T>(0);
        const T fill = fill_of(io);
        for (const MappedRun& run : runs) {
          const bool filled = run.from < 0;
          move_run(filled ? &fill : x + run.from, filled ? 0 : 1, y, 1, run.n);
          y += run.n;
        }
      });
    }
    return make_kernel([map = std::move(map), fill_of](const Io& io) {
      const T* x = io.input<T>(0);
      T* y = io.output<T>(0);
      const T fill = fill_of(io);
      for (std::size_t i = 0; i < map.size(); ++i) y[i] = map[i] < 0 ? fill : x[map[i]];
    });
  });
}

Result<std::vector<double>> known_numbers(const OpCall& call, std::size_t input, std::string_view what) {
  const ValueType& value = call.in(input);
  if (value.constant == nullptr)
    return Error{ErrorCode::unimplemented, format("{} (input {}, '{}') depends on data: only values known from shapes and constants are "
                                                  "supported",
                                                  what, input, call.node.inputs[input])};
  if (!is_float(value.dtype) && !is_int(value.dtype) && value.dtype != DType::boolean)
    return invalid(format("{} (input {}) is {}; it must be numbers", what, input, to_string(value.dtype)));
  std::vector<double> out(value.constant->elements());
  to_doubles(value.dtype, value.constant->raw(), out.data(), static_cast<std::int64_t>(out.size()));
  return out;
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
