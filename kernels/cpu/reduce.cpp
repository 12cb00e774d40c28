// ReduceSum and ReduceMean over neighbouring dimensions, for AVX2. Sums are f64; what is one part follows from shapes alone, and a sum's
// order from how many numbers it has.
#include <cmath>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/lanes.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 sums: {}", why)}; }

// x [outer, size, inner] -> y [outer, inner], each sum divided by `divisor`.
struct Reduced {
  std::int64_t outer = 1, size = 1, inner = 1;
  double divisor = 1;
};

constexpr int kVectors = 4;
constexpr std::int64_t kColumns = 8 * kVectors;  // that are summed up together

FALAJ_AVX2 double sum_of_row(const float* x, std::int64_t n) {
  Double8 sum[kVectors];
  for (auto& s : sum) s = zeros();
  std::int64_t i = 0;
  for (; i + kColumns <= n; i += kColumns) {
    FALAJ_UNROLL
    for (int k = 0; k < kVectors; ++k) sum[k] = plus(sum[k], widened(_mm256_loadu_ps(x + i + 8 * k)));
  }
  for (; i < n; i += 8) sum[0] = plus(sum[0], widened(some8(x + i, n - i)));
  return total(plus(plus(sum[0], sum[1]), plus(sum[2], sum[3])));
}

class ReduceKernel final : public Kernel {
 public:
  explicit ReduceKernel(const Reduced& r) : r_(r) {}
  void run(const Io& io) const override {
    if (r_.inner == 1) {
      in_ranges(io, r_.outer, part_rows(r_.size), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i)
          io.output<float>(0)[i] = static_cast<float>(sum_of_row(io.input<float>(0) + i * r_.size, r_.size) / r_.divisor);
      });
      return;
    }
    const std::int64_t blocks = (r_.inner + kColumns - 1) / kColumns;
    in_ranges(io, r_.outer * blocks, part_rows(r_.size * std::min(r_.inner, kColumns)), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) sum_block(io, i / blocks, i % blocks * kColumns);
    });
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 sums"; }

 private:
  void sum_block(const Io& io, std::int64_t row, std::int64_t column) const {
    sum_columns(io.input<float>(0) + row * r_.size * r_.inner, r_.size, r_.inner, column, std::min(r_.inner, column + kColumns), r_.divisor,
                io.output<float>(0) + row * r_.inner);
  }

  Reduced r_;
};

}  // namespace

Result<KernelPtr> make_reduce(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 sums"));
  const Shape& in = call.in(0).shape;
  if (in.elements() == 0) return refuse("nothing to sum up");
  bool given = false;
  FALAJ_ASSIGN(const auto axes, known_axes(call, in.rank(), given));
  FALAJ_ASSIGN(const auto noop, attr_int(call.node, "noop_with_empty_axes", 0));
  std::vector<bool> summed(in.rank(), !given && noop == 0);
  for (const std::int64_t axis : axes) summed[static_cast<std::size_t>(axis)] = true;
  Reduced r;
  for (std::size_t d = 0; d < in.rank(); ++d) {
    if (in[d] == 1) continue;
    if (summed[d] && r.inner > 1) return refuse("only over dimensions that are neighbours");
    std::int64_t& size = summed[d] ? r.size : (r.size > 1 ? r.inner : r.outer);
    size *= in[d];
  }
  if (call.node.op == "ReduceMean") r.divisor = static_cast<double>(r.size);
  return std::make_unique<ReduceKernel>(r);
}

}  // namespace falaj::kernels::cpu
