// MatMul and Gemm by our own product: weights packed once, everything else packed in the run.
#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

class SmallMatMul final : public Kernel {
 public:
  SmallMatMul(const MatMulSpec& spec, std::shared_ptr<const Tensor> packed) : spec_(spec), packed_(std::move(packed)) {
    finish_.alpha = static_cast<float>(spec.alpha);
    finish_.beta = static_cast<float>(spec.beta);
    finish_.bias_row = spec.bias_row;
    finish_.bias_col = spec.bias_col;
    finish_.activation = spec.activation;
    finish_.activation_alpha = static_cast<float>(spec.activation_alpha);
    batches_ = spec.batches();
  }
  void run(const Io& io) const override {
    Finish finish = finish_;
    if (spec_.has_bias) finish.bias = io.input<float>(2);
    const float* packed = packed_ == nullptr ? reinterpret_cast<const float*>(io.scratch) : static_cast<const float*>(packed_->raw());
    for (std::int64_t i = 0; i < batches_; ++i) {
      BatchOffsets at{0, 0};
      if (batches_ > 1) at = batch_offsets(spec_, i);
      if (packed_ == nullptr)
        pack(io.input<float>(1) + at.b, spec_.b_row, spec_.b_col, spec_.k, spec_.n, reinterpret_cast<float*>(io.scratch));
      multiply_(io.input<float>(0) + at.a, spec_.a_row, spec_.a_col, packed, io.output<float>(0) + i * spec_.m * spec_.n, spec_.m, spec_.n,
                spec_.k, finish);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return packed_ == nullptr ? packed_elements(spec_.k, spec_.n) * sizeof(float) : 0;
  }
  [[nodiscard]] std::string_view implementation() const override {
    if (multiply_ == multiply_avx512) return packed_ == nullptr ? "avx512 product" : "avx512 product, packed weights";
    return packed_ == nullptr ? "avx2 product" : "avx2 product, packed weights";
  }

 private:
  MatMulSpec spec_;
  std::shared_ptr<const Tensor> packed_;
  Finish finish_;
  Multiply multiply_ = multiply_packed();
  std::int64_t batches_ = 1;
};

}  // namespace

Result<KernelPtr> make_small_matmul(const KernelCall& call) {
  if (!has_avx2()) return Error{ErrorCode::unimplemented, "avx2 product: this CPU has no AVX2"};
  if (call.in(0).dtype != DType::f32)
    return Error{ErrorCode::unimplemented, format("avx2 product: only float32, not {}", to_string(call.in(0).dtype))};
  FALAJ_ASSIGN(auto spec, matmul_spec(call));
  std::shared_ptr<const Tensor> packed;
  const Tensor* weights = call.in(1).constant;
  if (weights != nullptr && call.packed != nullptr && !weights->borrowed() && spec.batches() == 1) {
    packed = call.packed->get(*weights, format("avx2/{}x{}/{}/{}", spec.k, spec.n, spec.b_row, spec.b_col), [&] {
      Tensor t = Tensor::uninitialised(DType::f32, {static_cast<std::int64_t>(packed_elements(spec.k, spec.n))});
      pack(weights->data<float>().data(), spec.b_row, spec.b_col, spec.k, spec.n, t.mutable_data<float>().data());
      return t;
    });
  }
  return std::make_unique<SmallMatMul>(spec, std::move(packed));
}

}  // namespace falaj::kernels::cpu
