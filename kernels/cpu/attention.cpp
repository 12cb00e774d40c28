// ai.falaj's Attention, a head at a time: keys and values are packed, and scores, their softmax and the result are those of the products of
// gemm.hpp and of softmax_rows(). A head's bits depend on nothing but the head.
#include <algorithm>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kScoresMax = std::int64_t{1} << 15;  // rows of scores at a time: what stays in the nearest caches

class AttentionKernel final : public Kernel {
 public:
  AttentionKernel(const Shape& q, const Shape& v, double scale, bool has_by)
      : batch_(q[0]), tokens_(q[1]), heads_(q[2]), depth_(q[3]), keys_(v[1]), width_(v[3]), has_by_(has_by) {
    together_ = std::clamp<std::int64_t>(kScoresMax / std::max<std::int64_t>(keys_, 1), 12, std::max<std::int64_t>(tokens_, 12));
    scaled_.alpha = static_cast<float>(scale);
    plain_.y_row = heads_ * width_;
  }
  void run(const Io& io) const override {
    Finish scaled = scaled_;
    if (has_by_) scaled.alpha *= io.input<float>(3)[0];
    auto* keys = reinterpret_cast<float*>(io.scratch);
    float* values = keys + packed_elements(depth_, keys_);
    float* scores = values + packed_elements(keys_, width_);
    for (std::int64_t n = 0; n < batch_; ++n) {
      for (std::int64_t h = 0; h < heads_; ++h) {
        pack(io.input<float>(1) + (n * keys_ * heads_ + h) * depth_, 1, heads_ * depth_, depth_, keys_, keys);
        pack(io.input<float>(2) + (n * keys_ * heads_ + h) * width_, heads_ * width_, 1, keys_, width_, values);
        for (std::int64_t t = 0; t < tokens_; t += together_) {
          const std::int64_t rows = std::min(together_, tokens_ - t);
          const std::int64_t at = (n * tokens_ + t) * heads_ + h;
          multiply_(io.input<float>(0) + at * depth_, heads_ * depth_, 1, keys, scores, rows, keys_, depth_, scaled);
          softmax_(scores, scores, rows, keys_);
          multiply_(scores, keys_, 1, values, io.output<float>(0) + at * width_, rows, width_, keys_, plain_);
        }
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return (packed_elements(depth_, keys_) + packed_elements(keys_, width_) + static_cast<std::size_t>(together_ * keys_)) * sizeof(float);
  }
  [[nodiscard]] std::string_view implementation() const override { return multiply_ == multiply_avx512 ? "avx512 heads" : "avx2 heads"; }

 private:
  std::int64_t batch_, tokens_, heads_, depth_, keys_, width_;
  bool has_by_;
  std::int64_t together_ = 0;  // rows
  Finish scaled_, plain_;
  Multiply multiply_ = multiply_packed();
  SoftmaxRows softmax_ = softmax_rows();
};

}  // namespace

Result<KernelPtr> make_attention(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "attention"));
  if (call.in(1).shape.elements() == 0 || call.in(2).shape.elements() == 0) return Error{ErrorCode::unimplemented, "attention: to nothing"};
  FALAJ_ASSIGN(const double scale, attr_float(call.node, "scale", 1.0));
  return std::make_unique<AttentionKernel>(call.in(0).shape, call.in(2).shape, scale, call.has(3));
}

}  // namespace falaj::kernels::cpu
