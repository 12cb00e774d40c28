// Pools: MaxPool AveragePool LpPool, over windows or (Global...) whole planes; MaxUnpool; Col2Im.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops/common.hpp"
#include "kernels/ops/conv.hpp"

namespace falaj::kernels {

Result<Window> whole_plane(const Shape& in) {
  Window w;
  if (in.rank() < 3) return invalid(format("the input {} needs a batch, channels and at least one spatial dimension", to_string(in)));
  w.in.assign(in.begin() + 2, in.end());
  w.kernel = w.in;
  for (auto* ones : {&w.out, &w.strides, &w.dilations}) ones->assign(w.in.size(), 1);
  for (auto* zeros : {&w.pad_begin, &w.pad_end}) zeros->assign(w.in.size(), 0);
  return w;
}

// How many places of window position o lie in the input or its padding.
std::int64_t padded_count(const Window& w, std::int64_t o) {
  std::int64_t count = 1;
  for (std::size_t d = w.rank(); d-- > 0;) {
    std::int64_t start = o % w.out[d] * w.strides[d] - w.pad_begin[d];
    o /= w.out[d];
    std::int64_t places = 0;
    for (std::int64_t k = 0; k < w.kernel[d]; ++k) places += start + k * w.dilations[d] < w.in[d] + w.pad_end[d] ? 1 : 0;
    count *= places;
  }
  return count;
}

namespace {

Result<Window> pool_window(const OpCall& call) {
  const Shape& in = call.in(0).shape;
  if (in.rank() < 3) return invalid(format("the input {} needs a batch, channels and at least one spatial dimension", to_string(in)));
  FALAJ_ASSIGN(auto kernel, attr_ints(call.node, "kernel_shape"));
  return sliding_window(call, in.dims().subspan(2), kernel);
}
Shape pool_shape(const Shape& in, const Window& window) {
  Shape out{in[0], in[1]};
  for (auto d : window.out) out.push_back(d);
  return out;
}

Status infer_pool(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  FALAJ_ASSIGN(auto window, pool_window(call));
  Shape out = pool_shape(call.in(0).shape, window);
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, out));
  return call.node.op == "MaxPool" ? set_output(call, 1, DType::i64, out) : Status{};
}

// The offset of a place in a plane, counted with the first dimension fastest.
std::int64_t column_major(std::int64_t at, const std::vector<std::int64_t>& sizes) {
  std::int64_t offset = 0;
  std::int64_t scale = 1;
  for (auto d : sizes) scale *= d;
  for (std::size_t d = sizes.size(); d-- > 0;) {
    scale /= sizes[d];
    offset += at % sizes[d] * scale;
    at /= sizes[d];
  }
  return offset;
}

Result<KernelPtr> make_max_pool(const KernelCall& c) {
  FALAJ_ASSIGN(auto window, pool_window(c));
  FALAJ_ASSIGN(auto order, attr_int(c.node, "storage_order", 0));
  return dispatch<float, double, std::int32_t>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([window, order, planes = c.in(0).shape[0] * c.in(0).shape[1], two = c.outputs.size() > 1](const Io& io) {
      std::int64_t in = window.in_elements();
      std::int64_t out = window.out_elements();
      std::vector<Meeting> pairs;
      for (std::int64_t o = 0; o < out; ++o) {
        meetings(window, o, pairs);
        for (std::int64_t p = 0; p < planes; ++p) {
          const T* x = io.input<T>(0) + p * in;
          T best = std::numeric_limits<T>::lowest();
          if constexpr (std::is_floating_point_v<T>) best = -std::numeric_limits<T>::infinity();
          std::int64_t where = -1;
          for (const Meeting& m : pairs) {
            if (where >= 0 && !(x[m.in] > best) && x[m.in] == x[m.in]) continue;
            best = x[m.in];
            where = m.in;
          }
          if (io.out[0] != nullptr) io.output<T>(0)[p * out + o] = best;
          if (two && io.out[1] != nullptr)
            io.output<std::int64_t>(1)[p * out + o] = p * in + (order == 0 || where < 0 ? where : column_major(where, window.in));
        }
      }
    });
  });
}

// With dilations, windows that reach beyond the padding at the end (ceil_mode) are divided by their places within it, or by all of
// them: versions of the standard differ. Without dilations the first is meant, as PyTorch has it.
bool divisor_is_unsettled(const Window& w) {
  for (std::size_t d = 0; d < w.rank(); ++d) {
    bool beyond = (w.out[d] - 1) * w.strides[d] + w.extent(d) > w.in[d] + w.pad_begin[d] + w.pad_end[d];
    if (beyond && w.dilations[d] > 1) return true;
  }
  return false;
}
Result<KernelPtr> make_mean_pool(const KernelCall& c) {
  FALAJ_ASSIGN(auto window, pool_window(c));
  FALAJ_ASSIGN(auto padded, attr_int(c.node, "count_include_pad", 0));
  FALAJ_ASSIGN(auto power, attr_int(c.node, "p", 2));
  bool norm = c.node.op == "LpPool";
  if (padded != 0 && !norm && divisor_is_unsettled(window))
    return Error{ErrorCode::unimplemented, "count_include_pad with ceil_mode and dilations, where a window reaches beyond the padding"};
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel(
        [window, padded, norm, power = static_cast<double>(power), planes = c.in(0).shape[0] * c.in(0).shape[1]](const Io& io) {
          std::int64_t in = window.in_elements();
          std::int64_t out = window.out_elements();
          std::vector<Meeting> pairs;
          for (std::int64_t o = 0; o < out; ++o) {
            meetings(window, o, pairs);
            auto count = static_cast<T>(padded != 0 ? padded_count(window, o) : static_cast<std::int64_t>(pairs.size()));
            for (std::int64_t p = 0; p < planes; ++p) {
              T sum = 0;
              for (const Meeting& m : pairs) {
                T x = io.input<T>(0)[p * in + m.in];
                sum += norm ? std::pow(std::abs(x), power) : x;
              }
              io.output<T>(0)[p * out + o] = norm ? std::pow(sum, 1 / power) : (count == 0 ? 0 : sum / count);
            }
          }
        });
  });
}

// --- over whole planes --------------------------------------------------------------------------------------------------------

Status infer_global(InferCall& call) {
  FALAJ_TRY(infer_float(call));
  Shape out = call.in(0).shape;
  if (out.rank() < 3) return invalid(format("the input {} needs a batch, channels and at least one spatial dimension", to_string(out)));
  for (std::size_t d = 2; d < out.rank(); ++d) out[d] = 1;
  return set_output(call, 0, call.in(0).dtype, out);
}
Result<KernelPtr> make_global(const KernelCall& c) {
  FALAJ_ASSIGN(auto power, attr_int(c.node, "p", 2));
  const Shape& in = c.in(0).shape;
  int kind = c.node.op == "GlobalMaxPool" ? 0 : (c.node.op == "GlobalAveragePool" ? 1 : 2);
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([kind, power = static_cast<double>(power), planes = in[0] * in[1], n = in.elements(2, in.rank())](const Io& io) {
      for (std::int64_t p = 0; p < planes; ++p) {
        const T* x = io.input<T>(0) + p * n;
        T value = kind == 0 ? -std::numeric_limits<T>::infinity() : 0;
        for (std::int64_t i = 0; i < n; ++i) {
          if (kind == 0) value = x[i] > value || x[i] != x[i] ? x[i] : value;
          if (kind != 0) value += kind == 1 ? x[i] : std::pow(std::abs(x[i]), power);
        }
        io.output<T>(0)[p] = kind == 0 ? value : (kind == 1 ? value / static_cast<T>(n) : std::pow(value, 1 / power));
      }
    });
  });
}

// --- gradients: dy, x, y -> dx; the attribute `function` names the pool ------------------------------------------------------------

Result<Window> pooled_window(const OpCall& call, std::string_view op) {
  return op.starts_with("Global") ? whole_plane(call.in(0).shape) : pool_window(call);
}
Result<Window> grad_window(const OpCall& call, std::string_view op) {
  const std::array<ValueType, 1> forward = {call.in(1)};
  return pooled_window(OpCall{call.node, forward, call.opset}, op);
}
Status infer_pool_grad(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(const auto op, attr_string(call.node, "function"));
  FALAJ_ASSIGN(auto window, grad_window(call, op));
  if (call.in(0).shape != pool_shape(call.in(1).shape, window) || call.in(2).shape != call.in(0).shape)
    return invalid("the gradient does not fit the pool");
  return set_output(call, 0, call.in(0).dtype, call.in(1).shape);
}
Result<KernelPtr> make_pool_grad(const KernelCall& c) {
  FALAJ_ASSIGN(const auto op, attr_string(c.node, "function"));
  FALAJ_ASSIGN(auto window, grad_window(c, op));
  FALAJ_ASSIGN(auto padded, attr_int(c.node, "count_include_pad", 0));
  FALAJ_ASSIGN(auto power, attr_int(c.node, "p", 2));
  enum class Kind : std::uint8_t { max, mean, norm };
  const Kind kind = op.ends_with("MaxPool") ? Kind::max : (op.ends_with("AveragePool") ? Kind::mean : Kind::norm);
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([window, kind, padded, p = static_cast<double>(power), planes = c.in(1).shape[0] * c.in(1).shape[1]](const Io& io) {
      std::int64_t in = window.in_elements();
      std::int64_t out = window.out_elements();
      std::fill_n(io.output<T>(0), planes * in, T{0});
      std::vector<Meeting> pairs;
      for (std::int64_t o = 0; o < out; ++o) {
        meetings(window, o, pairs);
        if (pairs.empty()) continue;
        auto count = static_cast<T>(padded != 0 ? padded_count(window, o) : static_cast<std::int64_t>(pairs.size()));
        for (std::int64_t plane = 0; plane < planes; ++plane) {
          const T* x = io.input<T>(1) + plane * in;
          T* dx = io.output<T>(0) + plane * in;
          T dy = io.input<T>(0)[plane * out + o];
          T y = io.input<T>(2)[plane * out + o];
          if (kind == Kind::max) {  // to the first that attains it, as the pool's own indices have it; NaN attains itself
            auto hit = std::ranges::find_if(pairs, [&](const Meeting& m) { return x[m.in] == y || (x[m.in] != x[m.in] && y != y); });
            if (hit != pairs.end()) dx[hit->in] += dy;
            continue;
          }
          for (const Meeting& m : pairs) {
            T size = std::abs(x[m.in]);
            T slope = kind == Kind::mean ? 1 / count : (y == 0 ? 0 : std::copysign(std::pow(size / y, p - 1), x[m.in]));
            dx[m.in] += dy * slope;
          }
        }
      }
    });
  });
}
Status grad_pool(GradientCall& g) {
  if (g.dy().empty()) return g.stop(), Status{};
  Attributes attributes = g.node().attributes;
  attributes.insert_or_assign("function", g.node().op);
  return g.set(0, g.add_falaj("PoolGrad", {g.dy(), g.input(0), g.output(0)}, std::move(attributes))), Status{};
}

// --- MaxUnpool ----------------------------------------------------------------------------------------------------------------

// The shape that the pool came from: indices are places in it.
Result<Shape> pooled_from(const OpCall& call) {
  const Shape& in = call.in(0).shape;
  if (in.rank() < 3 || call.in(1).shape != in) return invalid("input and indices must have one shape, with spatial dimensions");
  std::size_t n = in.rank() - 2;
  FALAJ_ASSIGN(auto kernel, attr_ints(call.node, "kernel_shape"));
  FALAJ_ASSIGN(auto strides, attr_ints(call.node, "strides", std::vector<std::int64_t>(n, 1)));
  FALAJ_ASSIGN(auto pads, attr_ints(call.node, "pads", std::vector<std::int64_t>(2 * n, 0)));
  if (kernel.size() != n || strides.size() != n || pads.size() != 2 * n) return invalid("the attributes do not fit the input");
  Shape out = in;
  for (std::size_t d = 0; d < n; ++d) {
    bool bad = kernel[d] < 1 || strides[d] < 1 || kernel[d] > (1 << 20) || strides[d] > (1 << 20) || std::abs(pads[d]) > (1 << 20) ||
               std::abs(pads[d + n]) > (1 << 20);
    if (bad) return invalid("the attributes are out of range");
    out[d + 2] = (in[d + 2] - 1) * strides[d] + kernel[d] - pads[d] - pads[d + n];
    if (out[d + 2] < 0) return invalid("the output would be empty");
  }
  return out;
}
Status infer_unpool(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 1, {DType::i64}));
  FALAJ_ASSIGN(Shape from, pooled_from(call));
  if (!call.has(2)) return set_output(call, 0, call.in(0).dtype, from);
  FALAJ_ASSIGN(auto wanted, known_ints(call, 2, "the output shape"));
  if (wanted.size() != from.rank()) return invalid("the output shape does not fit the input");
  for (std::size_t d = 0; d < wanted.size(); ++d) {
    if (wanted[d] < from[d]) return invalid("the output shape is smaller than what was pooled");
  }
  return set_output(call, 0, call.in(0).dtype, Shape(wanted));
}
Result<KernelPtr> make_unpool(const KernelCall& c) {
  FALAJ_ASSIGN(Shape from, pooled_from(c));
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return make_kernel([from, n = c.in(0).shape.elements(), out = c.outputs[0].shape](const Io& io) {
      std::fill_n(io.output<T>(0), out.elements(), T{});
      Strides inner = row_major(from);
      Strides outer = row_major(out);
      for (std::int64_t i = 0; i < n; ++i) {
        std::int64_t rest = io.input<std::int64_t>(1)[i];
        if (rest < 0 || rest >= from.elements()) return io.fail(format("index {} at position {} is outside {}", rest, i, to_string(from)));
        std::int64_t at = 0;
        for (std::size_t d = 0; d < from.rank(); ++d) {
          at += rest / inner[d] * outer[d];
          rest %= inner[d];
        }
        io.output<T>(0)[at] = io.input<T>(0)[i];
      }
    });
  });
}

// --- Col2Im: blocks are added up to an image ---------------------------------------------------------------------------------------

struct Blocks {
  Window window;
  std::int64_t batch = 0, channels = 0;
};
Result<Blocks> blocks(const OpCall& call) {
  FALAJ_ASSIGN(auto image, known_ints(call, 1, "the image's shape"));
  FALAJ_ASSIGN(auto block, known_ints(call, 2, "the block's shape"));
  const Shape& in = call.in(0).shape;
  if (in.rank() != 3 || image.empty() || image.size() + 2 > kRankMax) return invalid("the input must have 3 dimensions");
  Blocks b;
  for (auto d : image) {
    if (d < 0 || d > (std::int64_t{1} << 32)) return invalid("a size of the image is out of range");
  }
  FALAJ_ASSIGN(b.window, sliding_window(call, image, block));
  if (in[1] % b.window.kernel_elements() != 0 || in[2] != b.window.out_elements())
    return invalid(
        format("the input {} does not fit {} blocks of {} elements", to_string(in), b.window.out_elements(), b.window.kernel_elements()));
  b.batch = in[0];
  b.channels = in[1] / b.window.kernel_elements();
  return b;
}
Status infer_col2im(InferCall& call) {
  FALAJ_ASSIGN(auto b, blocks(call));
  Shape out{b.batch, b.channels};
  for (auto d : b.window.in) out.push_back(d);
  return set_output(call, 0, call.in(0).dtype, out);
}
Result<KernelPtr> make_col2im(const KernelCall& c) {
  FALAJ_ASSIGN(auto b, blocks(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([b](const Io& io) {
      std::int64_t in = b.window.in_elements();
      std::int64_t out = b.window.out_elements();
      std::int64_t kernel = b.window.kernel_elements();
      std::fill_n(io.output<T>(0), b.batch * b.channels * in, T{0});
      std::vector<Meeting> pairs;
      for (std::int64_t o = 0; o < out; ++o) {
        meetings(b.window, o, pairs);
        for (std::int64_t p = 0; p < b.batch * b.channels; ++p) {
          for (const Meeting& m : pairs) io.output<T>(0)[p * in + m.in] += io.input<T>(0)[(p * kernel + m.kernel) * out + o];
        }
      }
    });
  });
}

constexpr OpDef kOps[] = {
    {kOnnx, "MaxPool", 1, 1, 1, 2, infer_pool, make_max_pool, grad_pool},
    {kOnnx, "AveragePool", 1, 1, 1, 1, infer_pool, make_mean_pool, grad_pool},
    {kOnnx, "LpPool", 1, 1, 1, 1, infer_pool, make_mean_pool, grad_pool},
    {kOnnx, "GlobalMaxPool", 1, 1, 1, 1, infer_global, make_global, grad_pool},
    {kOnnx, "GlobalAveragePool", 1, 1, 1, 1, infer_global, make_global, grad_pool},
    {kOnnx, "GlobalLpPool", 1, 1, 1, 1, infer_global, make_global, grad_pool},
    {kOnnx, "MaxUnpool", 2, 3, 1, 1, infer_unpool, make_unpool},
    {kOnnx, "Col2Im", 3, 3, 1, 1, infer_col2im, make_col2im},
    {kFalaj, "PoolGrad", 3, 3, 1, 1, infer_pool_grad, make_pool_grad},
};

}  // namespace

std::span<const OpDef> pool_ops() { return kOps; }

}  // namespace falaj::kernels
