// ConvTranspose in f32: a product of the input's pixels by the weights of all kernel places, and its sums added up where the places of
// the output lie. Within a part these are in the order [places, maps], so that neighbouring places of a row are one run of numbers, and are
// turned at the end. Where windows tile the output (kernel 2 at stride 2), the product is the output.
//
// A part is an image's maps, or some of them: bits do not depend on the batch.
#include <algorithm>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/turn.hpp"
#include "kernels/cpu/windows.hpp"
#include "kernels/ops/conv.hpp"
#include "kernels/parallel.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("transposed convolution: {}", why)}; }

FALAJ_AVX2 void add_run(float* to, const float* from, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) store(to + i, add(load(__m256{}, to + i), load(__m256{}, from + i)));
  if (i < n) store(to + i, add(load(__m256{}, to + i, n - i), load(__m256{}, from + i, n - i)), n - i);
}

// [rows, columns] to [columns, rows].
FALAJ_AVX2 void turn(const float* from, std::int64_t rows, std::int64_t columns, float* to) {
  for (std::int64_t c = 0; c < columns; c += 8) {
    for (std::int64_t r = 0; r < rows; r += 8) {
      if (c + 8 <= columns && r + 8 <= rows) {
        turn8(from + r * columns + c, columns, to + c * rows + r, rows);
        continue;
      }
      for (std::int64_t j = c; j < std::min(c + 8, columns); ++j) {
        for (std::int64_t i = r; i < std::min(r + 8, rows); ++i) to[j * rows + i] = from[i * columns + j];
      }
    }
  }
}

// How the weights [C, M / groups, kernel...] are cut and packed. The window is that of the convolution whose gradient this is: `in` is the
// output here. A lead is a kernel place but for the last dimension.
struct Layout {
  explicit Layout(const ConvSpec& s)
      : leads(s.window.kernel_elements() / s.window.kernel.back()),
        tiled(tiles_output(s.window)),
        depth(s.channels / s.groups),
        share(s.maps / s.groups),
        chunks((share + kMapsTogether - 1) / kMapsTogether),
        together((share + chunks - 1) / chunks) {
    matrices = tiled ? leads : 1;
    places = s.window.kernel_elements() / matrices;
  }
  // Each place of the output is met by one kernel place of one pixel.
  static bool tiles_output(const Window& w) {
    for (std::size_t d = 0; d < w.rank(); ++d) {
      const bool simple = w.kernel[d] == w.strides[d] && (w.dilations[d] == 1 || w.kernel[d] == 1);
      if (!simple || w.pad_begin[d] != 0 || w.in[d] != w.out[d] * w.strides[d]) return false;
    }
    return true;
  }
  [[nodiscard]] std::int64_t maps(std::int64_t chunk) const { return std::min(together, share - chunk * together); }
  // Floats of a chunk's matrix, and of all.
  [[nodiscard]] std::int64_t matrix(std::int64_t maps) const { return static_cast<std::int64_t>(packed_elements(depth, places * maps)); }
  [[nodiscard]] std::int64_t chunk_step() const { return matrices * matrix(together); }

  // Columns in the order [place, map].
  void pack_chunk(const float* w, std::int64_t group, std::int64_t chunk, float* to) const {
    const std::int64_t n = maps(chunk);
    std::fill_n(to, matrices * matrix(n), 0.0F);
    for (std::int64_t c = 0; c < depth; ++c) {
      const float* from = w + ((group * depth + c) * share + chunk * together) * matrices * places;
      for (std::int64_t m = 0; m < n; ++m) {
        for (std::int64_t k = 0; k < matrices * places; ++k) {
          const std::int64_t column = k % places * n + m;
          to[k / places * matrix(n) + (column / kPanel * depth + c) * kPanel + column % kPanel] = *from++;
        }
      }
    }
  }

  static constexpr std::int64_t kMapsTogether = 32;
  std::int64_t leads;
  bool tiled;
  std::int64_t depth, share;      // channels and maps of a group
  std::int64_t chunks, together;  // of a group's maps, and how many each has, but for the last
  std::int64_t matrices, places;  // of each chunk: for each lead if the output is tiled, and the kernel places of one
};

class ConvTransposeKernel final : public Kernel {
 public:
  ConvTransposeKernel(ConvSpec spec, bool bias, std::shared_ptr<const Tensor> packed, std::size_t threads)
      : s_(std::move(spec)),
        layout_(s_),
        bias_(bias),
        packed_(std::move(packed)),
        small_(s_.window.out_elements()),
        large_(s_.window.in_elements()),
        parts_(s_.batch * s_.groups * layout_.chunks),
        slots_(std::min(parts_, static_cast<std::int64_t>(threads))),
        meets_(all_meets(s_.window, s_.window.rank() - 1)) {
    const std::int64_t columns = layout_.places * layout_.together;
    band_ = std::clamp<std::int64_t>(kSumsTogether / columns / kTile * kTile, kTile, (small_ + kTile - 1) / kTile * kTile);
    bias_floats_ = whole_lines(columns);
    rows_floats_ = whole_lines(layout_.leads * static_cast<std::int64_t>(sizeof(std::int64_t) / sizeof(float)));
    sums_floats_ = layout_.tiled ? 0 : whole_lines(band_ * columns);
    plane_floats_ = whole_lines(large_ * layout_.together);
  }

  void run(const Io& io) const override {
    auto* scratch = reinterpret_cast<float*>(io.scratch);
    const auto* packed = packed_ == nullptr ? scratch : static_cast<const float*>(packed_->raw());
    if (packed_ == nullptr) {
      in_parts(io, s_.groups * layout_.chunks, [&](std::int64_t i) {
        layout_.pack_chunk(io.input<float>(1), i / layout_.chunks, i % layout_.chunks, scratch + i * layout_.chunk_step());
      });
    }
    in_slots(io, parts_, slots_, [&](std::int64_t part, std::int64_t slot) {
      run_part(io, packed, part, scratch + (packed_ == nullptr ? packed_floats() : 0) + slot * slot_floats());
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return static_cast<std::size_t>((packed_ == nullptr ? packed_floats() : 0) + slots_ * slot_floats()) * sizeof(float);
  }
  [[nodiscard]] std::string_view implementation() const override {
    return multiply_ == multiply_avx512 ? "avx512 transposed convolution" : "avx2 transposed convolution";
  }

 private:
  static constexpr std::int64_t kSumsTogether = std::int64_t{1} << 15;  // of a product before they are added up
  static constexpr std::int64_t kTile = 12;                             // rows of the product's tiles
  [[nodiscard]] std::int64_t packed_floats() const { return s_.groups * layout_.chunks * layout_.chunk_step(); }
  [[nodiscard]] std::int64_t slot_floats() const { return bias_floats_ + rows_floats_ + sums_floats_ + plane_floats_; }

  // For a row of pixels: in which row of the output each lead lies, or -1.
  void place_rows(std::int64_t row, std::int64_t* rows) const {
    const Window& w = s_.window;
    for (std::int64_t lead = 0; lead < layout_.leads; ++lead) {
      std::int64_t pixel = row;
      std::int64_t place = lead;
      std::int64_t to = 0;
      std::int64_t step = 1;
      for (std::size_t d = w.rank() - 1; d-- > 0;) {
        const std::int64_t at = pixel % w.out[d] * w.strides[d] - w.pad_begin[d] + place % w.kernel[d] * w.dilations[d];
        pixel /= w.out[d];
        place /= w.kernel[d];
        to = at < 0 || at >= w.in[d] || to < 0 ? -1 : to + at * step;
        step *= w.in[d];
      }
      rows[lead] = to;
    }
  }

  void run_part(const Io& io, const float* packed, std::int64_t part, float* bias) const {
    const std::int64_t chunk = part % layout_.chunks;
    const std::int64_t group = part / layout_.chunks % s_.groups;
    const std::int64_t image = part / layout_.chunks / s_.groups;
    const std::int64_t maps = layout_.maps(chunk);
    const std::int64_t first = group * layout_.share + chunk * layout_.together;
    const float* x = io.input<float>(0) + (image * s_.channels + group * layout_.depth) * small_;
    const float* w = packed + (group * layout_.chunks + chunk) * layout_.chunk_step();
    auto* rows = reinterpret_cast<std::int64_t*>(bias + bias_floats_);
    float* sums = bias + bias_floats_ + rows_floats_;
    float* plane = sums + sums_floats_;
    const std::int64_t repeats = layout_.tiled ? layout_.places : 1;
    for (std::int64_t i = 0; i < repeats; ++i) {
      if (bias_) {
        std::copy_n(io.input<float>(2) + first, maps, bias + i * maps);
      } else {
        std::fill_n(bias + i * maps, maps, 0.0F);
      }
    }
    if (layout_.tiled) {
      multiply_tiles(x, w, maps, bias, rows, plane);
    } else {
      for (std::int64_t i = 0; i < large_; ++i) std::copy_n(bias, maps, plane + i * maps);
      for (std::int64_t pixel = 0; pixel < small_; pixel += band_) {
        const std::int64_t count = std::min(band_, small_ - pixel);
        multiply_(x + pixel, 1, small_, w, sums, count, layout_.places * maps, layout_.depth, Finish{});
        add_up(sums, pixel, count, maps, rows, plane);
      }
    }
    turn(plane, large_, maps, io.output<float>(0) + (image * s_.maps + first) * large_);
  }

  void multiply_tiles(const float* x, const float* w, std::int64_t maps, const float* bias, std::int64_t* rows, float* plane) const {
    const std::int64_t width = s_.window.out.back();
    Finish finish;
    finish.bias = bias;
    finish.bias_col = 1;
    for (std::int64_t row = 0; row < small_ / width; ++row) {
      place_rows(row, rows);
      for (std::int64_t lead = 0; lead < layout_.leads; ++lead) {
        multiply_(x + row * width, 1, small_, w + lead * layout_.matrix(maps), plane + rows[lead] * s_.window.in.back() * maps, width,
                  layout_.places * maps, layout_.depth, finish);
      }
    }
  }

  void add_up(const float* sums, std::int64_t pixel, std::int64_t count, std::int64_t maps, std::int64_t* rows, float* plane) const {
    const Window& w = s_.window;
    const std::int64_t width = w.out.back();
    const std::int64_t kernel = w.kernel.back();
    const std::int64_t step = w.dilations.back();
    std::int64_t column = pixel % width;
    place_rows(pixel / width, rows);
    for (std::int64_t i = 0; i < count; ++i, ++column, sums += layout_.places * maps) {
      if (column == width) {
        column = 0;
        place_rows((pixel + i) / width, rows);
      }
      const Meet& meet = meets_[static_cast<std::size_t>(column)];
      if (meet.count == 0) continue;
      for (std::int64_t lead = 0; lead < layout_.leads; ++lead) {
        if (rows[lead] < 0) continue;
        float* to = plane + (rows[lead] * w.in.back() + meet.first) * maps;
        const float* from = sums + (lead * kernel + meet.place) * maps;
        if (step == 1) {
          add_run(to, from, meet.count * maps);
        } else {
          for (std::int64_t k = 0; k < meet.count; ++k) add_run(to + k * step * maps, from + k * maps, maps);
        }
      }
    }
  }

  ConvSpec s_;
  Layout layout_;
  bool bias_;
  std::shared_ptr<const Tensor> packed_;  // null: packed in the run
  std::int64_t small_, large_;            // places of an image, here and there
  std::int64_t parts_, slots_;
  std::vector<Meet> meets_;  // of the pixels of a row with the output, in the last dimension
  std::int64_t band_ = 0;    // pixels of a product
  std::int64_t bias_floats_ = 0, rows_floats_ = 0, sums_floats_ = 0, plane_floats_ = 0;
  Multiply multiply_ = multiply_packed();
};

}  // namespace

Result<KernelPtr> make_conv_transpose(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "transposed convolution"));
  FALAJ_ASSIGN(auto spec, transpose_spec(call));
  if (call.in(0).shape.elements() == 0 || call.outputs[0].shape.elements() == 0) return refuse("nothing to compute");
  std::shared_ptr<const Tensor> packed;
  const Tensor* weights = call.in(1).constant;
  if (weights != nullptr && call.packed != nullptr && !weights->borrowed()) {
    const Layout layout(spec);
    packed = call.packed->get(*weights, format("transposed/{}/{}", spec.groups, layout.tiled), [&] {
      Tensor t = Tensor::uninitialised(DType::f32, {spec.groups * layout.chunks * layout.chunk_step()});
      for (std::int64_t i = 0; i < spec.groups * layout.chunks; ++i) {
        layout.pack_chunk(weights->data<float>().data(), i / layout.chunks, i % layout.chunks,
                          t.mutable_data<float>().data() + i * layout.chunk_step());
      }
      return t;
    });
  }
  return std::make_unique<ConvTransposeKernel>(std::move(spec), call.has(2), std::move(packed), call.threads);
}

}  // namespace falaj::kernels::cpu
