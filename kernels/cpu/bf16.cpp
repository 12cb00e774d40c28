// Products and convolutions by known weights in bfloat16: operands are rounded to it, sums are f32. Only for who asks for them
// (bf16_backend()). On one machine a row's bits do not depend on its batch. Of 3 x 3 kernels at stride 1, what is rounded are sums of a few
// operands (bf16_winograd.cpp).
#include <algorithm>

#include "kernels/convert.hpp"
#include "kernels/cpu/bf16_columns.hpp"
#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/plane.hpp"
#include "kernels/ops/channels_last.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kBlockRows = 192;  // rows of tiles that share one pass over the weights
constexpr std::int64_t kTogether = 192;   // pixels of small images that are worth a pass over the weights
constexpr std::int64_t kSlack = 32;       // zeros behind each image, which may be read beyond its last row of places

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("bf16: {}", why)}; }
std::size_t aligned(std::int64_t bytes) { return static_cast<std::size_t>((bytes + 63) / 64 * 64); }

class Bf16MatMul final : public Kernel {
 public:
  Bf16MatMul(const MatMulSpec& spec, HalfColumns columns)
      : spec_(spec),
        columns_(std::move(columns)),
        stride_((spec.k + 1) / 2 * 4),
        name_(format("{} product, packed weights", columns_.name())) {}
  void run(const Io& io) const override {
    const std::int64_t block = std::min(kBlockRows, spec_.m);
    const auto** rows = reinterpret_cast<const std::byte**>(io.scratch);
    std::byte* copies = io.scratch + pointer_bytes();
    for (std::int64_t first = 0; first < spec_.m; first += block) {
      const std::int64_t count = std::min(block, spec_.m - first);
      const float* x = io.input<float>(0) + first * spec_.k;
      for (std::int64_t i = 0; i < count; ++i) rows[i] = copies + i * stride_;
      if (spec_.k % 2 == 0) {  // rows follow each other here and there
        columns_.round(x, count * spec_.k, reinterpret_cast<Half*>(copies));
      } else {
        for (std::int64_t i = 0; i < count; ++i) {
          auto* to = reinterpret_cast<Half*>(copies + i * stride_);
          columns_.round(x + i * spec_.k, spec_.k, to);
          to[spec_.k] = 0;
        }
      }
      columns_.run(rows, count, io.output<float>(0) + first * spec_.n, nullptr);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return pointer_bytes() + aligned(std::min(kBlockRows, spec_.m) * stride_); }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  [[nodiscard]] std::size_t pointer_bytes() const {
    return aligned(std::min(kBlockRows, spec_.m) * static_cast<std::int64_t>(sizeof(void*)));
  }
  MatMulSpec spec_;
  HalfColumns columns_;
  std::int64_t stride_;
  std::string name_;
};

class Bf16Conv final : public Kernel {
 public:
  Bf16Conv(FusedConv fused, const Plane& plane, HalfColumns columns)
      : fused_(std::move(fused)),
        plane_(plane),
        columns_(std::move(columns)),
        name_(format("{} convolution, packed weights", columns_.name())) {
    const std::int64_t out = std::max<std::int64_t>(fused_.conv.window.out_elements(), 1);
    images_ = std::clamp<std::int64_t>(kTogether / out, 1, std::max<std::int64_t>(fused_.conv.batch, 1));
  }
  void run(const Io& io) const override {
    const ConvSpec& s = fused_.conv;
    const Window& w = s.window;
    const std::int64_t image = plane_.elements(s.channels) + kSlack;
    const auto** rows = reinterpret_cast<const std::byte**>(io.scratch);
    auto* copies = reinterpret_cast<Half*>(io.scratch + pointer_bytes());
    for (std::int64_t n = 0; n < s.batch; n += images_) {
      const std::int64_t images = std::min(images_, s.batch - n);
      for (std::int64_t i = 0; i < images; ++i) {
        copy(io.input<float>(0) + (n + i) * w.in_elements() * s.channels, copies + i * image);
        std::fill_n(copies + (i + 1) * image - kSlack, kSlack, Half{0});
      }
      const Half* x = copies;
      const std::int64_t pixels = images * w.out_elements();
      std::int64_t column = 0;
      std::int64_t row = 0;
      for (std::int64_t first = 0; first < pixels; first += kBlockRows) {
        const std::int64_t count = std::min(kBlockRows, pixels - first);
        for (std::int64_t p = 0; p < count; ++p) {
          rows[p] = reinterpret_cast<const std::byte*>(x + (row * w.strides[0] * plane_.width + column * w.strides[1]) * s.channels);
          if (++column < w.out[1]) continue;
          column = 0;
          if (++row < w.out[0]) continue;
          row = 0;
          x += image;
        }
        const std::int64_t at = (n * w.out_elements() + first) * s.maps;
        columns_.run(rows, count, io.output<float>(0) + at, fused_.has_addend ? io.input<float>(3) + at : nullptr);
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return pointer_bytes() + aligned(images_ * (plane_.elements(fused_.conv.channels) + kSlack) * 2);
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static std::size_t pointer_bytes() { return aligned(kBlockRows * static_cast<std::int64_t>(sizeof(void*))); }
  void copy(const float* x, Half* to) const {
    const Window& w = fused_.conv.window;
    const std::int64_t channels = fused_.conv.channels;
    const std::int64_t row = plane_.width * channels;
    const std::int64_t kept = w.in[1] * channels;
    const std::int64_t left = w.pad_begin[1] * channels;
    for (std::int64_t h = 0; h < plane_.height; ++h, to += row) {
      const std::int64_t from = h - w.pad_begin[0];
      const bool inside = from >= 0 && from < w.in[0];
      std::fill_n(to, inside ? left : row, Half{0});
      if (!inside) continue;
      columns_.round(x + from * kept, kept, to + left);
      std::fill_n(to + left + kept, row - left - kept, Half{0});
    }
  }
  FusedConv fused_;
  Plane plane_;
  HalfColumns columns_;
  std::int64_t images_ = 1;
  std::string name_;
};

// Weights in their packed form.
template <class W>
Tensor pack(std::int64_t columns, std::int64_t places, std::int64_t depth, W w) {
  Tensor packed(DType::bf16, {half_elements(columns, places, depth)});
  pack_halves(static_cast<Half*>(packed.mutable_raw()), columns, places, depth, w);
  return packed;
}

Result<KernelPtr> make_matmul(const KernelCall& call) {
  FALAJ_TRY(check_bf16(call));
  FALAJ_ASSIGN(const auto spec, matmul_spec(call));
  if (spec.batches() != 1 || spec.a_col != 1 || spec.a_row != spec.k) return refuse("the left operand is transposed, or there are several");
  if (spec.alpha != 1.0 || spec.beta != 1.0 || (spec.has_bias && spec.bias_row != 0))
    return refuse("alpha or beta is not 1, or the bias no row");
  const float* w = call.in(1).constant->data<float>().data();
  auto packed = packed_form(call, format("bf16/{}/{}", spec.b_row, spec.b_col), [&] {
    return pack(spec.n, 1, spec.k, [&](std::int64_t n, std::int64_t, std::int64_t k) { return w[k * spec.b_row + n * spec.b_col]; });
  });
  HalfColumns columns(std::move(packed), spec.n, {0}, spec.k, spec.activation, spec.activation_alpha);
  if (spec.has_bias) columns.set_bias(call.in(2).constant->data<float>().data(), spec.bias_col);
  return std::make_unique<Bf16MatMul>(spec, std::move(columns));
}

Result<KernelPtr> make_conv(const KernelCall& call) {
  FALAJ_TRY(check_bf16(call));
  FALAJ_ASSIGN(auto fused, fused_conv(call));
  const ConvSpec& s = fused.conv;
  if (s.window.rank() != 2) return refuse("only two spatial dimensions");
  if (fused.pooled) return refuse("the results are pooled");
  if (s.groups != 1) return refuse("several groups");
  const bool along = runs_along_rows(s);
  const std::int64_t width = s.window.kernel[1];
  const std::int64_t depth = s.channels * (along ? width : 1);
  const std::int64_t places = s.window.kernel[0] * (along ? 1 : width);
  const Plane plane = plane_of(s, depth, 2, true);
  const float* w = call.in(1).constant->data<float>().data();
  auto packed = packed_form(call, format("bf16 channels last/{}", along), [&] {
    return pack(s.maps, places, depth, [&](std::int64_t m, std::int64_t p, std::int64_t d) {
      return w[(m * s.channels + d % s.channels) * s.window.kernel_elements() + (along ? p * width + d / s.channels : p)];
    });
  });
  HalfColumns columns(std::move(packed), s.maps, place_offsets(s, plane, 2), depth, fused.activation, fused.activation_alpha);
  if (fused.has_bias) columns.set_bias(call.in(2).constant->data<float>().data(), 1);
  return std::make_unique<Bf16Conv>(std::move(fused), plane, std::move(columns));
}

Result<KernelPtr> make(const OpDef& op, const KernelCall& call) {
  if (op.type == "Conv" && op.domain == kFalaj) {
    auto winograd = make_bf16_winograd(call);
    return winograd ? std::move(winograd) : make_conv(call);
  }
  if (op.type == "MatMul" || (op.type == "Gemm" && op.domain == kOnnx)) return make_matmul(call);
  return refuse("only products and convolutions by known weights");
}

}  // namespace
}  // namespace falaj::kernels::cpu

namespace falaj::kernels {

const Backend& bf16_backend() {
  static const Backend kBf16{"bf16", cpu::make};
  return kBf16;
}

}  // namespace falaj::kernels
