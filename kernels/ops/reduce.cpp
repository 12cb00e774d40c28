// Reductions: ReduceSum ReduceMean ReduceMax ReduceMin, norms and products, ArgMax ArgMin, and the gradients' ReduceGrad, ReduceMaxGrad
// and ReduceFunctionGrad.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

struct Reduction {
  std::vector<std::int64_t> axes;  // normalised; empty: nothing is reduced
  Shape kept;                      // the input's shape with 1 at each axis
  Shape out;
  std::int64_t count = 1;  // elements that fall into one
};

Result<Reduction> reduction(const OpCall& call, const Shape& in) {
  Reduction r;
  bool given = false;
  FALAJ_ASSIGN(r.axes, known_axes(call, in.rank(), given));
  FALAJ_ASSIGN(auto keep, attr_int(call.node, "keepdims", 1));
  FALAJ_ASSIGN(auto noop, attr_int(call.node, "noop_with_empty_axes", 0));
  if (!given && noop == 0) {
    for (std::size_t i = 0; i < in.rank(); ++i) r.axes.push_back(static_cast<std::int64_t>(i));
  }
  r.kept = in;
  for (std::int64_t axis : r.axes) {
    r.kept[static_cast<std::size_t>(axis)] = 1;
    r.count *= in[static_cast<std::size_t>(axis)];
  }
  for (std::size_t i = 0; i < in.rank(); ++i) {
    bool reduced = std::ranges::find(r.axes, static_cast<std::int64_t>(i)) != r.axes.end();
    if (!reduced) r.out.push_back(in[i]);
    if (reduced && keep != 0) r.out.push_back(1);
  }
  return r;
}

Status infer_reduce(InferCall& call) {
  bool logical = call.in(0).dtype == DType::boolean && (call.node.op == "ReduceMax" || call.node.op == "ReduceMin");
  if (!logical) FALAJ_TRY(check_number(call, 0));
  FALAJ_ASSIGN(auto r, reduction(call, call.in(0).shape));
  return set_output(call, 0, call.in(0).dtype, r.out);
}

Result<KernelPtr> make_sum(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, reduction(c, c.in(0).shape));
  bool mean = c.node.op == "ReduceMean";
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    using Sum = std::conditional_t<std::is_floating_point_v<T>, double, std::uint64_t>;
    auto walk = broadcast_walk<2>(c.in(0).shape, {&c.in(0).shape, &r.kept});
    auto n = r.kept.elements();
    return make_kernel(
        [walk, n, mean, count = r.count](const Io& io) {
          auto* sum = reinterpret_cast<Sum*>(io.scratch);
          std::fill_n(sum, n, Sum{0});
          const T* x = io.input<T>(0);
          walk([&](const auto& at, std::int64_t m, const auto& step) {
            for (std::int64_t i = 0; i < m; ++i) sum[at[1] + i * step[1]] += static_cast<Sum>(x[at[0] + i * step[0]]);
          });
          T* y = io.output<T>(0);
          for (std::int64_t i = 0; i < n; ++i) {
            if (!mean) {
              y[i] = static_cast<T>(sum[i]);
            } else if constexpr (std::is_floating_point_v<T>) {
              y[i] = static_cast<T>(sum[i] / static_cast<Sum>(count));
            } else {
              y[i] = count == 0 ? T{0} : static_cast<T>(static_cast<std::int64_t>(sum[i]) / count);
            }
          }
        },
        static_cast<std::size_t>(n) * sizeof(Sum));
  });
}

template <class T>
bool is_nan(T v) {
  if constexpr (std::is_floating_point_v<T>) return std::isnan(v);
  return false;
}

template <class T>
T lowest_or_highest(bool lowest) {
  if constexpr (std::is_floating_point_v<T>) {
    T infinity = std::numeric_limits<T>::infinity();
    return lowest ? -infinity : infinity;
  } else {
    return lowest ? std::numeric_limits<T>::lowest() : std::numeric_limits<T>::max();
  }
}

Result<KernelPtr> make_extreme_bool(const KernelCall& c, const Reduction& r, bool max) {
  return make_kernel([walk = broadcast_walk<2>(c.in(0).shape, {&c.in(0).shape, &r.kept}), n = r.kept.elements(), max](const Io& io) {
    bool* y = io.output<bool>(0);
    std::fill_n(y, n, !max);
    walk([&](const auto& at, std::int64_t m, const auto& step) {
      for (std::int64_t i = 0; i < m; ++i) {
        if (io.input<bool>(0)[at[0] + i * step[0]] == max) y[at[1] + i * step[1]] = max;
      }
    });
  });
}

Result<KernelPtr> make_extreme(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, reduction(c, c.in(0).shape));
  bool max = c.node.op == "ReduceMax";
  if (c.in(0).dtype == DType::boolean) return make_extreme_bool(c, r, max);
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    auto walk = broadcast_walk<2>(c.in(0).shape, {&c.in(0).shape, &r.kept});
    auto n = r.kept.elements();
    return make_kernel(
        [walk, n, max](const Io& io) {
          auto* seen = reinterpret_cast<bool*>(io.scratch);
          std::fill_n(seen, n, false);
          const T* x = io.input<T>(0);
          T* y = io.output<T>(0);
          std::fill_n(y, n, lowest_or_highest<T>(max));  // of no elements
          walk([&](const auto& at, std::int64_t m, const auto& step) {
            for (std::int64_t i = 0; i < m; ++i) {
              T v = x[at[0] + i * step[0]];
              T& to = y[at[1] + i * step[1]];
              bool& known = seen[at[1] + i * step[1]];
              bool better = max ? v > to : v < to;
              if (!known || better || is_nan(v)) to = v;  // NaN stays: nothing compares with it
              known = true;
            }
          });
        },
        static_cast<std::size_t>(n));
  });
}

// --- norms and products: f of each element is gathered, then finished; in double ----------------------------------------------------

struct Gathering {
  std::string_view op;
  double start;
  double (*gather)(double so_far, double x);
  double (*finish)(double total);
};
constexpr Gathering kGatherings[] = {
    {"ReduceL1", 0, [](double s, double x) { return s + std::abs(x); }, [](double s) { return s; }},
    {"ReduceL2", 0, [](double s, double x) { return s + x * x; }, [](double s) { return std::sqrt(s); }},
    {"ReduceSumSquare", 0, [](double s, double x) { return s + x * x; }, [](double s) { return s; }},
    {"ReduceLogSum", 0, [](double s, double x) { return s + x; }, [](double s) { return std::log(s); }},
    {"ReduceProd", 1, [](double s, double x) { return s * x; }, [](double s) { return s; }},
    {"ReduceLogSumExp", 0, nullptr, nullptr},
};

Result<KernelPtr> make_gathering(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, reduction(c, c.in(0).shape));
  auto found = std::ranges::find(kGatherings, std::string_view(c.node.op), &Gathering::op);
  if (found == std::end(kGatherings)) return no_kernel(c.in(0).dtype);
  return dispatch<double, std::int64_t>(c.in(0).dtype, [&]<class T>() {
    auto walk = broadcast_walk<2>(c.in(0).shape, {&c.in(0).shape, &r.kept});
    auto n = r.kept.elements();
    return make_kernel(
        [walk, n, g = *found](const Io& io) {
          auto* sum = reinterpret_cast<double*>(io.scratch);
          double* top = sum + n;
          const T* x = io.input<T>(0);
          auto each = [&](auto f) {
            walk([&](const auto& at, std::int64_t m, const auto& step) {
              for (std::int64_t i = 0; i < m; ++i) f(at[1] + i * step[1], static_cast<double>(x[at[0] + i * step[0]]));
            });
          };
          std::fill_n(sum, n, g.start);
          if (g.gather != nullptr) {
            each([&](std::int64_t k, double v) { sum[k] = g.gather(sum[k], v); });
          } else {  // the largest is taken out, so that no exponential overflows
            std::fill_n(top, n, -std::numeric_limits<double>::infinity());
            each([&](std::int64_t k, double v) { top[k] = std::max(top[k], v); });
            each([&](std::int64_t k, double v) {
              sum[k] += std::isinf(top[k]) ? (v == top[k] && v > 0 ? 1.0 : 0.0) : std::exp(v - top[k]);
            });
          }
          for (std::int64_t k = 0; k < n; ++k) {
            double value = g.finish != nullptr ? g.finish(sum[k]) : std::log(sum[k]) + (std::isinf(top[k]) && sum[k] == 0 ? 0 : top[k]);
            io.output<T>(0)[k] = static_cast<T>(value);
          }
        },
        static_cast<std::size_t>(2 * n) * sizeof(double));
  });
}

// --- ArgMax, ArgMin ---------------------------------------------------------------------------------------------------------

Status infer_arg(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", 0));
  FALAJ_ASSIGN(auto keep, attr_int(call.node, "keepdims", 1));
  Shape shape = call.in(0).shape;
  FALAJ_ASSIGN(axis, normal_axis(axis, shape.rank()));
  if (shape[static_cast<std::size_t>(axis)] == 0) return invalid("the axis has no elements");
  if (keep != 0) {
    shape[static_cast<std::size_t>(axis)] = 1;
  } else {
    shape.erase(static_cast<std::size_t>(axis));
  }
  return set_output(call, 0, DType::i64, shape);
}

Result<KernelPtr> make_arg(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, attr_int(c.node, "axis", 0));
  FALAJ_ASSIGN(axis, normal_axis(axis, c.in(0).shape.rank()));
  FALAJ_ASSIGN(auto last, attr_int(c.node, "select_last_index", 0));
  bool max = c.node.op == "ArgMax";
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s = split_at(c.in(0).shape, axis), max, last = last != 0](const Io& io) {
      const T* x = io.input<T>(0);
      auto* y = io.output<std::int64_t>(0);
      for (std::int64_t o = 0; o < s.outer; ++o) {
        for (std::int64_t i = 0; i < s.inner; ++i) {
          const T* line = x + o * s.size * s.inner + i;
          std::int64_t best = 0;
          for (std::int64_t k = 1; k < s.size; ++k) {
            T v = line[k * s.inner];
            T b = line[best * s.inner];
            if ((max ? v > b : v < b) || (last && v == b)) best = k;
          }
          y[o * s.inner + i] = best;
        }
      }
    });
  });
}

// --- gradients ------------------------------------------------------------------------------------------------------------

// dy, the forward input, [axes] -> dy spread over the forward input's shape (divided by the count for a mean).
Result<Reduction> grad_reduction(const OpCall& call) {
  std::vector<ValueType> forward(call.inputs.begin() + 1, call.inputs.end());
  return reduction(OpCall{call.node, forward, call.opset}, call.in(1).shape);
}
Status infer_reduce_grad(InferCall& call) {
  FALAJ_ASSIGN(auto r, grad_reduction(call));
  if (call.in(0).shape != r.out) return invalid(format("gradient {} does not fit {}", to_string(call.in(0).shape), to_string(r.out)));
  return infer_like_second(call);
}
Result<KernelPtr> make_reduce_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, grad_reduction(c));
  FALAJ_ASSIGN(auto mean, attr_int(c.node, "mean", 0));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    auto walk = broadcast_walk<2>(c.in(1).shape, {&c.in(1).shape, &r.kept});
    T scale = mean != 0 ? T{1} / static_cast<T>(r.count) : T{1};
    return make_kernel([walk, scale](const Io& io) {
      const T* dy = io.input<T>(0);
      T* dx = io.output<T>(0);
      walk([&](const auto& at, std::int64_t m, const auto& step) {
        for (std::int64_t i = 0; i < m; ++i) dx[at[0] + i * step[0]] = dy[at[1] + i * step[1]] * scale;
      });
    });
  });
}

// dy, the forward input, the forward output, [axes]: dy to the first element that attains the extreme.
Result<Reduction> extreme_reduction(const OpCall& call) {
  std::vector<ValueType> forward = {call.in(1)};
  forward.insert(forward.end(), call.inputs.begin() + 3, call.inputs.end());
  return reduction(OpCall{call.node, forward, call.opset}, call.in(1).shape);
}
Status infer_extreme_grad(InferCall& call) {
  FALAJ_ASSIGN(auto r, extreme_reduction(call));
  if (call.in(0).shape != r.out || call.in(2).shape != r.out) return invalid("the gradient does not fit the reduction");
  return infer_like_second(call);
}
Result<KernelPtr> make_extreme_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, extreme_reduction(c));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    auto walk = broadcast_walk<2>(c.in(1).shape, {&c.in(1).shape, &r.kept});
    auto n = r.kept.elements();
    return make_kernel(
        [walk, n](const Io& io) {
          auto* given = reinterpret_cast<bool*>(io.scratch);
          std::fill_n(given, n, false);
          const T* dy = io.input<T>(0);
          const T* x = io.input<T>(1);
          const T* y = io.input<T>(2);
          T* dx = io.output<T>(0);
          walk([&](const auto& at, std::int64_t m, const auto& step) {
            for (std::int64_t i = 0; i < m; ++i) {
              std::int64_t to = at[1] + i * step[1];
              bool hit = !given[to] && x[at[0] + i * step[0]] == y[to];
              dx[at[0] + i * step[0]] = hit ? dy[to] : T{0};
              given[to] = given[to] || hit;
            }
          });
        },
        static_cast<std::size_t>(n));
  });
}

// Norms and products: dy, the forward input, the forward output, [axes]; the attribute `function` names the op. Slopes at zero are
// PyTorch's: none for L1 and L2, and of a product the product of the others.
struct Slope {
  std::string_view op;
  double (*slope)(double x, double y);  // y: the reduced value
};
constexpr Slope kSlopes[] = {
    {"ReduceL1", [](double x, double) { return x > 0 ? 1.0 : (x < 0 ? -1.0 : x); }},
    {"ReduceL2", [](double x, double y) { return y == 0 ? 0.0 : x / y; }},
    {"ReduceSumSquare", [](double x, double) { return 2 * x; }},
    {"ReduceLogSum", [](double, double y) { return std::exp(-y); }},
    {"ReduceLogSumExp", [](double x, double y) { return std::exp(x - y); }},
    {"ReduceProd", nullptr},
};
Result<KernelPtr> make_gathering_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, extreme_reduction(c));
  FALAJ_ASSIGN(const auto op, attr_string(c.node, "function"));
  const auto found = std::ranges::find(kSlopes, std::string_view(op), &Slope::op);
  if (found == std::end(kSlopes)) return invalid(format("'{}' is no reduction with a slope", op));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    auto walk = broadcast_walk<2>(c.in(1).shape, {&c.in(1).shape, &r.kept});
    auto n = r.kept.elements();
    return make_kernel(
        [walk, n, slope = found->slope](const Io& io) {
          const T* dy = io.input<T>(0);
          const T* x = io.input<T>(1);
          T* dx = io.output<T>(0);
          auto each = [&](auto f) {
            walk([&](const auto& at, std::int64_t m, const auto& step) {
              for (std::int64_t i = 0; i < m; ++i) f(at[0] + i * step[0], at[1] + i * step[1]);
            });
          };
          if (slope != nullptr) {
            each([&](std::int64_t i, std::int64_t k) { dx[i] = dy[k] * slope(x[i], io.input<T>(2)[k]); });
            return;
          }
          // The product of all that is not zero, and how many are: with one zero only its own slope is left, with two none.
          auto* product = reinterpret_cast<double*>(io.scratch);
          double* zeros = product + n;
          std::fill_n(product, n, 1.0);
          std::fill_n(zeros, n, 0.0);
          each([&](std::int64_t i, std::int64_t k) { x[i] == 0 ? zeros[k] += 1 : product[k] *= x[i]; });
          each([&](std::int64_t i, std::int64_t k) {
            if (zeros[k] == 0) dx[i] = dy[k] * (product[k] / x[i]);
            if (zeros[k] > 0) dx[i] = x[i] == 0 && zeros[k] == 1 ? dy[k] * product[k] : 0;
          });
        },
        static_cast<std::size_t>(2 * n) * sizeof(double));
  });
}
Status grad_gathering(GradientCall& g) {
  Attributes attributes = g.node().attributes;
  attributes.insert_or_assign("function", g.node().op);
  std::vector<std::string> inputs = {g.dy(), g.input(0), g.output(0)};
  inputs.insert(inputs.end(), g.node().inputs.begin() + 1, g.node().inputs.end());
  g.set(0, g.add_falaj("ReduceFunctionGrad", std::move(inputs), std::move(attributes)));
  return {};
}

Status grad_sum(GradientCall& g) {
  Attributes attributes = g.node().attributes;
  if (g.node().op == "ReduceMean") attributes.emplace("mean", std::int64_t{1});
  std::vector<std::string> inputs = {g.dy()};
  inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
  g.set(0, g.add_falaj("ReduceGrad", std::move(inputs), std::move(attributes)));
  return {};
}
Status grad_extreme(GradientCall& g) {
  std::vector<std::string> inputs = {g.dy(), g.input(0), g.output(0)};
  inputs.insert(inputs.end(), g.node().inputs.begin() + 1, g.node().inputs.end());
  g.set(0, g.add_falaj("ReduceMaxGrad", std::move(inputs), g.node().attributes));
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "ReduceSum", 1, 2, 1, 1, infer_reduce, make_sum, grad_sum},
    {kOnnx, "ReduceMean", 1, 2, 1, 1, infer_reduce, make_sum, grad_sum},
    {kOnnx, "ReduceMax", 1, 2, 1, 1, infer_reduce, make_extreme, grad_extreme},
    {kOnnx, "ReduceMin", 1, 2, 1, 1, infer_reduce, make_extreme, grad_extreme},
    {kOnnx, "ReduceL1", 1, 2, 1, 1, infer_reduce, make_gathering, grad_gathering},
    {kOnnx, "ReduceL2", 1, 2, 1, 1, infer_reduce, make_gathering, grad_gathering},
    {kOnnx, "ReduceSumSquare", 1, 2, 1, 1, infer_reduce, make_gathering, grad_gathering},
    {kOnnx, "ReduceLogSum", 1, 2, 1, 1, infer_reduce, make_gathering, grad_gathering},
    {kOnnx, "ReduceLogSumExp", 1, 2, 1, 1, infer_reduce, make_gathering, grad_gathering},
    {kOnnx, "ReduceProd", 1, 2, 1, 1, infer_reduce, make_gathering, grad_gathering},
    {kOnnx, "ArgMax", 1, 1, 1, 1, infer_arg, make_arg},
    {kOnnx, "ArgMin", 1, 1, 1, 1, infer_arg, make_arg},
    {kFalaj, "ReduceGrad", 2, 3, 1, 1, infer_reduce_grad, make_reduce_grad, nullptr, Placement::own, 0b10},
    {kFalaj, "ReduceMaxGrad", 3, 4, 1, 1, infer_extreme_grad, make_extreme_grad},
    {kFalaj, "ReduceFunctionGrad", 3, 4, 1, 1, infer_extreme_grad, make_gathering_grad},
};

}  // namespace

std::span<const OpDef> reduce_ops() { return kOps; }

}  // namespace falaj::kernels
