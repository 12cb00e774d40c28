// Pools of blocks of channels (see kernels/ops/blocks.hpp) and their gradients, by AVX-512: a plane of sixteen channels at a time,
// gradients added up in f32. Which places of the input a window meets is looked up.
#include <limits>

#include "kernels/cpu/block_lanes.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/ops/blocks.hpp"
#include "kernels/parallel.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx512 pools of blocks: {}", why)}; }

// For each window: the places of the input that it meets, as offsets in a plane, and one over what its mean divides by.
struct Windows {
  std::int64_t planes = 0, in = 0, out = 0;  // of a plane: elements
  std::vector<std::int64_t> first;           // of a window's places; one more than there are windows
  std::vector<std::int64_t> places;
  std::vector<float> share;
};
Windows windows_of(const Window& w, std::int64_t planes, bool padded) {
  Windows all{planes, w.in_elements() * kBlockChannels, w.out_elements() * kBlockChannels, {0}, {}, {}};
  std::vector<Meeting> pairs;
  for (std::int64_t o = 0; o < w.out_elements(); ++o) {
    meetings(w, o, pairs);
    for (const Meeting& m : pairs) all.places.push_back(m.in * kBlockChannels);
    all.first.push_back(static_cast<std::int64_t>(all.places.size()));
    const auto count = padded ? padded_count(w, o) : static_cast<std::int64_t>(pairs.size());
    all.share.push_back(count == 0 ? 0.0F : 1.0F / static_cast<float>(count));
  }
  return all;
}

template <class L, bool kMax>
FALAJ_AVX512_BF16 void pool_plane(const Windows& w, const typename L::Element* x, typename L::Element* y) {
  for (std::size_t o = 0; o + 1 < w.first.size(); ++o, y += kBlockChannels) {
    __m512 v = _mm512_set1_ps(kMax ? -std::numeric_limits<float>::infinity() : 0.0F);
    for (std::int64_t i = w.first[o]; i < w.first[o + 1]; ++i) {
      const __m512 value = L::load(x + w.places[static_cast<std::size_t>(i)]);
      if constexpr (kMax) {
        v = _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(value, v, _CMP_GT_OQ), value);  // NaN is the largest
        v = _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), value);
      } else {
        v = _mm512_add_ps(v, value);
      }
    }
    if constexpr (!kMax) v = _mm512_mul_ps(v, _mm512_set1_ps(w.share[o]));
    L::store(y, v);
  }
}

// A maximum's gradient goes to the first place that attains it.
template <class L, bool kMax>
FALAJ_AVX512_BF16 void back_plane(const Windows& w, const typename L::Element* dy, const typename L::Element* x,
                                  const typename L::Element* y, float* sums, typename L::Element* dx) {
  std::fill_n(sums, w.in, 0.0F);
  for (std::size_t o = 0; o + 1 < w.first.size(); ++o) {
    __m512 d = L::load(dy + o * kBlockChannels);
    if constexpr (!kMax) d = _mm512_mul_ps(d, _mm512_set1_ps(w.share[o]));
    __m512 most = _mm512_setzero_ps();
    if constexpr (kMax) most = L::load(y + o * kBlockChannels);
    __mmask16 left = 0xFFFF;
    for (std::int64_t i = w.first[o]; i < w.first[o + 1]; ++i) {
      const std::int64_t place = w.places[static_cast<std::size_t>(i)];
      __mmask16 lanes = 0xFFFF;
      if constexpr (kMax) {
        const __m512 value = L::load(x + place);
        const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q) & _mm512_cmp_ps_mask(most, most, _CMP_UNORD_Q);
        lanes = left & (_mm512_cmp_ps_mask(value, most, _CMP_EQ_OQ) | nan);
        left &= static_cast<__mmask16>(~lanes);
      }
      _mm512_storeu_ps(sums + place, _mm512_add_ps(_mm512_loadu_ps(sums + place), _mm512_maskz_mov_ps(lanes, d)));
    }
  }
  for (std::int64_t i = 0; i < w.in; i += kBlockChannels) L::store(dx + i, _mm512_loadu_ps(sums + i));
}

template <class L, bool kMax>
class Pool final : public Kernel {
 public:
  using Element = typename L::Element;
  explicit Pool(Windows windows) : w_(std::move(windows)) {}
  void run(const Io& io) const override {
    in_ranges(io, w_.planes, part_rows(w_.in), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t p = first; p < last; ++p)
        pool_plane<L, kMax>(w_, io.input<Element>(0) + p * w_.in, io.output<Element>(0) + p * w_.out);
    });
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx512 pool of blocks"; }

 private:
  Windows w_;
};

template <class L, bool kMax>
class PoolBack final : public Kernel {
 public:
  using Element = typename L::Element;
  PoolBack(Windows windows, std::size_t threads)
      : w_(std::move(windows)), slots_(std::min(w_.planes, static_cast<std::int64_t>(threads))) {}
  void run(const Io& io) const override {
    in_slots(io, w_.planes, slots_, [&](std::int64_t p, std::int64_t slot) {
      back_plane<L, kMax>(w_, io.input<Element>(0) + p * w_.out, kMax ? io.input<Element>(1) + p * w_.in : nullptr,
                          kMax ? io.input<Element>(2) + p * w_.out : nullptr, reinterpret_cast<float*>(io.scratch) + slot * w_.in,
                          io.output<Element>(0) + p * w_.in);
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return static_cast<std::size_t>(slots_ * w_.in) * sizeof(float); }
  [[nodiscard]] std::string_view implementation() const override { return "avx512 pool of blocks, back"; }

 private:
  Windows w_;
  std::int64_t slots_;
};

template <class L>
KernelPtr make(const KernelCall& call, bool max, Windows windows) {
  if (call.node.op == "BlockPool") {
    if (max) return std::make_unique<Pool<L, true>>(std::move(windows));
    return std::make_unique<Pool<L, false>>(std::move(windows));
  }
  if (max) return std::make_unique<PoolBack<L, true>>(std::move(windows), call.threads);
  return std::make_unique<PoolBack<L, false>>(std::move(windows), call.threads);
}

}  // namespace

Result<KernelPtr> make_block_pool(const KernelCall& call) {
  if (!has_avx512()) return refuse("this CPU has no AVX-512");
  FALAJ_ASSIGN(const Window window, block_window(call));
  FALAJ_ASSIGN(const auto function, attr_string(call.node, "function"));
  FALAJ_ASSIGN(const auto padded, attr_int(call.node, "count_include_pad", 0));
  const Shape& in = call.in(call.node.op == "BlockPool" ? 0 : 1).shape;
  if (in.elements() == 0 || window.out_elements() == 0) return refuse("nothing to compute");
  Windows windows = windows_of(window, in[0] * in[1], padded != 0);
  const bool max = function.ends_with("MaxPool");
  if (call.in(0).dtype == DType::f32) return make<Floats>(call, max, std::move(windows));
  if (!has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  return make<Halves>(call, max, std::move(windows));
}

}  // namespace falaj::kernels::cpu
