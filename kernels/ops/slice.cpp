// Parts of tensors and tensors from parts: Concat Split Slice, and the gradients' ConcatGrad and SliceGrad.
#include <algorithm>
#include <limits>

#include "kernels/ops/common.hpp"
#include "kernels/ops/move.hpp"

namespace falaj::kernels {
namespace {

// --- Concat ---------------------------------------------------------------------------------------------------------------

Result<std::int64_t> concat_axis(const OpCall& call, std::size_t first) {
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis"));
  return normal_axis(axis, call.in(first).shape.rank());
}

Result<Shape> concat_shape(const OpCall& call, std::size_t first) {
  FALAJ_ASSIGN(auto axis, concat_axis(call, first));
  auto at = static_cast<std::size_t>(axis);
  Shape out = call.in(first).shape;
  for (std::size_t i = first + 1; i < call.inputs.size(); ++i) {
    FALAJ_TRY(check_same_dtype(call, first, i));
    Shape part = call.in(i).shape;
    if (part.rank() != out.rank())
      return invalid(format("input '{}' has shape {}; its rank must be {}", call.node.inputs[i], to_string(part), out.rank()));
    std::int64_t size = part[at];
    part[at] = out[at];
    if (part != out)
      return invalid(format("input '{}' has shape {}, which differs from {} outside axis {}", call.node.inputs[i],
                            to_string(call.in(i).shape), to_string(out), axis));
    out[at] += size;
    if (auto bytes = byte_size(call.in(first).dtype, out); !bytes) return bytes.error();
  }
  return out;
}

Status infer_concat(InferCall& call) {
  FALAJ_ASSIGN(Shape shape, concat_shape(call, 0));
  return set_output(call, 0, call.in(0).dtype, shape);
}

Result<KernelPtr> make_concat(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, concat_axis(c, 0));
  auto whole = split_at(c.outputs[0].shape, axis);
  std::vector<std::int64_t> widths;  // elements of a part in one outer step
  for (const auto& input : c.inputs) widths.push_back(input.shape[static_cast<std::size_t>(axis)] * whole.inner);
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([widths, outer = whole.outer, stride = whole.size * whole.inner](const Io& io) {
      T* y = io.output<T>(0);
      for (std::size_t k = 0; k < widths.size(); ++k) {
        const T* x = io.input<T>(k);
        std::int64_t w = widths[k];
        // Columns of a batch are what models concatenate: one element at a time, without a call.
        if (w == 1) {
          for (std::int64_t o = 0; o < outer; ++o) y[o * stride] = x[o];
        } else {
          for (std::int64_t o = 0; o < outer; ++o) move_run(x + o * w, 1, y + o * stride, 1, w);
        }
        y += w;
      }
    });
  });
}

// dy, then the forward inputs (for their shapes) -> a part of dy for each.
Status infer_concat_grad(InferCall& call) {
  FALAJ_ASSIGN(Shape shape, concat_shape(call, 1));
  if (shape != call.in(0).shape) return invalid("the gradient does not fit the parts");
  if (call.outputs.size() != call.inputs.size() - 1) return invalid("one output for each part is needed");
  return infer_grad(call);
}
Result<KernelPtr> make_concat_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, concat_axis(c, 1));
  auto whole = split_at(c.in(0).shape, axis);
  std::vector<std::int64_t> widths;
  for (std::size_t i = 1; i < c.inputs.size(); ++i) widths.push_back(c.in(i).shape[static_cast<std::size_t>(axis)] * whole.inner);
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([widths, outer = whole.outer, stride = whole.size * whole.inner](const Io& io) {
      const T* dy = io.input<T>(0);
      for (std::size_t k = 0; k < widths.size(); ++k) {
        if (T* dx = io.output<T>(k); dx != nullptr) {
          for (std::int64_t o = 0; o < outer; ++o) move_run(dy + o * stride, 1, dx + o * widths[k], 1, widths[k]);
        }
        dy += widths[k];
      }
    });
  });
}
Status grad_concat(GradientCall& g) {
  std::vector<std::string> inputs = {g.dy()};
  inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
  std::size_t parts = g.node().inputs.size();
  auto outputs = g.add_many(kFalaj, "ConcatGrad", std::move(inputs), g.node().attributes, parts);
  for (std::size_t i = 0; i < parts; ++i) {
    if (g.wants(i)) g.set(i, outputs[i]);
  }
  return {};
}

// --- Split ----------------------------------------------------------------------------------------------------------------

Result<std::vector<std::int64_t>> split_sizes(const OpCall& call, std::size_t parts, std::int64_t axis) {
  std::int64_t total = call.in(0).shape[static_cast<std::size_t>(axis)];
  if (call.has(1) || call.node.attributes.contains("split")) {
    std::vector<std::int64_t> sizes;
    if (call.has(1)) {
      FALAJ_ASSIGN(sizes, known_ints(call, 1, "the sizes of the parts"));
    } else {
      FALAJ_ASSIGN(sizes, attr_ints(call.node, "split"));
    }
    std::int64_t sum = 0;
    for (std::int64_t s : sizes) {
      if (s < 0 || s > total) return invalid(format("a part of size {} cannot be cut from {}", s, total));
      sum += s;
    }
    if (sizes.size() != parts || sum != total)
      return invalid(format("{} sizes with sum {} are given for {} parts of {}", sizes.size(), sum, parts, total));
    return sizes;
  }
  FALAJ_ASSIGN(auto count, attr_int(call.node, "num_outputs", static_cast<std::int64_t>(parts)));
  if (count != static_cast<std::int64_t>(parts)) return invalid(format("num_outputs is {}, but the node has {} outputs", count, parts));
  std::int64_t each = (total + count - 1) / count;
  std::vector<std::int64_t> sizes;
  for (std::int64_t left = total; sizes.size() < parts; left -= sizes.back()) sizes.push_back(std::min(each, left));
  return sizes;
}
Result<std::int64_t> split_axis(const OpCall& call) {
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", 0));
  return normal_axis(axis, call.in(0).shape.rank());
}
Status infer_split(InferCall& call) {
  FALAJ_ASSIGN(auto axis, split_axis(call));
  FALAJ_ASSIGN(auto sizes, split_sizes(call, call.outputs.size(), axis));
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    Shape shape = call.in(0).shape;
    shape[static_cast<std::size_t>(axis)] = sizes[i];
    FALAJ_TRY(set_output(call, i, call.in(0).dtype, shape));
  }
  return {};
}
Result<KernelPtr> make_split(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, split_axis(c));
  FALAJ_ASSIGN(auto sizes, split_sizes(c, c.outputs.size(), axis));
  auto whole = split_at(c.in(0).shape, axis);
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([sizes, whole](const Io& io) {
      const T* x = io.input<T>(0);
      for (std::size_t k = 0; k < sizes.size(); ++k) {
        std::int64_t w = sizes[k] * whole.inner;
        if (T* y = io.output<T>(k); y != nullptr) {
          for (std::int64_t o = 0; o < whole.outer; ++o) move_run(x + o * whole.size * whole.inner, 1, y + o * w, 1, w);
        }
        x += w;
      }
    });
  });
}
Status grad_split(GradientCall& g) {
  FALAJ_ASSIGN(auto axis, attr_int(g.node(), "axis", 0));
  std::vector<std::string> parts;
  for (std::size_t i = 0; i < g.node().outputs.size(); ++i) {
    if (g.output(i).empty()) return Error{ErrorCode::unimplemented, "a Split with an output left out has no gradient: name all outputs"};
    parts.push_back(g.dy(i).empty() ? g.add_falaj("ZerosLike", {g.output(i)}) : g.dy(i));
  }
  g.set(0, g.add("Concat", std::move(parts), attr("axis", axis)));
  return {};
}

// --- Slice ----------------------------------------------------------------------------------------------------------------

struct SliceRange {
  std::array<std::int64_t, kRankMax> start{}, step{};
  Shape out;
};

// `at` is the index of the input `starts`; ends, axes and steps follow it.
Result<SliceRange> slice_range(const OpCall& call, const Shape& in, std::size_t at) {
  std::vector<std::int64_t> starts;
  std::vector<std::int64_t> ends;
  bool by_attributes = call.node.op == "Slice" && call.opset < 10;
  if (by_attributes) {
    FALAJ_ASSIGN(starts, attr_ints(call.node, "starts"));
    FALAJ_ASSIGN(ends, attr_ints(call.node, "ends"));
  } else {
    if (!call.has(at) || !call.has(at + 1)) return invalid("starts or ends are missing");
    FALAJ_ASSIGN(starts, known_ints(call, at, "starts"));
    FALAJ_ASSIGN(ends, known_ints(call, at + 1, "ends"));
  }
  std::vector<std::int64_t> axes;
  std::vector<std::int64_t> steps(starts.size(), 1);
  for (std::size_t i = 0; i < starts.size(); ++i) axes.push_back(static_cast<std::int64_t>(i));
  if (by_attributes) {
    FALAJ_ASSIGN(axes, attr_ints(call.node, "axes", axes));
  }
  if (call.has(at + 2)) {
    FALAJ_ASSIGN(axes, known_ints(call, at + 2, "axes"));
  }
  if (call.has(at + 3)) {
    FALAJ_ASSIGN(steps, known_ints(call, at + 3, "steps"));
  }
  if (ends.size() != starts.size() || axes.size() != starts.size() || steps.size() != starts.size())
    return invalid("starts, ends, axes and steps differ in length");
  SliceRange r;
  r.out = in;
  r.step.fill(1);
  std::uint32_t seen = 0;
  for (std::size_t i = 0; i < starts.size(); ++i) {
    FALAJ_ASSIGN(auto axis, normal_axis(axes[i], in.rank()));
    auto d = static_cast<std::size_t>(axis);
    if ((seen & (1U << d)) != 0) return invalid("an axis is listed twice");
    seen |= 1U << d;
    std::int64_t n = in[d];
    std::int64_t step = steps[i];
    if (step == 0 || step == std::numeric_limits<std::int64_t>::min()) return invalid(format("a step of {} is not possible", step));
    bool back = step < 0;
    auto clamp = [&](std::int64_t v) { return std::clamp<std::int64_t>(v < 0 && v >= -n ? v + n : v, back ? -1 : 0, back ? n - 1 : n); };
    std::int64_t start = clamp(starts[i]);
    std::int64_t end = clamp(ends[i]);
    std::int64_t span = back ? start - end : end - start;
    std::int64_t stride = back ? -step : step;
    r.start[d] = start;
    r.step[d] = step;
    r.out[d] = span <= 0 ? 0 : (span - 1) / stride + 1;
  }
  return r;
}

// A walk over the slice: operand 0 is the slice, operand 1 the whole; `base` is where in the whole it starts.
std::pair<Walk<2>, std::int64_t> slice_walk(const SliceRange& r, const Shape& whole) {
  Strides own = row_major(whole);
  Strides read{};
  std::int64_t base = 0;
  for (std::size_t d = 0; d < whole.rank(); ++d) {
    read[d] = r.out[d] > 1 ? own[d] * r.step[d] : 0;
    if (r.out.elements() > 0) base += r.start[d] * own[d];
  }
  return {Walk<2>(r.out, {row_major(r.out), read}), base};
}

Status infer_slice(InferCall& call) {
  FALAJ_ASSIGN(auto r, slice_range(call, call.in(0).shape, 1));
  return set_output(call, 0, call.in(0).dtype, r.out);
}
Result<KernelPtr> make_slice(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, slice_range(c, c.in(0).shape, 1));
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([w = slice_walk(r, c.in(0).shape)](const Io& io) {
      const T* x = io.input<T>(0) + w.second;
      T* y = io.output<T>(0);
      w.first([&](const auto& at, std::int64_t n, const auto& step) { move_run(x + at[1], step[1], y + at[0], step[0], n); });
    });
  });
}
Status infer_slice_grad(InferCall& call) {
  FALAJ_ASSIGN(auto r, slice_range(call, call.in(1).shape, 2));
  if (r.out != call.in(0).shape) return invalid("the gradient does not fit the slice");
  return infer_like_second(call);
}
Result<KernelPtr> make_slice_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, slice_range(c, c.in(1).shape, 2));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([w = slice_walk(r, c.in(1).shape), total = c.in(1).shape.elements()](const Io& io) {
      const T* dy = io.input<T>(0);
      T* dx = io.output<T>(0);
      std::fill_n(dx, total, T{0});
      w.first([&](const auto& at, std::int64_t n, const auto& step) {
        for (std::int64_t i = 0; i < n; ++i) dx[w.second + at[1] + i * step[1]] = dy[at[0] + i * step[0]];
      });
    });
  });
}
Status grad_slice(GradientCall& g) {
  std::vector<std::string> inputs = {g.dy()};
  inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
  g.set(0, g.add_falaj("SliceGrad", std::move(inputs)));
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "Concat", 1, kVariadic, 1, 1, infer_concat, make_concat, grad_concat},
    {kOnnx, "Split", 1, 2, 1, kVariadic, infer_split, make_split, grad_split},
    {kOnnx, "Slice", 1, 5, 1, 1, infer_slice, make_slice, grad_slice},
    {kFalaj, "ConcatGrad", 2, kVariadic, 1, kVariadic, infer_concat_grad, make_concat_grad, nullptr, Placement::own, ~1U},
    {kFalaj, "SliceGrad", 4, 6, 1, 1, infer_slice_grad, make_slice_grad, nullptr, Placement::own, 0b10},
};

}  // namespace

std::span<const OpDef> slice_ops() { return kOps; }

}  // namespace falaj::kernels
