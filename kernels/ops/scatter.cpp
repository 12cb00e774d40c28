// Elements by index: GatherElements GatherND ScatterElements (Scatter) ScatterND.
#include <algorithm>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

Status check_indices(const OpCall& call, std::size_t input) { return check_dtype(call, input, {DType::i64, DType::i32}); }

// A normalised index, or -1 (reported) when there is no such place.
std::int64_t checked(const Io& io, std::int64_t raw, std::int64_t size, std::int64_t position) {
  std::int64_t at = raw < 0 ? raw + size : raw;
  if (at >= 0 && at < size) return at;
  io.fail(format("index {} at position {} is outside [0, {})", raw, position, size));
  return -1;
}

// --- GatherElements, ScatterElements: an index for each element, along one axis ---------------------------------------------------

struct AlongAxis {
  Shape indices;
  Strides data{};
  std::size_t axis = 0;
  std::int64_t size = 0;
  bool i64 = true;
};
Result<AlongAxis> along_axis(const OpCall& call) {
  FALAJ_TRY(check_indices(call, 1));
  const Shape& data = call.in(0).shape;
  AlongAxis a;
  a.indices = call.in(1).shape;
  if (a.indices.rank() != data.rank() || data.rank() == 0)
    return invalid(format("indices {} must have the rank of the data {}", to_string(a.indices), to_string(data)));
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", 0));
  FALAJ_ASSIGN(axis, normal_axis(axis, data.rank()));
  a.axis = static_cast<std::size_t>(axis);
  for (std::size_t d = 0; d < data.rank(); ++d) {
    if (d != a.axis && a.indices[d] > data[d])
      return invalid(format("indices {} are larger than the data {}", to_string(a.indices), to_string(data)));
  }
  a.data = row_major(data);
  a.size = data[a.axis];
  a.i64 = call.in(1).dtype == DType::i64;
  return a;
}

// f(offset in the data, number of the index) for each index; stops at the first that names no place.
template <class F>
void for_each_place(const AlongAxis& a, const Io& io, F f) {
  Strides steps = a.data;
  steps[a.axis] = 0;
  std::int64_t count = 0;
  bool good = true;
  Walk<1>(a.indices, {steps})([&](const auto& at, std::int64_t n, const auto& step) {
    for (std::int64_t i = 0; good && i < n; ++i, ++count) {
      std::int64_t index = checked(io, index_at(io, 1, a.i64, count), a.size, count);
      good = index >= 0;
      if (good) f(at[0] + i * step[0] + index * a.data[a.axis], count);
    }
  });
}

Status infer_gather_elements(InferCall& call) {
  FALAJ_ASSIGN(auto a, along_axis(call));
  return set_output(call, 0, call.in(0).dtype, a.indices);
}
Result<KernelPtr> make_gather_elements(const KernelCall& c) {
  FALAJ_ASSIGN(auto a, along_axis(c));
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([a](const Io& io) {
      for_each_place(a, io, [&](std::int64_t from, std::int64_t to) { io.output<T>(0)[to] = io.input<T>(0)[from]; });
    });
  });
}

enum class Combine : std::uint8_t { none, add, mul, max, min };
Result<Combine> combine(const Node& node) {
  FALAJ_ASSIGN(auto text, attr_string(node, "reduction", "none"));
  if (text == "none") return Combine::none;
  if (text == "add") return Combine::add;
  if (text == "mul") return Combine::mul;
  if (text == "max") return Combine::max;
  if (text == "min") return Combine::min;
  return invalid(format("attribute 'reduction' is '{}'; it must be none, add, mul, max or min", text));
}
template <class T>
void combine_into(T& to, const T& from, Combine how) {
  switch (how) {
    case Combine::none:
      to = from;
      return;
    case Combine::add:
      to = static_cast<T>(to + from);
      return;
    case Combine::mul:
      to = static_cast<T>(to * from);
      return;
    case Combine::max:
      to = std::max(to, from);
      return;
    case Combine::min:
      to = std::min(to, from);
      return;
  }
}

// make for elements that are only moved, or for numbers that are combined.
template <class F>
Result<KernelPtr> dispatch_scatter(DType dtype, Combine how, F make) {
  if (how == Combine::none) {
    return dispatch_moving(dtype, [&]<class T>() { return make.template operator()<T, false>(); });
  }
  return dispatch<double, std::int64_t, std::uint64_t>(dtype, [&]<class T>() { return make.template operator()<T, true>(); });
}
template <class T, bool kNumbers>
void put(T& to, const T& from, Combine how) {
  if constexpr (kNumbers) {
    combine_into(to, from, how);
  } else {
    to = from;
  }
}

Status infer_scatter_elements(InferCall& call) {
  FALAJ_ASSIGN(auto a, along_axis(call));
  FALAJ_ASSIGN([[maybe_unused]] auto how, combine(call.node));
  FALAJ_TRY(check_same_dtype(call, 0, 2));
  if (call.in(2).shape != a.indices)
    return invalid(format("updates {} must have the shape of the indices {}", to_string(call.in(2).shape), to_string(a.indices)));
  return infer_same(call);
}
Result<KernelPtr> make_scatter_elements(const KernelCall& c) {
  FALAJ_ASSIGN(auto a, along_axis(c));
  FALAJ_ASSIGN(auto how, combine(c.node));
  auto n = c.in(0).shape.elements();
  return dispatch_scatter(c.in(0).dtype, how, [&]<class T, bool kNumbers>() {
    return make_kernel([a, how, n](const Io& io) {
      T* y = io.output<T>(0);
      std::copy_n(io.input<T>(0), n, y);
      for_each_place(a, io, [&](std::int64_t to, std::int64_t from) { put<T, kNumbers>(y[to], io.input<T>(2)[from], how); });
    });
  });
}

// --- GatherND, ScatterND: the last dimension of the indices is a place ------------------------------------------------------------

struct Places {
  std::int64_t batches = 1, places = 0, depth = 0, slice = 1;  // places in each batch, numbers in a place, elements at a place
  std::int64_t batch_elements = 0;
  std::vector<std::int64_t> sizes, strides;  // of the dimensions that a place names
  bool i64 = true;

  // Offset of place p within its batch; -1: reported.
  [[nodiscard]] std::int64_t offset(const Io& io, std::int64_t p) const {
    std::int64_t at = 0;
    for (std::int64_t k = 0; k < depth; ++k) {
      auto d = static_cast<std::size_t>(k);
      std::int64_t index = checked(io, index_at(io, 1, i64, p * depth + k), sizes[d], p);
      if (index < 0) return -1;
      at += index * strides[d];
    }
    return at;
  }
};
Result<Places> places(const OpCall& call, std::int64_t batch_dims) {
  FALAJ_TRY(check_indices(call, 1));
  const Shape& data = call.in(0).shape;
  const Shape& indices = call.in(1).shape;
  Places p;
  if (indices.rank() == 0 || data.rank() == 0) return invalid("data and indices need at least one dimension");
  p.depth = indices.back();
  auto b = static_cast<std::size_t>(batch_dims);
  if (batch_dims < 0 || b >= data.rank() || b >= indices.rank() || p.depth < 0 || b + static_cast<std::size_t>(p.depth) > data.rank())
    return invalid(format("indices {} with {} batch dimensions do not fit data {}", to_string(indices), batch_dims, to_string(data)));
  for (std::size_t d = 0; d < b; ++d) {
    if (data[d] != indices[d]) return invalid(format("batch dimension {} differs: {} and {}", d, data[d], indices[d]));
  }
  p.batches = data.elements(0, b);
  p.batch_elements = data.elements(b, data.rank());
  p.places = indices.elements(b, indices.rank() - 1);
  std::size_t end = b + static_cast<std::size_t>(p.depth);
  p.slice = data.elements(end, data.rank());
  Strides own = row_major(data);
  for (std::size_t d = b; d < end; ++d) {
    p.sizes.push_back(data[d]);
    p.strides.push_back(own[d]);
  }
  p.i64 = call.in(1).dtype == DType::i64;
  return p;
}

Status infer_gather_nd(InferCall& call) {
  FALAJ_ASSIGN(auto batch_dims, attr_int(call.node, "batch_dims", 0));
  FALAJ_ASSIGN(auto p, places(call, batch_dims));
  const Shape& data = call.in(0).shape;
  const Shape& indices = call.in(1).shape;
  Shape out(indices.dims().first(indices.rank() - 1));
  std::size_t end = static_cast<std::size_t>(batch_dims + p.depth);
  if (out.rank() + data.rank() - end > kRankMax) return invalid("the result has too many dimensions");
  for (std::size_t d = end; d < data.rank(); ++d) out.push_back(data[d]);
  return set_output(call, 0, call.in(0).dtype, out);
}
Result<KernelPtr> make_gather_nd(const KernelCall& c) {
  FALAJ_ASSIGN(auto batch_dims, attr_int(c.node, "batch_dims", 0));
  FALAJ_ASSIGN(auto p, places(c, batch_dims));
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([p](const Io& io) {
      T* y = io.output<T>(0);
      for (std::int64_t b = 0; b < p.batches; ++b) {
        for (std::int64_t i = 0; i < p.places; ++i, y += p.slice) {
          std::int64_t at = p.offset(io, b * p.places + i);
          if (at < 0) return;
          std::copy_n(io.input<T>(0) + b * p.batch_elements + at, p.slice, y);
        }
      }
    });
  });
}

Status infer_scatter_nd(InferCall& call) {
  FALAJ_ASSIGN(auto p, places(call, 0));
  FALAJ_ASSIGN([[maybe_unused]] auto how, combine(call.node));
  FALAJ_TRY(check_same_dtype(call, 0, 2));
  if (call.in(2).shape.elements() != p.places * p.slice)
    return invalid(format("updates {} do not fit the indices {}", to_string(call.in(2).shape), to_string(call.in(1).shape)));
  return infer_same(call);
}
Result<KernelPtr> make_scatter_nd(const KernelCall& c) {
  FALAJ_ASSIGN(auto p, places(c, 0));
  FALAJ_ASSIGN(auto how, combine(c.node));
  auto n = c.in(0).shape.elements();
  return dispatch_scatter(c.in(0).dtype, how, [&]<class T, bool kNumbers>() {
    return make_kernel([p, how, n](const Io& io) {
      T* y = io.output<T>(0);
      std::copy_n(io.input<T>(0), n, y);
      for (std::int64_t i = 0; i < p.places; ++i) {
        std::int64_t at = p.offset(io, i);
        if (at < 0) return;
        for (std::int64_t k = 0; k < p.slice; ++k) put<T, kNumbers>(y[at + k], io.input<T>(2)[i * p.slice + k], how);
      }
    });
  });
}

// --- gradients: what was gathered is added up where it came from, what was scattered is gathered again ----------------------------

Status grad_gather_elements(GradientCall& g) {
  Attributes attributes = g.node().attributes;
  attributes.insert_or_assign("reduction", std::string("add"));
  const std::string zeros = g.add_falaj("ZerosLike", {g.input(0)});
  if (g.wants(0)) g.set(0, g.add("ScatterElements", {zeros, g.input(1), g.dy()}, std::move(attributes)));
  return {};
}

// dy, indices, data (for its shape): slices added up in the order of the indices.
Result<Places> grad_places(const OpCall& call) {
  FALAJ_ASSIGN(auto batch_dims, attr_int(call.node, "batch_dims", 0));
  const std::array<ValueType, 2> forward = {call.in(2), call.in(1)};
  return places(OpCall{call.node, forward, call.opset}, batch_dims);
}
Status infer_gather_nd_grad(InferCall& call) {
  FALAJ_ASSIGN(auto p, grad_places(call));
  if (call.in(0).shape.elements() != p.batches * p.places * p.slice) return invalid("the gradient does not fit what was gathered");
  return set_output(call, 0, call.in(0).dtype, call.in(2).shape);
}
Result<KernelPtr> make_gather_nd_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto p, grad_places(c));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([p](const Io& io) {
      const T* dy = io.input<T>(0);
      T* dx = io.output<T>(0);
      std::fill_n(dx, p.batches * p.batch_elements, T{0});
      for (std::int64_t b = 0; b < p.batches; ++b) {
        for (std::int64_t i = 0; i < p.places; ++i, dy += p.slice) {
          std::int64_t at = p.offset(io, b * p.places + i);
          if (at < 0) return;
          T* to = dx + b * p.batch_elements + at;
          for (std::int64_t k = 0; k < p.slice; ++k) to[k] += dy[k];
        }
      }
    });
  });
}
Status grad_gather_nd(GradientCall& g) {
  if (g.wants(0)) g.set(0, g.add_falaj("GatherNDGrad", {g.dy(), g.input(1), g.input(0)}, g.node().attributes));
  return {};
}

// What is overwritten gets no gradient; what is added to keeps all of it.
Status grad_scatter(GradientCall& g) {
  FALAJ_ASSIGN(auto how, combine(g.node()));
  if (how != Combine::none && how != Combine::add) return Error{ErrorCode::unimplemented, "reduction is neither none nor add: no gradient"};
  const bool elements = g.node().op != "ScatterND";
  if (g.wants(0)) {
    const std::string zeros = how == Combine::none ? g.add_falaj("ZerosLike", {g.input(2)}) : std::string();
    Attributes attributes = g.node().attributes;
    g.set(0, how == Combine::add ? g.dy()
                                 : g.add(elements ? "ScatterElements" : "ScatterND", {g.dy(), g.input(1), zeros}, std::move(attributes)));
  }
  if (!g.wants(2)) return {};
  Attributes axis;
  if (const auto found = g.node().attributes.find("axis"); found != g.node().attributes.end()) axis.insert(*found);
  std::string d = g.add(elements ? "GatherElements" : "GatherND", {g.dy(), g.input(1)}, std::move(axis));
  g.set(2, elements ? std::move(d) : g.add_falaj("ReshapeLike", {std::move(d), g.input(2)}));
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "GatherElements", 2, 2, 1, 1, infer_gather_elements, make_gather_elements, grad_gather_elements},
    {kOnnx, "ScatterElements", 3, 3, 1, 1, infer_scatter_elements, make_scatter_elements, grad_scatter},
    {kOnnx, "Scatter", 3, 3, 1, 1, infer_scatter_elements, make_scatter_elements, grad_scatter},
    {kOnnx, "GatherND", 2, 2, 1, 1, infer_gather_nd, make_gather_nd, grad_gather_nd},
    {kOnnx, "ScatterND", 3, 3, 1, 1, infer_scatter_nd, make_scatter_nd, grad_scatter},
    {kFalaj, "GatherNDGrad", 3, 3, 1, 1, infer_gather_nd_grad, make_gather_nd_grad, nullptr, Placement::own, 0b100},
};

}  // namespace

std::span<const OpDef> scatter_ops() { return kOps; }

}  // namespace falaj::kernels
