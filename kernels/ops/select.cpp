// Choosing by value: TopK Hardmax; and what has as many results as the data say: NonZero Compress Unique NonMaxSuppression.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// --- TopK -------------------------------------------------------------------------------------------------------------------

Result<std::pair<std::int64_t, std::int64_t>> top_axis_k(const OpCall& call) {
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  std::int64_t k = 0;
  if (call.opset < 10) {
    FALAJ_ASSIGN(k, attr_int(call.node, "k"));
  } else {
    if (!call.has(1)) return invalid("k is missing");
    FALAJ_ASSIGN(auto list, known_ints(call, 1, "k"));
    if (list.size() != 1) return invalid("k must be one number");
    k = list[0];
  }
  if (k < 0 || k > in[static_cast<std::size_t>(axis)])
    return invalid(format("k is {}; axis {} has {} elements", k, axis, in[static_cast<std::size_t>(axis)]));
  return std::pair{axis, k};
}
Status infer_top(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  FALAJ_ASSIGN(auto top, top_axis_k(call));
  Shape out = call.in(0).shape;
  out[static_cast<std::size_t>(top.first)] = top.second;
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, out));
  return set_output(call, 1, DType::i64, out);
}
Result<KernelPtr> make_top(const KernelCall& c) {
  FALAJ_ASSIGN(auto top, top_axis_k(c));
  FALAJ_ASSIGN(auto largest, attr_int(c.node, "largest", 1));
  return dispatch<double, std::int32_t, std::int64_t, std::uint64_t>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s = split_at(c.in(0).shape, top.first), k = top.second, largest, two = c.outputs.size() > 1](const Io& io) {
      std::vector<std::int64_t> order(static_cast<std::size_t>(s.size));
      for (std::int64_t o = 0; o < s.outer; ++o) {
        for (std::int64_t i = 0; i < s.inner; ++i) {
          const T* line = io.input<T>(0) + o * s.size * s.inner + i;
          std::iota(order.begin(), order.end(), std::int64_t{0});
          // Of equals the first; NaN counts as larger than all numbers.
          auto before = [&](std::int64_t a, std::int64_t b) {
            T x = line[a * s.inner];
            T y = line[b * s.inner];
            bool x_nan = x != x;
            bool y_nan = y != y;
            if (x_nan || y_nan) return x_nan == y_nan ? a < b : (largest != 0 ? x_nan : y_nan);
            if (x == y) return a < b;
            return largest != 0 ? x > y : x < y;
          };
          std::partial_sort(order.begin(), order.begin() + k, order.end(), before);
          for (std::int64_t j = 0; j < k; ++j) {
            std::int64_t to = (o * k + j) * s.inner + i;
            std::int64_t from = order[static_cast<std::size_t>(j)];
            if (io.out[0] != nullptr) io.output<T>(0)[to] = line[from * s.inner];
            if (two && io.out[1] != nullptr) io.output<std::int64_t>(1)[to] = from;
          }
        }
      }
    });
  });
}

// The indices are asked for again: exports often leave them out.
Status grad_top(GradientCall& g) {
  if (!g.wants(0) || g.dy().empty()) return g.stop(), Status{};
  const auto again = g.add_many(kOnnx, "TopK", g.node().inputs, g.node().attributes, 2);
  FALAJ_ASSIGN(auto axis, attr_int(g.node(), "axis", -1));
  Attributes attributes = attr("axis", axis);
  attributes.emplace("reduction", std::string("add"));
  g.set(0, g.add("ScatterElements", {g.add_falaj("ZerosLike", {g.input(0)}), again[1], g.dy()}, std::move(attributes)));
  return {};
}

// --- Hardmax ----------------------------------------------------------------------------------------------------------------

Result<AxisSplit> hardmax_split(const OpCall& call) {
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", call.opset < 13 ? 1 : -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  if (call.opset >= 13) return split_at(in, axis);
  auto a = static_cast<std::size_t>(axis);
  return AxisSplit{in.elements(0, a), in.elements(a, in.rank()), 1};
}
Status infer_hardmax(InferCall& call) {
  FALAJ_ASSIGN([[maybe_unused]] auto s, hardmax_split(call));
  return infer_float(call);
}
Result<KernelPtr> make_hardmax(const KernelCall& c) {
  FALAJ_ASSIGN(auto split, hardmax_split(c));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s = split](const Io& io) {
      for (std::int64_t o = 0; o < s.outer; ++o) {
        for (std::int64_t i = 0; i < s.inner; ++i) {
          const T* x = io.input<T>(0) + o * s.size * s.inner + i;
          T* y = io.output<T>(0) + o * s.size * s.inner + i;
          std::int64_t best = 0;
          for (std::int64_t k = 0; k < s.size; ++k) {
            y[k * s.inner] = T{0};
            if (x[k * s.inner] > x[best * s.inner]) best = k;
          }
          if (s.size > 0) y[best * s.inner] = T{1};
        }
      }
    });
  });
}

// --- NonZero, Compress ----------------------------------------------------------------------------------------------------------

bool is_zero(const Tensor& t, std::size_t i) {
  if (t.dtype() == DType::string) return t.data<std::string>()[i].empty();
  double v = 0;
  to_doubles(t.dtype(), static_cast<const std::byte*>(t.raw()) + i * size_of(t.dtype()), &v, 1);
  return v == 0;
}

Result<std::vector<Value>> eager_non_zero(EagerCall& call) {
  FALAJ_ASSIGN(Tensor x, call.tensor(0));
  std::vector<std::int64_t> found;
  for (std::size_t i = 0; i < x.elements(); ++i) {
    if (!is_zero(x, i)) found.push_back(static_cast<std::int64_t>(i));
  }
  auto rank = static_cast<std::int64_t>(std::max<std::size_t>(x.shape().rank(), 1));
  Tensor out(DType::i64, {rank, static_cast<std::int64_t>(found.size())});
  Strides own = row_major(x.shape());
  auto to = out.mutable_data<std::int64_t>();
  for (std::size_t i = 0; i < found.size(); ++i) {
    std::int64_t rest = found[i];
    for (std::size_t d = 0; d < x.shape().rank(); ++d) {
      to[d * found.size() + i] = rest / own[d];
      rest %= own[d];
    }
  }
  return std::vector<Value>{Value(out)};
}

// Slices of x along an axis (of x flattened, if there is none): those that `rows` name.
Tensor take(const Tensor& x, std::optional<std::int64_t> axis, std::span<const std::int64_t> rows) {
  Tensor source = axis ? x : x.reshaped({x.shape().elements()});
  AxisSplit s = split_at(source.shape(), axis.value_or(0));
  Shape shape = source.shape();
  shape[static_cast<std::size_t>(axis.value_or(0))] = static_cast<std::int64_t>(rows.size());
  Tensor out(x.dtype(), shape);
  auto width = static_cast<std::size_t>(s.inner) * size_of(x.dtype());
  for (std::int64_t o = 0; o < s.outer; ++o) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      auto from = static_cast<std::size_t>(o * s.size + rows[r]);
      auto to = static_cast<std::size_t>(o) * rows.size() + r;
      if (x.dtype() == DType::string) {
        std::copy_n(source.data<std::string>().begin() + static_cast<std::ptrdiff_t>(from) * s.inner, s.inner,
                    out.mutable_data<std::string>().begin() + static_cast<std::ptrdiff_t>(to) * s.inner);
      } else if (width > 0) {
        std::memcpy(static_cast<std::byte*>(out.mutable_raw()) + to * width, static_cast<const std::byte*>(source.raw()) + from * width,
                    width);
      }
    }
  }
  return out;
}

Result<std::optional<std::int64_t>> optional_axis(const EagerCall& call, const Tensor& x) {
  if (!call.node().attributes.contains("axis")) return std::optional<std::int64_t>();
  FALAJ_ASSIGN(auto axis, attr_int(call.node(), "axis"));
  FALAJ_ASSIGN(axis, normal_axis(axis, x.shape().rank()));
  return std::optional<std::int64_t>(axis);
}

Result<std::vector<Value>> eager_compress(EagerCall& call) {
  FALAJ_ASSIGN(Tensor x, call.tensor(0));
  FALAJ_ASSIGN(Tensor condition, call.tensor(1));
  FALAJ_ASSIGN(auto axis, optional_axis(call, x));
  if (condition.dtype() != DType::boolean || condition.shape().rank() != 1) return invalid("the condition must be a vector of bool");
  std::int64_t size = axis ? x.shape()[static_cast<std::size_t>(*axis)] : x.shape().elements();
  std::vector<std::int64_t> rows;
  for (std::size_t i = 0; i < condition.elements() && static_cast<std::int64_t>(i) < size; ++i) {
    if (condition.data<bool>()[i]) rows.push_back(static_cast<std::int64_t>(i));
  }
  return std::vector<Value>{Value(take(x, axis, rows))};
}

// --- Unique -----------------------------------------------------------------------------------------------------------------

// Slices as keys that compare like their elements, one after the other.
struct SliceKey {
  std::vector<double> numbers;
  std::vector<std::string> texts;
  auto operator<=>(const SliceKey& other) const {
    if (auto order = std::lexicographical_compare_three_way(texts.begin(), texts.end(), other.texts.begin(), other.texts.end()); order != 0)
      return order;
    return std::lexicographical_compare_three_way(numbers.begin(), numbers.end(), other.numbers.begin(), other.numbers.end(),
                                                  [](double a, double b) { return std::strong_order(a + 0.0, b + 0.0); });
  }
  bool operator==(const SliceKey&) const = default;
};

Result<std::vector<Value>> eager_unique(EagerCall& call) {
  FALAJ_ASSIGN(Tensor x, call.tensor(0));
  FALAJ_ASSIGN(auto axis, optional_axis(call, x));
  FALAJ_ASSIGN(auto sorted, attr_int(call.node(), "sorted", 1));
  Tensor source = axis ? x : x.reshaped({x.shape().elements()});
  AxisSplit s = split_at(source.shape(), axis.value_or(0));
  std::map<SliceKey, std::size_t> known;
  std::vector<std::int64_t> first;
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> inverse;
  std::vector<double> numbers(x.dtype() == DType::string ? 0 : x.elements());
  if (x.dtype() != DType::string) to_doubles(x.dtype(), x.raw(), numbers.data(), x.shape().elements());
  for (std::int64_t r = 0; r < s.size; ++r) {
    SliceKey key;
    for (std::int64_t o = 0; o < s.outer; ++o) {
      for (std::int64_t i = 0; i < s.inner; ++i) {
        auto at = static_cast<std::size_t>((o * s.size + r) * s.inner + i);
        if (x.dtype() == DType::string) {
          key.texts.push_back(x.data<std::string>()[at]);
        } else {
          key.numbers.push_back(numbers[at]);
        }
      }
    }
    auto [at, fresh] = known.try_emplace(std::move(key), first.size());
    if (fresh) {
      first.push_back(r);
      counts.push_back(0);
    }
    ++counts[at->second];
    inverse.push_back(static_cast<std::int64_t>(at->second));
  }
  std::vector<std::size_t> order(first.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (sorted != 0) {
    std::size_t k = 0;
    for (const auto& [key, id] : known) order[k++] = id;
  }
  std::vector<std::int64_t> rank(order.size());
  std::vector<std::int64_t> first_sorted;
  std::vector<std::int64_t> counts_sorted;
  for (std::size_t k = 0; k < order.size(); ++k) {
    rank[order[k]] = static_cast<std::int64_t>(k);
    first_sorted.push_back(first[order[k]]);
    counts_sorted.push_back(counts[order[k]]);
  }
  for (auto& v : inverse) v = rank[static_cast<std::size_t>(v)];
  auto list = [](const std::vector<std::int64_t>& v) {
    return Value(Tensor::of<std::int64_t>({static_cast<std::int64_t>(v.size())}, std::span<const std::int64_t>(v)));
  };
  return std::vector<Value>{Value(take(x, axis, first_sorted)), list(first_sorted), list(inverse), list(counts_sorted)};
}

// --- NonMaxSuppression -----------------------------------------------------------------------------------------------------------

struct Box {
  double y1, x1, y2, x2;
};
double overlap(const Box& a, const Box& b) {
  double height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1);
  double width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1);
  if (height <= 0 || width <= 0) return 0;
  double both = height * width;
  double all = (a.y2 - a.y1) * (a.x2 - a.x1) + (b.y2 - b.y1) * (b.x2 - b.x1) - both;
  return all <= 0 ? 0 : both / all;
}

Result<double> scalar_or(EagerCall& call, std::size_t input, double fallback) {
  if (!call.has(input)) return fallback;
  FALAJ_ASSIGN(Tensor t, call.tensor(input));
  if (t.elements() != 1 || t.dtype() == DType::string) return invalid(format("input {} must be one number", input));
  double value = 0;
  to_doubles(t.dtype(), t.raw(), &value, 1);
  return value;
}

Result<std::vector<Value>> eager_suppress(EagerCall& call) {
  FALAJ_ASSIGN(Tensor boxes, call.tensor(0));
  FALAJ_ASSIGN(Tensor scores, call.tensor(1));
  FALAJ_ASSIGN(double most, scalar_or(call, 2, 0));
  FALAJ_ASSIGN(double iou, scalar_or(call, 3, 0));
  FALAJ_ASSIGN(double least, scalar_or(call, 4, -std::numeric_limits<double>::infinity()));
  FALAJ_ASSIGN(auto centred, attr_int(call.node(), "center_point_box", 0));
  const Shape& b = boxes.shape();
  const Shape& s = scores.shape();
  if (boxes.dtype() != DType::f32 || scores.dtype() != DType::f32 || b.rank() != 3 || s.rank() != 3 || b[2] != 4 || b[0] != s[0] ||
      b[1] != s[2])
    return invalid(
        format("boxes {} and scores {} must be float32 [batches, boxes, 4] and [batches, classes, boxes]", to_string(b), to_string(s)));
  std::vector<std::int64_t> chosen;
  auto box = [&](std::int64_t batch, std::int64_t i) {
    const float* v = boxes.data<float>().data() + (batch * b[1] + i) * 4;
    std::array<double, 4> d{static_cast<double>(v[0]), static_cast<double>(v[1]), static_cast<double>(v[2]), static_cast<double>(v[3])};
    if (centred != 0) return Box{d[1] - d[3] / 2, d[0] - d[2] / 2, d[1] + d[3] / 2, d[0] + d[2] / 2};
    return Box{std::min(d[0], d[2]), std::min(d[1], d[3]), std::max(d[0], d[2]), std::max(d[1], d[3])};
  };
  for (std::int64_t batch = 0; batch < s[0]; ++batch) {
    for (std::int64_t k = 0; k < s[1]; ++k) {
      const float* score = scores.data<float>().data() + (batch * s[1] + k) * s[2];
      std::vector<std::int64_t> order;
      for (std::int64_t i = 0; i < s[2]; ++i) {
        if (static_cast<double>(score[i]) > least) order.push_back(i);
      }
      std::ranges::stable_sort(order, [&](std::int64_t x, std::int64_t y) { return score[x] > score[y]; });
      std::vector<Box> kept;
      for (std::int64_t i : order) {
        if (static_cast<double>(kept.size()) >= most) break;
        Box here = box(batch, i);
        if (std::ranges::any_of(kept, [&](const Box& other) { return overlap(here, other) > iou; })) continue;
        kept.push_back(here);
        chosen.insert(chosen.end(), {batch, k, i});
      }
    }
  }
  return std::vector<Value>{
      Value(Tensor::of<std::int64_t>({static_cast<std::int64_t>(chosen.size() / 3), 3}, std::span<const std::int64_t>(chosen)))};
}

constexpr OpDef kOps[] = {
    {kOnnx, "TopK", 1, 2, 1, 2, infer_top, make_top, grad_top}, {kOnnx, "Hardmax", 1, 1, 1, 1, infer_hardmax, make_hardmax},
    eager_op(kOnnx, "NonZero", 1, 1, 1, 1, eager_non_zero),     eager_op(kOnnx, "Compress", 2, 2, 1, 1, eager_compress),
    eager_op(kOnnx, "Unique", 1, 1, 1, 4, eager_unique),        eager_op(kOnnx, "NonMaxSuppression", 2, 5, 1, 1, eager_suppress),
};

}  // namespace

std::span<const OpDef> select_ops() { return kOps; }

}  // namespace falaj::kernels
