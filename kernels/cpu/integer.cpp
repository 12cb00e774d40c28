// ai.falaj's QMatMul and QConv by the tiles of integer.hpp.
//
// A convolution's images are copied with their padding (whose bytes are the zero point) where they have any: then every pixel reads its
// kernel places at the same offsets, and those that are neighbours in a row are one run of bytes.
#include "kernels/cpu/integer.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/integer_kernels.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/plane.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {

void copy_padded(const ConvSpec& s, const Plane& plane, std::int32_t x_zero, const std::uint8_t* x, std::uint8_t* to) {
  const Window& w = s.window;
  const std::int64_t row = plane.width * s.channels;
  const std::int64_t kept = w.in[1] * s.channels;
  const std::int64_t left = w.pad_begin[1] * s.channels;
  const auto fill = [&](std::uint8_t* from, std::int64_t count) {
    if (count > 0) std::memset(from, x_zero, static_cast<std::size_t>(count));
  };
  for (std::int64_t h = 0; h < plane.height; ++h, to += row) {
    const std::int64_t from = h - w.pad_begin[0];
    if (from < 0 || from >= w.in[0]) {
      fill(to, row);
      continue;
    }
    fill(to, left);
    std::memcpy(to + left, x + from * kept, static_cast<std::size_t>(kept));
    fill(to + left + kept, row - left - kept);
  }
}

namespace {

constexpr std::int64_t kBlockRows = 192;  // rows of tiles that share one pass over the weights
constexpr std::int64_t kTogether = 192;   // pixels of small images that are worth a pass over the weights

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("integers: {}", why)}; }

std::size_t aligned(std::int64_t bytes) { return static_cast<std::size_t>((bytes + 63) / 64 * 64); }

class IntegerMatMul final : public Kernel {
 public:
  IntegerMatMul(const IntegerProduct& spec, IntegerColumns columns)
      : spec_(spec), columns_(std::move(columns)), stride_((spec.k + 3) / 4 * 4), name_(format("{}, packed weights", columns_.name())) {}

  void run(const Io& io) const override {
    const auto* x = io.input<std::uint8_t>(0);
    const std::int64_t block = std::min(kBlockRows, spec_.m);
    const auto** rows = reinterpret_cast<const std::uint8_t**>(io.scratch);
    auto* copies = reinterpret_cast<std::uint8_t*>(io.scratch + pointer_bytes());
    for (std::int64_t first = 0; first < spec_.m; first += block) {
      const std::int64_t count = std::min(block, spec_.m - first);
      for (std::int64_t i = 0; i < count; ++i) {
        rows[i] = x + (first + i) * spec_.k;
        if (stride_ == spec_.k) continue;
        std::memcpy(copies + i * stride_, rows[i], static_cast<std::size_t>(spec_.k));  // so that whole fours can be read
        rows[i] = copies + i * stride_;
      }
      const std::int64_t at = first * spec_.n;
      columns_.run(rows, count, io.output<std::byte>(0) + at * (spec_.end.to_u8 ? 1 : static_cast<std::int64_t>(sizeof(float))),
                   spec_.end.has_addend ? io.input<std::uint8_t>(4) + at : nullptr);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return pointer_bytes() + (stride_ == spec_.k ? 0 : aligned(std::min(kBlockRows, spec_.m) * stride_));
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  [[nodiscard]] std::size_t pointer_bytes() const {
    return aligned(std::min(kBlockRows, spec_.m) * static_cast<std::int64_t>(sizeof(void*)));
  }
  IntegerProduct spec_;
  IntegerColumns columns_;
  std::int64_t stride_;
  std::string name_;
};

// --- convolutions --------------------------------------------------------------------------------------------------------------

class IntegerConvKernel final : public Kernel {
 public:
  IntegerConvKernel(const IntegerConv& spec, const Plane& plane, IntegerColumns columns)
      : spec_(spec), plane_(plane), columns_(std::move(columns)), name_(format("{} convolution, packed weights", columns_.name())) {
    const std::int64_t out = std::max<std::int64_t>(spec.conv.window.out_elements(), 1);
    images_ = plane.copied ? std::clamp<std::int64_t>(kTogether / out, 1, std::max<std::int64_t>(spec.conv.batch, 1)) : spec.conv.batch;
  }

  void run(const Io& io) const override {
    const ConvSpec& s = spec_.conv;
    const Window& w = s.window;
    const std::int64_t in = w.in_elements() * s.channels;
    const std::int64_t image = plane_.elements(s.channels);
    const std::int64_t size = spec_.end.to_u8 ? 1 : static_cast<std::int64_t>(sizeof(float));
    const auto** rows = reinterpret_cast<const std::uint8_t**>(io.scratch);
    for (std::int64_t n = 0; n < s.batch; n += images_) {
      const std::int64_t images = std::min(images_, s.batch - n);
      const auto* x = io.input<std::uint8_t>(0) + n * in;
      if (plane_.copied) {
        auto* copies = reinterpret_cast<std::uint8_t*>(io.scratch + pointer_bytes());
        for (std::int64_t i = 0; i < images; ++i) copy_padded(s, plane_, spec_.x_zero, x + i * in, copies + i * image);
        x = copies;
      }
      const std::int64_t pixels = images * w.out_elements();
      std::int64_t column = 0;
      std::int64_t row = 0;
      for (std::int64_t first = 0; first < pixels; first += kBlockRows) {
        const std::int64_t count = std::min(kBlockRows, pixels - first);
        for (std::int64_t p = 0; p < count; ++p) {
          rows[p] = x + (row * w.strides[0] * plane_.width + column * w.strides[1]) * s.channels;
          if (++column < w.out[1]) continue;
          column = 0;
          if (++row < w.out[0]) continue;
          row = 0;
          x += image;
        }
        const std::int64_t at = (n * w.out_elements() + first) * s.maps;
        columns_.run(rows, count, io.output<std::byte>(0) + at * size, spec_.end.has_addend ? io.input<std::uint8_t>(4) + at : nullptr);
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return pointer_bytes() + (plane_.copied ? aligned(images_ * plane_.elements(spec_.conv.channels) + kIntegerSlack) : 0);
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static std::size_t pointer_bytes() { return aligned(kBlockRows * static_cast<std::int64_t>(sizeof(void*))); }
  IntegerConv spec_;
  Plane plane_;
  IntegerColumns columns_;
  std::int64_t images_ = 1;
  std::string name_;
};

Status check(const KernelCall& call) {
  if (integer_isa() == IntegerIsa::none) return refuse("this CPU has no AVX2");
  if (call.in(1).constant == nullptr || call.in(2).constant == nullptr || call.in(3).constant == nullptr)
    return refuse("the weights or their scales are not known before the run");
  if (call.outputs[0].shape.elements() == 0) return refuse("nothing to compute");
  return {};
}

template <class Make>
std::shared_ptr<const Tensor> packed_form(const KernelCall& call, const std::string& layout, Make make) {
  const Tensor& weights = *call.in(1).constant;
  if (call.packed != nullptr && !weights.borrowed()) return call.packed->get(weights, layout, make);
  return std::make_shared<const Tensor>(make());
}

}  // namespace

Result<KernelPtr> make_integer_matmul(const KernelCall& call) {
  FALAJ_TRY(check(call));
  FALAJ_ASSIGN(const auto spec, integer_product(call));
  const auto* w = call.in(1).constant->data<std::int8_t>().data();
  auto packed = packed_form(call, format("integers/{}/{}", spec.w_row, spec.w_col), [&] {
    return IntegerColumns::pack(spec.n, 1, 1, spec.k,
                                [&](std::int64_t n, std::int64_t, std::int64_t k) { return w[k * spec.w_row + n * spec.w_col]; });
  });
  IntegerColumns columns(std::move(packed), spec.n, 1, {0}, spec.k, spec.x_zero, call.in(2).constant->data<float>().data(),
                         call.in(3).constant->data<float>().data(), spec.end);
  return std::make_unique<IntegerMatMul>(spec, std::move(columns));
}

Result<KernelPtr> make_integer_conv(const KernelCall& call) {
  FALAJ_TRY(check(call));
  FALAJ_ASSIGN(const auto spec, integer_conv(call));
  const ConvSpec& s = spec.conv;
  const Tensor& weights = *call.in(1).constant;
  const float* multiplier = call.in(2).constant->data<float>().data();
  const float* offset = call.in(3).constant->data<float>().data();
  if (s.groups == s.channels && s.maps == s.channels && s.groups > 1) return make_integer_depthwise(spec, weights, multiplier, offset);
  const bool along = runs_along_rows(s);
  const std::int64_t width = s.window.kernel[1];
  const std::int64_t each = s.channels / s.groups;
  const std::int64_t depth = each * (along ? width : 1);
  const std::int64_t places = s.window.kernel[0] * (along ? 1 : width);
  const Plane plane = plane_of(s, depth, 4, false);
  const auto* w = weights.data<std::int8_t>().data();
  auto packed = packed_form(call, format("integers/{}/{}", s.groups, along), [&] {
    return IntegerColumns::pack(s.maps, s.groups, places, depth, [&](std::int64_t m, std::int64_t p, std::int64_t d) {
      const std::int64_t place = along ? p * width + d / each : p;
      return w[(m * each + d % each) * places * (along ? width : 1) + place];
    });
  });
  // Groups begin each(channels) apart in a pixel.
  IntegerColumns columns(std::move(packed), s.maps, s.groups, place_offsets(s, plane, 1), depth, spec.x_zero, multiplier, offset, spec.end);
  return std::make_unique<IntegerConvKernel>(spec, plane, std::move(columns));
}

}  // namespace falaj::kernels::cpu
