// MatMul and Gemm by our own product: weights packed once, everything else packed in the run.
#include <algorithm>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/lanes.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/parallel.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

FALAJ_AVX2 void round_run(const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 8) put8(y + i, bf16_rounded8(some8(x + i, n - i)), n - i);
}

// What the product takes its operands for.
enum class Operands : std::uint8_t { whole, bf16 };

class SmallMatMul final : public Kernel {
 public:
  SmallMatMul(const MatMulSpec& spec, Operands operands, std::shared_ptr<const Tensor> packed, std::size_t threads)
      : spec_(spec), operands_(operands), packed_(std::move(packed)) {
    finish_.alpha = static_cast<float>(spec.alpha);
    finish_.beta = static_cast<float>(spec.beta);
    finish_.bias_row = spec.bias_row;
    finish_.bias_col = spec.bias_col;
    finish_.activation = spec.activation;
    finish_.activation_alpha = static_cast<float>(spec.activation_alpha);
    batches_ = spec.batches();
    // One part is enough of a batch to be worth a thread's turn.
    constexpr std::int64_t kWork = std::int64_t{1} << 18;
    together_ =
        std::clamp<std::int64_t>(kWork / std::max<std::int64_t>(spec.m * spec.n * spec.k, 1), 1, std::max<std::int64_t>(batches_, 1));
    slots_ = std::min<std::int64_t>(parts(), static_cast<std::int64_t>(threads));
    if (packed_ == nullptr) right_ = whole_lines(static_cast<std::int64_t>(packed_elements(spec.k, spec.n)));
    if (operands == Operands::bf16) left_ = whole_lines(spec.m * spec.k);
  }
  void run(const Io& io) const override {
    in_slots(io, parts(), slots_, [&](std::int64_t part, std::int64_t slot) {
      auto* scratch = reinterpret_cast<float*>(io.scratch) + slot * (left_ + right_);
      for (std::int64_t i = part * together_; i < std::min(batches_, (part + 1) * together_); ++i) multiply(io, i, scratch);
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return static_cast<std::size_t>(slots_ * (left_ + right_)) * sizeof(float); }
  [[nodiscard]] std::string_view implementation() const override {
    if (operands_ == Operands::bf16) return multiply_ == multiply_avx512 ? "avx512 product of bfloat16" : "avx2 product of bfloat16";
    if (multiply_ == multiply_avx512) return packed_ == nullptr ? "avx512 product" : "avx512 product, packed weights";
    return packed_ == nullptr ? "avx2 product" : "avx2 product, packed weights";
  }

 private:
  [[nodiscard]] std::int64_t parts() const { return (batches_ + together_ - 1) / together_; }

  void multiply(const Io& io, std::int64_t i, float* scratch) const {
    const MatMulSpec& s = spec_;
    Finish finish = finish_;
    if (s.has_bias) finish.bias = io.input<float>(2);
    BatchOffsets at{0, 0};
    if (batches_ > 1) at = batch_offsets(s, i);
    const float* a = io.input<float>(0) + at.a;
    const float* packed = packed_ == nullptr ? scratch : static_cast<const float*>(packed_->raw());
    if (packed_ == nullptr) pack(io.input<float>(1) + at.b, s.b_row, s.b_col, s.k, s.n, scratch);
    if (operands_ == Operands::bf16) {
      round_run(scratch, scratch, right_);
      // The left one is read as it lay: its rows, or its columns, are runs.
      const std::int64_t lines = s.a_col == 1 ? s.m : s.k;
      const std::int64_t length = s.a_col == 1 ? s.k : s.m;
      const std::int64_t apart = s.a_col == 1 ? s.a_row : s.a_col;
      for (std::int64_t line = 0; line < lines; ++line) round_run(a + line * apart, scratch + right_ + line * length, length);
      multiply_(scratch + right_, s.a_col == 1 ? s.k : 1, s.a_col == 1 ? 1 : s.m, packed, io.output<float>(0) + i * s.m * s.n, s.m, s.n,
                s.k, finish);
      return;
    }
    multiply_(a, s.a_row, s.a_col, packed, io.output<float>(0) + i * s.m * s.n, s.m, s.n, s.k, finish);
  }

  MatMulSpec spec_;
  Operands operands_;
  std::shared_ptr<const Tensor> packed_;
  Finish finish_;
  Multiply multiply_ = multiply_packed();
  std::int64_t batches_ = 1, together_ = 1, slots_ = 1;
  std::int64_t left_ = 0, right_ = 0;  // elements of scratch for the operands
};

Result<KernelPtr> make(const KernelCall& call, Operands operands) {
  FALAJ_TRY(check_f32(call, "avx2 product"));
  FALAJ_ASSIGN(auto spec, matmul_spec(call));
  std::shared_ptr<const Tensor> packed;
  const Tensor* weights = operands == Operands::whole ? call.in(1).constant : nullptr;
  if (weights != nullptr && call.packed != nullptr && !weights->borrowed() && spec.batches() == 1) {
    packed = call.packed->get(*weights, format("avx2/{}x{}/{}/{}", spec.k, spec.n, spec.b_row, spec.b_col), [&] {
      Tensor t = Tensor::uninitialised(DType::f32, {static_cast<std::int64_t>(packed_elements(spec.k, spec.n))});
      pack(weights->data<float>().data(), spec.b_row, spec.b_col, spec.k, spec.n, t.mutable_data<float>().data());
      return t;
    });
  }
  return std::make_unique<SmallMatMul>(spec, operands, std::move(packed), call.threads);
}

}  // namespace

Result<KernelPtr> make_small_matmul(const KernelCall& call) { return make(call, Operands::whole); }
Result<KernelPtr> make_rounded_matmul(const KernelCall& call) { return make(call, Operands::bf16); }

}  // namespace falaj::kernels::cpu
