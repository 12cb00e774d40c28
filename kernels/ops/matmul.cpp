// Matrix products: MatMul, Gemm and the fused ai.falaj MatMul (transposed operands, scale, bias, activation), which is what gradients
// are written in and what fusion makes.
#include "kernels/ops/matmul.hpp"

#include <algorithm>

#include "kernels/ops/activate.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

struct Operand {
  std::int64_t rows = 0, cols = 0;  // after transposition
  std::int64_t row_stride = 0, col_stride = 0;
  Shape batch;
};

Operand operand(const Shape& shape, bool transposed) {
  Operand o;
  std::size_t r = shape.rank();
  o.rows = shape[r - 2];
  o.cols = shape[r - 1];
  o.row_stride = shape[r - 1];
  o.col_stride = 1;
  if (transposed) {
    std::swap(o.rows, o.cols);
    std::swap(o.row_stride, o.col_stride);
  }
  o.batch = Shape(shape.dims().first(r - 2));
  return o;
}

Status set_bias(MatMulSpec& spec, const Shape& bias) {
  Shape matrix{spec.m, spec.n};
  auto both = broadcast(matrix, bias);
  if (!both || *both != matrix) return invalid(format("the bias {} does not broadcast to [{}, {}]", to_string(bias), spec.m, spec.n));
  auto strides = broadcast_strides(bias, matrix);
  spec.has_bias = true;
  spec.bias_row = strides[0];
  spec.bias_col = strides[1];
  return {};
}

Status set_batch(MatMulSpec& spec, const Operand& a, const Operand& b) {
  FALAJ_ASSIGN(spec.batch, broadcast(a.batch, b.batch));
  auto fill = [&](const Operand& o, auto& out) {
    Strides own = broadcast_strides(o.batch, spec.batch);
    for (std::size_t i = 0; i < spec.batch.rank(); ++i) out[i] = own[i] * o.rows * o.cols;
  };
  fill(a, spec.a_batch);
  fill(b, spec.b_batch);
  // One right operand for all: the left's batch is just more rows.
  if (b.batch.elements() == 1 && a.row_stride == a.cols && a.batch.elements() == spec.batch.elements()) {
    spec.m *= spec.batch.elements();
    spec.batch = Shape{};
  }
  return {};
}

}  // namespace

Result<Activation> activation_of(std::string_view op) {
  if (op.empty()) return Activation::none;
  if (op == "Relu") return Activation::relu;
  if (op == "LeakyRelu") return Activation::leaky_relu;
  if (op == "Sigmoid") return Activation::sigmoid;
  if (op == "Tanh") return Activation::tanh;
  if (op == "Gelu") return Activation::gelu;
  if (op == "Clip") return Activation::clip;
  if (op == "HardSwish") return Activation::hard_swish;
  if (op == "Swish") return Activation::swish;
  return invalid(format("'{}' is no activation that a product can carry", op));
}

Result<MatMulSpec> matmul_spec(const OpCall& call) {
  MatMulSpec spec;
  const Node& node = call.node;
  bool gemm = node.op == "Gemm";
  bool fused = node.domain == kFalaj;
  std::int64_t trans_a = 0;
  std::int64_t trans_b = 0;
  if (gemm || fused) {
    FALAJ_ASSIGN(trans_a, attr_int(node, "transA", 0));
    FALAJ_ASSIGN(trans_b, attr_int(node, "transB", 0));
    FALAJ_ASSIGN(spec.alpha, attr_float(node, "alpha", 1.0));
    FALAJ_ASSIGN(spec.beta, attr_float(node, "beta", 1.0));
  }
  if (fused) {
    FALAJ_ASSIGN(auto activation, attr_string(node, "activation", ""));
    FALAJ_ASSIGN(spec.activation, activation_of(activation));
    FALAJ_ASSIGN(spec.activation_alpha, attr_float(node, "activation_alpha", static_cast<double>(0.01F)));
  }
  Shape sa = call.in(0).shape;
  Shape sb = call.in(1).shape;
  if (sa.rank() == 0 || sb.rank() == 0) return invalid("a scalar cannot be an operand of a matrix product");
  if (gemm && (sa.rank() != 2 || sb.rank() != 2)) return invalid(format("A {} and B {} must be matrices", to_string(sa), to_string(sb)));
  bool vector_a = sa.rank() == 1;
  bool vector_b = sb.rank() == 1;
  if (vector_a) sa.insert(0, 1);
  if (vector_b) sb.push_back(1);
  Operand a = operand(sa, trans_a != 0);
  Operand b = operand(sb, trans_b != 0);
  if (a.cols != b.rows) {
    return invalid(format("A {} and B {} do not fit: the inner sizes {} and {} differ", to_string(call.in(0).shape),
                          to_string(call.in(1).shape), a.cols, b.rows));
  }
  spec.m = a.rows;
  spec.k = a.cols;
  spec.n = b.cols;
  spec.a_row = a.row_stride;
  spec.a_col = a.col_stride;
  spec.b_row = b.row_stride;
  spec.b_col = b.col_stride;
  FALAJ_ASSIGN(spec.out, broadcast(a.batch, b.batch));
  if (spec.out.rank() + 2 > kRankMax) return invalid("the operands have too many dimensions");
  if (!vector_a) spec.out.push_back(spec.m);
  if (!vector_b) spec.out.push_back(spec.n);
  FALAJ_TRY(set_batch(spec, a, b));
  if (call.has(2)) FALAJ_TRY(set_bias(spec, call.in(2).shape));
  return spec;
}

BatchOffsets batch_offsets(const MatMulSpec& spec, std::int64_t index) {
  BatchOffsets at{0, 0};
  for (std::size_t d = spec.batch.rank(); d-- > 0;) {
    std::int64_t i = index % spec.batch[d];
    index /= spec.batch[d];
    at.a += i * spec.a_batch[d];
    at.b += i * spec.b_batch[d];
  }
  return at;
}

namespace {

Status infer_matmul(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  if (call.has(2)) FALAJ_TRY(check_same_dtype(call, 0, 2));
  FALAJ_ASSIGN(auto spec, matmul_spec(call));
  return set_output(call, 0, call.in(0).dtype, spec.out);
}

template <class T>
void multiply(const MatMulSpec& s, const T* a, const T* b, const T* bias, T* y) {
  using Sum =
      std::conditional_t<std::is_floating_point_v<T>, double, std::make_unsigned_t<std::conditional_t<std::is_integral_v<T>, T, int>>>;
  for (std::int64_t i = 0; i < s.m; ++i) {
    for (std::int64_t j = 0; j < s.n; ++j) {
      Sum sum = 0;
      for (std::int64_t k = 0; k < s.k; ++k)
        sum += static_cast<Sum>(a[i * s.a_row + k * s.a_col]) * static_cast<Sum>(b[k * s.b_row + j * s.b_col]);
      if constexpr (std::is_floating_point_v<T>) {
        sum *= s.alpha;
        if (s.has_bias) sum += s.beta * static_cast<double>(bias[i * s.bias_row + j * s.bias_col]);
      } else {
        if (s.alpha != 1.0) sum = static_cast<Sum>(static_cast<T>(s.alpha * static_cast<double>(static_cast<T>(sum))));
        if (s.has_bias) sum += static_cast<Sum>(static_cast<T>(s.beta * static_cast<double>(bias[i * s.bias_row + j * s.bias_col])));
      }
      y[i * s.n + j] = activate(static_cast<T>(sum), s.activation, s.activation_alpha);
    }
  }
}

Result<KernelPtr> make_matmul(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, matmul_spec(c));
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return make_kernel([spec](const Io& io) {
      for (std::int64_t i = 0; i < spec.batches(); ++i) {
        auto at = batch_offsets(spec, i);
        multiply(spec, io.input<T>(0) + at.a, io.input<T>(1) + at.b, spec.has_bias ? io.input<T>(2) : nullptr,
                 io.output<T>(0) + i * spec.m * spec.n);
      }
    });
  });
}

// --- gradients ------------------------------------------------------------------------------------------------------------

std::string product(GradientCall& g, const std::string& a, bool ta, const std::string& b, bool tb, double alpha) {
  Attributes attributes;
  if (ta) attributes.emplace("transA", std::int64_t{1});
  if (tb) attributes.emplace("transB", std::int64_t{1});
  if (alpha != 1.0) attributes.emplace("alpha", static_cast<float>(alpha));
  return g.add_falaj("MatMul", {a, b}, std::move(attributes));
}

// Y = op(A) op(B) with op a transposition or nothing; dA and dB are products again, of matrices that are already there.
Status grad_product(GradientCall& g, bool ta, bool tb, double alpha) {
  std::string a = g.input(0);
  std::string b = g.input(1);
  std::string dy = g.dy();
  bool vector_a = g.input_type(0).shape.rank() == 1;
  bool vector_b = g.input_type(1).shape.rank() == 1;
  if (vector_b) {
    b = g.add("Unsqueeze", {b, g.graph().add_initializer(g.graph().fresh("axes"), Tensor::vector<std::int64_t>({1}))});
    dy = g.add("Unsqueeze", {dy, g.graph().add_initializer(g.graph().fresh("axes"), Tensor::vector<std::int64_t>({-1}))});
  }
  if (vector_a) {
    a = g.add("Unsqueeze", {a, g.graph().add_initializer(g.graph().fresh("axes"), Tensor::vector<std::int64_t>({0}))});
    dy = g.add("Unsqueeze", {dy, g.graph().add_initializer(g.graph().fresh("axes"), Tensor::vector<std::int64_t>({-2}))});
  }
  // A shared operand's gradient is the sum over the batch; that of one that has the whole batch is as it is.
  const auto shared = [&](std::size_t i) {
    const auto batch = [](const Shape& shape) { return Shape(shape.dims().first(std::max<std::size_t>(shape.rank(), 2) - 2)); };
    const bool batched = g.input_type(0).shape.rank() > 2 || g.input_type(1).shape.rank() > 2;
    return batched && (vector_a || vector_b || batch(g.input_type(i).shape) != batch(g.output_type(0).shape));
  };
  auto finish = [&](std::size_t i, std::string d, const std::string& like, bool vector) {
    if (shared(i)) d = g.add_falaj("ReduceLike", {d, like});
    if (vector) d = g.add_falaj("ReshapeLike", {d, g.input(i)});
    g.set(i, std::move(d));
  };
  // That of the right one, which is weights mostly, comes first: what only it needs of the forward pass is free then.
  if (g.wants(1)) finish(1, tb ? product(g, dy, true, a, ta, alpha) : product(g, a, !ta, dy, false, alpha), b, vector_b);
  if (g.wants(0)) finish(0, ta ? product(g, b, tb, dy, true, alpha) : product(g, dy, false, b, !tb, alpha), a, vector_a);
  return {};
}

// With a shared two-dimensional right operand, both are seen as matrices first: one product instead of a batch of them and a sum.
Status grad_shared(GradientCall& g, bool tb, double alpha) {
  const std::string like_a = g.input(0);
  const auto flatten = [&](const std::string& x, std::size_t i) {
    const auto last = static_cast<std::int64_t>((i == 0 ? g.input_type(0) : g.output_type(0)).shape.rank()) - 1;
    return g.add("Flatten", {x}, attr("axis", last));
  };
  const std::string dy = flatten(g.dy(), 1);
  if (g.wants(1)) {
    const std::string a = flatten(like_a, 0);
    g.set(1, tb ? product(g, dy, true, a, false, alpha) : product(g, a, true, dy, false, alpha));
  }
  if (g.wants(0)) g.set(0, g.add_falaj("ReshapeLike", {product(g, dy, false, g.input(1), !tb, alpha), like_a}));
  return {};
}
bool is_shared(const GradientCall& g) { return g.input_type(0).shape.rank() > 2 && g.input_type(1).shape.rank() == 2; }

Status grad_matmul(GradientCall& g) { return is_shared(g) ? grad_shared(g, false, 1.0) : grad_product(g, false, false, 1.0); }

Status grad_gemm(GradientCall& g) {
  const Node& node = g.node();
  if (node.domain == kFalaj && node.attributes.contains("activation"))
    return invalid("a fused product is differentiated before fusion, not after");
  FALAJ_ASSIGN(auto ta, attr_int(node, "transA", 0));
  FALAJ_ASSIGN(auto tb, attr_int(node, "transB", 0));
  FALAJ_ASSIGN(auto alpha, attr_float(node, "alpha", 1.0));
  FALAJ_ASSIGN(auto beta, attr_float(node, "beta", 1.0));
  FALAJ_TRY(ta == 0 && is_shared(g) ? grad_shared(g, tb != 0, alpha) : grad_product(g, ta != 0, tb != 0, alpha));
  if (!g.wants(2)) return {};
  std::string d = g.dy();
  if (beta != 1.0) d = g.add("Mul", {d, g.constant(beta, g.input_type(2).dtype)});
  g.set(2, reduce_to_input(g, std::move(d), 2));
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "MatMul", 2, 2, 1, 1, infer_matmul, make_matmul, grad_matmul},
    {kOnnx, "Gemm", 2, 3, 1, 1, infer_matmul, make_matmul, grad_gemm},
    {kFalaj, "MatMul", 2, 3, 1, 1, infer_matmul, make_matmul, grad_gemm},
};

}  // namespace

std::span<const OpDef> matmul_ops() { return kOps; }

}  // namespace falaj::kernels
