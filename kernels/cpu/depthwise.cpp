// ai.falaj's Conv on [N, H, W, C] where each channel has a map of its own, weights known: neighbouring pixels of a vector of channels share
// the weights, and read only the places that meet the image. Rows are shared out among threads.
#include <array>

#include "kernels/cpu/conv_kernels.hpp"
#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/windows.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

// Neighbouring pixels of one row of the result, whose windows meet the image in the same places. Steps are in floats.
struct Run {
  const float* x;  // the first pixel's first place
  const float* w;  // [places, channels], from that place on
  std::int64_t rows, columns;
  std::int64_t w_row, row_step, column_step, pixel_step;
  std::int64_t channels, pixels;
  const float* bias;    // null: none
  const float* addend;  // of the first pixel; null: none
  float* y;             // likewise
  Activation activation;
  float alpha;
};

#define FALAJ_BODY "kernels/cpu/depthwise_body.hpp"
#include "kernels/cpu/both_widths.hpp"

class Depthwise final : public Kernel {
 public:
  Depthwise(FusedConv fused, std::shared_ptr<const Tensor> packed)
      : fused_(std::move(fused)),
        packed_(std::move(packed)),
        wide_(has_avx512()),
        rows_(all_meets(fused_.conv.window, 0)),
        columns_(all_meets(fused_.conv.window, 1)) {}

  void run(const Io& io) const override {
    const Window& w = fused_.conv.window;
    const std::int64_t row = w.out[1] * fused_.conv.channels;
    in_ranges(io, fused_.conv.batch * w.out[0], part_rows(row), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) run_row(io, i / w.out[0], i % w.out[0]);
    });
  }
  [[nodiscard]] std::string_view implementation() const override {
    return wide_ ? "avx512 depthwise convolution" : "avx2 depthwise convolution";
  }

 private:
  void run_row(const Io& io, std::int64_t image, std::int64_t row) const {
    const Window& w = fused_.conv.window;
    const std::int64_t channels = fused_.conv.channels;
    const std::int64_t in_row = w.in[1] * channels;
    const float* x = io.input<float>(0) + image * w.in_elements() * channels;
    const Meet& down = rows_[static_cast<std::size_t>(row)];
    const std::int64_t at = (image * w.out[0] + row) * w.out[1] * channels;
    for (std::size_t column = 0; column < columns_.size();) {
      const Meet& across = columns_[column];
      std::size_t end = column + 1;
      while (across.count == w.kernel[1] && end < columns_.size() && columns_[end].count == w.kernel[1]) ++end;
      const std::int64_t to = at + static_cast<std::int64_t>(column) * channels;
      const Run part{.x = x + down.first * in_row + across.first * channels,
                     .w = static_cast<const float*>(packed_->raw()) + (down.place * w.kernel[1] + across.place) * channels,
                     .rows = across.count == 0 ? 0 : down.count,
                     .columns = across.count,
                     .w_row = w.kernel[1] * channels,
                     .row_step = w.dilations[0] * in_row,
                     .column_step = w.dilations[1] * channels,
                     .pixel_step = w.strides[1] * channels,
                     .channels = channels,
                     .pixels = static_cast<std::int64_t>(end - column),
                     .bias = fused_.has_bias ? io.input<float>(2) : nullptr,
                     .addend = fused_.has_addend ? io.input<float>(3) + to : nullptr,
                     .y = io.output<float>(0) + to,
                     .activation = fused_.activation,
                     .alpha = static_cast<float>(fused_.activation_alpha)};
      wide_ ? lanes16::run_pixels(part) : lanes8::run_pixels(part);
      column = end;
    }
  }

  FusedConv fused_;
  std::shared_ptr<const Tensor> packed_;  // [places, channels]
  bool wide_;
  std::vector<Meet> rows_, columns_;
};

}  // namespace

Tensor pack_depthwise(const Tensor& weights, const ConvSpec& s) {
  const std::int64_t places = s.window.kernel_elements();
  Tensor packed(DType::f32, {places, s.channels});
  for (std::int64_t i = 0; i < s.channels * places; ++i)
    packed.mutable_data<float>()[static_cast<std::size_t>(i % places * s.channels + i / places)] =
        weights.data<float>()[static_cast<std::size_t>(i)];
  return packed;
}

KernelPtr make_depthwise(FusedConv fused, std::shared_ptr<const Tensor> packed) {
  return std::make_unique<Depthwise>(std::move(fused), std::move(packed));
}

}  // namespace falaj::kernels::cpu
