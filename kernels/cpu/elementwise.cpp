// Vectorised f32 element-wise kernels, for AVX2 and AVX-512.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/named_kernel.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

enum class Binary : std::uint8_t { add, sub, mul, div, min, max, prelu, relu_slope, sigmoid_slope, tanh_slope };
enum class Unary : std::uint8_t {
  relu,
  sigmoid,
  tanh,
  exp,
  log,
  sqrt,
  neg,
  abs,
  reciprocal,
  floor,
  ceil,
  round,
  erf,
  gelu,
  gelu_by_tanh,
  leaky_relu,
  elu,
  softplus,
  softsign,
  hard_sigmoid,
  hard_swish,
  swish,
  mish,
  clip,
  square,
  cube,
  power_of_half
};
constexpr std::size_t kBinaryOps = static_cast<std::size_t>(Binary::tanh_slope) + 1;
constexpr std::size_t kUnaryOps = static_cast<std::size_t>(Unary::power_of_half) + 1;

using BinaryRun = void (*)(const float*, bool, const float*, bool, float*, std::int64_t);
using UnaryRun = void (*)(const float*, float*, std::int64_t, float, float);

#define FALAJ_BODY "kernels/cpu/elementwise_body.hpp"
#include "kernels/cpu/both_widths.hpp"

BinaryRun run_of(Binary op) { return (has_avx512() ? lanes16::kBinary : lanes8::kBinary)[static_cast<std::size_t>(op)]; }
UnaryRun run_of(Unary op) { return (has_avx512() ? lanes16::kUnary : lanes8::kUnary)[static_cast<std::size_t>(op)]; }

template <class F>
KernelPtr loop(F f) {
  return named_kernel(has_avx512() ? "avx512 loop" : "avx2 loop", std::move(f));
}

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 loop: {}", why)}; }

// --- two operands -----------------------------------------------------------------------------------------------------------------

constexpr std::int64_t kShort = 8;          // runs below this are put together
constexpr std::int64_t kTogether = 64 * 8;  // in buffers of so many elements

// Rows of `n` elements, of which operands lie `step` apart (0: one number for all), and their rows `row`.
struct Operand {
  std::int64_t row, step;
};

// An operand's next `rows` rows of n < kShort elements, one after another; `to` has room for a vector more.
FALAJ_AVX2 void put_together(const float* from, const Operand& operand, std::int64_t rows, std::int64_t n, float* to) {
  const __m256i lanes = first_lanes(n);
  for (std::int64_t r = 0; r < rows; ++r, from += operand.row) {
    _mm256_storeu_ps(to + r * n, operand.step == 0 ? _mm256_broadcast_ss(from) : _mm256_maskload_ps(from, lanes));
  }
}

// y = f(a, b), operands broadcast: blocks of rows, at the places that a walk over the dimensions before them visits.
class BinaryLoop final {
 public:
  BinaryLoop(const Shape& out, const Shape& a, const Shape& b, BinaryRun run) : run_(run), walk_(outside(out, a, b)) {}

  void operator()(const Io& io, const float* a, const float* b, float* y) const {
    walk_([&](const auto& at, std::int64_t many, const auto& step) {
      for (std::int64_t i = 0; i < many; ++i) block(io, a + at[1] + i * step[1], b + at[2] + i * step[2], y + at[0] + i * step[0]);
    });
  }

 private:
  // Leaves the two innermost dimensions to block(), neighbours joined where both operands walk them evenly.
  Walk<3> outside(const Shape& out, const Shape& a, const Shape& b) {
    Shape dims = out;
    const std::array<Strides, 3> strides{row_major(out), broadcast_strides(a, out), broadcast_strides(b, out)};
    std::size_t d = out.rank();
    while (d > 0 && dims[d - 1] == 1) --d;
    if (d == 0 || out.elements() == 0) return Walk<3>(dims, strides);
    const auto take = [&](std::int64_t& size, Operand& first, Operand& second, std::int64_t Operand::* along) {
      size = 1;
      while (d > 0) {
        const std::size_t k = d - 1;
        const bool joins = strides[1][k] == first.*along * size && strides[2][k] == second.*along * size;
        if (size == 1 && dims[k] > 1) {
          first.*along = strides[1][k];
          second.*along = strides[2][k];
        } else if (dims[k] > 1 && !joins) {
          break;
        }
        size *= std::exchange(dims[k], 1);
        --d;
      }
    };
    take(n_, a_, b_, &Operand::step);
    take(rows_, a_, b_, &Operand::row);
    return Walk<3>(dims, strides);
  }

  void block(const Io& io, const float* a, const float* b, float* y) const {
    if (rows_ == 1) {
      in_ranges(io, n_, kPartWork, [&](std::int64_t first, std::int64_t last) {
        run_(a + first * a_.step, a_.step == 0, b + first * b_.step, b_.step == 0, y + first, last - first);
      });
      return;
    }
    in_ranges(io, rows_, part_rows(n_), [&](std::int64_t first, std::int64_t last) {
      if (n_ < kShort) return short_rows(a, b, y, first, last);
      for (std::int64_t r = first; r < last; ++r) run_(a + r * a_.row, a_.step == 0, b + r * b_.row, b_.step == 0, y + r * n_, n_);
    });
  }

  void short_rows(const float* a, const float* b, float* y, std::int64_t first, std::int64_t last) const {
    float together[2][kTogether + kShort];
    const std::int64_t most = kTogether / n_;
    for (std::int64_t r = first; r < last; r += most) {
      const std::int64_t rows = std::min(most, last - r);
      const auto side = [&](const float* from, const Operand& operand, float* to) {
        from += r * operand.row;
        if (operand.step == 1 && operand.row == n_) return from;
        put_together(from, operand, rows, n_, to);
        return static_cast<const float*>(to);
      };
      run_(side(a, a_, together[0]), false, side(b, b_, together[1]), false, y + r * n_, rows * n_);
    }
  }

  BinaryRun run_;
  std::int64_t n_ = 1, rows_ = 1;
  Operand a_{}, b_{};
  Walk<3> walk_;  // after what outside() sets
};

// --- Where ------------------------------------------------------------------------------------------------------------------------

FALAJ_AVX2 void where_run(const bool* condition, bool condition_one, const float* a, bool a_one, const float* b, bool b_one, float* y,
                          std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 8) {
    __m256i mask = _mm256_set1_epi32(*condition ? 1 : 0);
    if (!condition_one) {
      std::uint64_t eight = 0;
      std::memcpy(&eight, condition + i, static_cast<std::size_t>(std::min<std::int64_t>(n - i, 8)));
      mask = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(eight)));
    }
    const __m256 x = a_one ? _mm256_broadcast_ss(a) : load(__m256{}, a + i, n - i);
    const __m256 z = b_one ? _mm256_broadcast_ss(b) : load(__m256{}, b + i, n - i);
    store(y + i, _mm256_blendv_ps(z, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(mask, _mm256_setzero_si256()))), n - i);
  }
}

// --- one operand ------------------------------------------------------------------------------------------------------------------

struct Named {
  std::string_view op;
  Unary unary;
  std::string_view p_name = {}, q_name = {};  // attributes
  double p = 0, q = 1;
};
constexpr Named kNamed[] = {
    {"Relu", Unary::relu},
    {"Sigmoid", Unary::sigmoid},
    {"Tanh", Unary::tanh},
    {"Exp", Unary::exp},
    {"Log", Unary::log},
    {"Sqrt", Unary::sqrt},
    {"Neg", Unary::neg},
    {"Abs", Unary::abs},
    {"Reciprocal", Unary::reciprocal},
    {"Floor", Unary::floor},
    {"Ceil", Unary::ceil},
    {"Round", Unary::round},
    {"Erf", Unary::erf},
    {"Gelu", Unary::gelu},
    {"LeakyRelu", Unary::leaky_relu, "alpha", {}, static_cast<double>(0.01F)},
    {"Elu", Unary::elu, "alpha", {}, 1.0},
    {"Selu", Unary::elu, "alpha", "gamma", 1.67326319217681884765625, 1.05070102214813232421875},
    {"Softplus", Unary::softplus},
    {"Softsign", Unary::softsign},
    {"HardSigmoid", Unary::hard_sigmoid, "alpha", "beta", 0.2, 0.5},
    {"HardSwish", Unary::hard_swish},
    {"Swish", Unary::swish, "alpha", {}, 1.0},
    {"Mish", Unary::mish},
};

KernelPtr unary_loop(UnaryRun run, std::int64_t n, float p, float q) {
  return loop([run, n, p, q](const Io& io) {
    in_ranges(io, n, kPartWork, [&](std::int64_t first, std::int64_t last) {
      run(io.input<float>(0) + first, io.output<float>(0) + first, last - first, p, q);
    });
  });
}

}  // namespace

Result<KernelPtr> make_binary(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  if (call.opset < 7) return refuse("operands of this opset are aligned by an attribute");
  const std::string_view op = call.node.op;
  const Binary binary = op == "Add"   ? Binary::add
                        : op == "Sub" ? Binary::sub
                        : op == "Mul" ? Binary::mul
                        : op == "Div" ? Binary::div
                                      : Binary::prelu;
  return loop([f = BinaryLoop(call.outputs[0].shape, call.in(0).shape, call.in(1).shape, run_of(binary))](const Io& io) {
    f(io, io.input<float>(0), io.input<float>(1), io.output<float>(0));
  });
}

// Pairwise from the left, as the reference has it.
Result<KernelPtr> make_extremum(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  if (call.inputs.size() < 2) return refuse("one operand is nothing to compare");
  const BinaryRun run = run_of(call.node.op == "Min" ? Binary::min : Binary::max);
  const Shape& out = call.outputs[0].shape;
  std::vector<BinaryLoop> loops;
  for (std::size_t i = 1; i < call.inputs.size(); ++i) loops.emplace_back(out, i == 1 ? call.in(0).shape : out, call.in(i).shape, run);
  return loop([loops = std::move(loops)](const Io& io) {
    auto* y = io.output<float>(0);
    for (std::size_t i = 0; i < loops.size(); ++i) loops[i](io, i == 0 ? io.input<float>(0) : y, io.input<float>(i + 1), y);
  });
}

Result<KernelPtr> make_where(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  const Shape& out = call.outputs[0].shape;
  if (size_of(call.in(1).dtype) != sizeof(float)) return refuse("only elements of four bytes");
  return loop([walk = broadcast_walk<4>(out, {&out, &call.in(0).shape, &call.in(1).shape, &call.in(2).shape})](const Io& io) {
    walk([&](const auto& at, std::int64_t n, const auto& step) {
      in_ranges(io, n, kPartWork, [&](std::int64_t first, std::int64_t last) {
        where_run(io.input<bool>(0) + at[1] + first * step[1], step[1] == 0, io.input<float>(1) + at[2] + first * step[2], step[2] == 0,
                  io.input<float>(2) + at[3] + first * step[3], step[3] == 0, io.output<float>(0) + at[0] + first, last - first);
      });
    });
  });
}

Result<KernelPtr> make_unary(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  const auto* named = std::ranges::find(kNamed, call.node.op, &Named::op);
  if (named == std::end(kNamed)) return refuse("not a function of one element");
  Unary unary = named->unary;
  if (unary == Unary::gelu) {
    FALAJ_ASSIGN(const auto form, attr_string(call.node, "approximate", "none"));
    if (form == "tanh") unary = Unary::gelu_by_tanh;
  }
  double p = named->p;
  double q = named->q;
  if (!named->p_name.empty()) {
    FALAJ_ASSIGN(p, attr_float(call.node, named->p_name, p));
  }
  if (!named->q_name.empty()) {
    FALAJ_ASSIGN(q, attr_float(call.node, named->q_name, q));
  }
  return unary_loop(run_of(unary), call.in(0).shape.elements(), static_cast<float>(p), static_cast<float>(q));
}

Result<KernelPtr> make_clip(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  const UnaryRun run = run_of(Unary::clip);
  const std::int64_t n = call.in(0).shape.elements();
  constexpr auto kInfinity = static_cast<double>(__builtin_inff());
  if (call.opset < 11) {
    FALAJ_ASSIGN(const double low, attr_float(call.node, "min", -kInfinity));
    FALAJ_ASSIGN(const double high, attr_float(call.node, "max", kInfinity));
    if (!(low <= high)) return refuse("bounds in the wrong order");
    return unary_loop(run, n, static_cast<float>(low), static_cast<float>(high));
  }
  return loop([run, n, low = call.has(1), high = call.has(2)](const Io& io) {
    const float p = low ? *io.input<float>(1) : -__builtin_inff();
    const float q = high ? *io.input<float>(2) : __builtin_inff();
    in_ranges(io, n, kPartWork, [&](std::int64_t first, std::int64_t last) {
      run(io.input<float>(0) + first, io.output<float>(0) + first, last - first, p, q);
    });
  });
}

Result<KernelPtr> make_pow(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  if (call.in(1).constant == nullptr || call.in(1).shape.elements() != 1) return refuse("only by one number known before the run");
  FALAJ_ASSIGN(const double exponent, known_scalar(call, 1, "the exponent"));
  struct Power {
    double exponent;
    Unary unary;
  };
  constexpr std::array kPowers = {Power{2, Unary::square}, Power{3, Unary::cube}, Power{0.5, Unary::power_of_half},
                                  Power{-1, Unary::reciprocal}};
  const auto* power = std::ranges::find(kPowers, exponent, &Power::exponent);
  if (power == kPowers.end()) return refuse(format("not by {}", exponent));
  return unary_loop(run_of(power->unary), call.in(0).shape.elements(), 0, 0);
}

Result<KernelPtr> make_slope(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  const std::string_view op = call.node.op;
  const BinaryRun run = run_of(op == "ReluGrad" ? Binary::relu_slope : op == "SigmoidGrad" ? Binary::sigmoid_slope : Binary::tanh_slope);
  return loop([run, n = call.in(0).shape.elements()](const Io& io) {
    in_ranges(io, n, kPartWork, [&](std::int64_t first, std::int64_t last) {
      run(io.input<float>(0) + first, false, io.input<float>(1) + first, false, io.output<float>(0) + first, last - first);
    });
  });
}

}  // namespace falaj::kernels::cpu
