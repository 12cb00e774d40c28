// The steps of recurrent layers and their gradient (kernels/ops/recurrent.hpp) in f32: a step is our own product of the states by R and
// one pass over its sums. Sequences of a batch are shared out among threads; a sequence's bits do not depend on the others.
//
// The gradient computes the steps again, keeps what their gates gave where the gradient of their sums will be, and goes back.
#include "kernels/ops/recurrent.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/parallel.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

// Of one row: z [gates * n] and q, likewise, are what the input and the states before add to the sums; h and c [n] are replaced. `gates`,
// null: not wanted, gets what the gates gave. `ahead`: where the next row's z may be, to be fetched by then; any address.
using StepRow = void (*)(const float* z, const float* ahead, const float* q, std::int64_t n, float* h, float* c, float* gates);
// Back through it: `gates` become the gradient of z, dq gets that of q; dh and dc those of the states before, as far as these did not
// pass q. `before`: of LSTM c, of GRU h; `q` [n]: of GRU, of its last gate.
using BackRow = void (*)(float* gates, const float* before, const float* q, std::int64_t n, float* dh, float* dc, float* dq);
struct Loops {
  StepRow step;
  BackRow back;
};
// A line of each gate's.
inline void fetch(const float* at, std::int64_t n, int gates) {
  for (int k = 0; k < gates; ++k) _mm_prefetch(reinterpret_cast<const char*>(at + k * n), _MM_HINT_T0);
}

enum Layer : std::uint8_t { kRnnTanh, kRnnRelu, kGru, kLstm, kLayers };

#define FALAJ_BODY "kernels/cpu/recurrent_body.hpp"
#include "kernels/cpu/both_widths.hpp"

// Sequences of a part: a share for each thread, as R is read once a step for each part; but no more than the second cache holds the sums
// of. They may follow the threads, for no sequence's bits depend on the others.
constexpr std::int64_t kSumsTogether = std::int64_t{1} << 17;

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("recurrent steps: {}", why)}; }

// Who the loops can compute: what PyTorch and Keras export.
std::optional<Layer> layer_of(const Recurrent& l) {
  const auto names = [&](std::initializer_list<std::string_view> wanted) {
    return std::ranges::equal(l.functions, wanted, {}, &RecurrentFunction::name);
  };
  if (l.gates == 4 && names({"Sigmoid", "Tanh", "Tanh"}) && !l.input_forget) return kLstm;
  if (l.gates == 3 && names({"Sigmoid", "Tanh"}) && l.linear_before_reset) return kGru;
  if (l.gates == 1 && names({"Tanh"})) return kRnnTanh;
  if (l.gates == 1 && names({"Relu"})) return kRnnRelu;
  return {};
}

std::int64_t sequences_together(const Recurrent& l, std::int64_t threads) {
  constexpr std::int64_t kTile = 12;  // rows of the product's tiles
  const std::int64_t share = (l.batch + threads - 1) / threads;
  const std::int64_t most = std::max(kSumsTogether / l.sums() / kTile * kTile, kTile);
  return std::min({l.batch, (share + kTile - 1) / kTile * kTile, most});
}

// What both kernels do alike.
class Recurrence {
 public:
  Recurrence(Recurrent l, Layer layer, const KernelCall& call)
      : l_(std::move(l)),
        loops_(has_avx512() ? lanes16::kLoops[layer] : lanes8::kLoops[layer]),
        inputs_(call.inputs.size()),
        outputs_(call.outputs.size()),
        n_(l_.hidden),
        next_row_(l_.row(0, 1)),
        sums_(l_.sums()),
        together_(sequences_together(l_, static_cast<std::int64_t>(call.threads))),
        parts_((l_.batch + together_ - 1) / together_),
        slots_(std::min(parts_, static_cast<std::int64_t>(call.threads))),
        q_(whole_lines(together_ * sums_)),
        state_(whole_lines(together_ * n_)) {}

 protected:
  [[nodiscard]] float* out(const Io& io, std::size_t i) const { return i < outputs_ ? io.output<float>(i) : nullptr; }
  [[nodiscard]] std::int64_t packed_r() const { return whole_lines(static_cast<std::int64_t>(packed_elements(n_, sums_))); }

  // Lengths are looked at before any part runs: parts cannot fail.
  [[nodiscard]] bool lengths_fit(const Io& io) const {
    for (std::int64_t b = 0; b < l_.batch && l_.lengths; ++b) {
      if (l_.length(io, b) < 0) return false;
    }
    return true;
  }
  void load_states(const Io& io, std::size_t input, std::int64_t first, std::int64_t last, float* to) const {
    const float* from = input < inputs_ ? io.input<float>(input) : nullptr;
    for (std::int64_t b = first; b < last; ++b, to += n_) {
      if (from == nullptr) {
        std::fill_n(to, n_, 0.0F);
      } else {
        std::copy_n(from + l_.state(b, 0), n_, to);
      }
    }
  }
  void store_states(const float* from, std::int64_t first, std::int64_t last, float* to) const {
    for (std::int64_t b = first; b < last && to != nullptr; ++b, from += n_) std::copy_n(from, n_, to + l_.state(b, 0));
  }
  // q = h * R + B's second half, for `rows` sequences.
  void add_states(const Io& io, const float* h, const float* packed, std::int64_t rows, float* q) const {
    Finish finish;
    if (l_.bias) {
      finish.bias = io.input<float>(3) + sums_;
      finish.bias_col = 1;
    }
    multiply_(h, n_, 1, packed, q, rows, sums_, n_, finish);
  }
  // f(b, row of X, position in Y) for the sequences that have a step k.
  template <class F>
  void each_at(const Io& io, std::int64_t k, std::int64_t first, std::int64_t last, F&& f) const {
    for (std::int64_t b = first; b < last; ++b) {
      const std::int64_t length = l_.lengths ? l_.length(io, b) : l_.steps;
      if (k >= length) continue;
      const std::int64_t t = l_.time(k, length, 0);
      f(b, l_.row(t, b), l_.output(t, b, 0));
    }
  }

  Recurrent l_;
  Loops loops_;
  std::size_t inputs_, outputs_;
  std::int64_t n_;
  std::int64_t next_row_;  // of the next sequence
  std::int64_t sums_;
  std::int64_t together_, parts_, slots_;
  std::int64_t q_, state_;  // floats of a part's rows
  Multiply multiply_ = multiply_packed();
};

class Steps final : public Kernel, Recurrence {
 public:
  Steps(Recurrent l, Layer layer, const KernelCall& call, std::shared_ptr<const Tensor> packed)
      : Recurrence(std::move(l), layer, call), packed_(std::move(packed)) {
    packed_elements_ = packed_ == nullptr ? packed_r() : 0;
  }
  void run(const Io& io) const override {
    if (!lengths_fit(io)) return;
    auto* scratch = reinterpret_cast<float*>(io.scratch);
    const auto* packed = packed_ == nullptr ? scratch : static_cast<const float*>(packed_->raw());
    if (packed_ == nullptr) pack(io.input<float>(2), 1, n_, n_, sums_, scratch);
    if (l_.lengths && out(io, 0) != nullptr) std::fill_n(out(io, 0), l_.rows() * n_, 0.0F);
    in_slots(io, parts_, slots_, [&](std::int64_t part, std::int64_t slot) {
      const std::int64_t first = part * together_;
      run_part(io, packed, first, std::min(l_.batch, first + together_), scratch + packed_elements_ + slot * (q_ + 2 * state_));
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return static_cast<std::size_t>(packed_elements_ + slots_ * (q_ + 2 * state_)) * sizeof(float);
  }
  [[nodiscard]] std::string_view implementation() const override {
    return multiply_ == multiply_avx512 ? "avx512 recurrent steps" : "avx2 recurrent steps";
  }

 private:
  void run_part(const Io& io, const float* packed, std::int64_t first, std::int64_t last, float* scratch) const {
    float* q = scratch;
    float* h = q + q_;
    float* c = h + state_;
    load_states(io, 5, first, last, h);
    load_states(io, 6, first, last, c);
    const auto* z = io.input<float>(1);
    float* y = out(io, 0);
    for (std::int64_t k = 0; k < l_.steps; ++k) {
      add_states(io, h, packed, last - first, q);
      each_at(io, k, first, last, [&](std::int64_t b, std::int64_t row, std::int64_t to) {
        const std::int64_t i = b - first;
        loops_.step(z + row * sums_, z + (row + next_row_) * sums_, q + i * sums_, n_, h + i * n_, c + i * n_, nullptr);
        if (y != nullptr) std::copy_n(h + i * n_, n_, y + to);
      });
    }
    store_states(h, first, last, out(io, 1));
    store_states(c, first, last, out(io, 2));
  }

  std::shared_ptr<const Tensor> packed_;
  std::int64_t packed_elements_ = 0;
};

class StepsGrad final : public Kernel, Recurrence {
 public:
  StepsGrad(Recurrent l, Layer layer, const KernelCall& call) : Recurrence(std::move(l), layer, call) {
    packed_back_ = whole_lines(static_cast<std::int64_t>(packed_elements(sums_, n_)));
  }
  void run(const Io& io) const override {
    if (!lengths_fit(io)) return;
    auto* scratch = reinterpret_cast<float*>(io.scratch);
    Buffers all;
    all.packed = scratch;
    all.packed_back = all.packed + packed_r();
    all.kept = all.packed_back + packed_back_;
    all.q_kept = all.kept + whole_lines(l_.rows() * n_);
    float* rows = all.q_kept + (l_.gates == 3 ? whole_lines(l_.rows() * n_) : 0);
    pack(io.input<float>(2), 1, n_, n_, sums_, all.packed);
    pack(io.input<float>(2), n_, 1, sums_, n_, all.packed_back);
    if (l_.lengths) {
      std::fill_n(out(io, 0), l_.rows() * sums_, 0.0F);
      if (out(io, 1) != nullptr) std::fill_n(out(io, 1), l_.rows() * sums_, 0.0F);
      if (out(io, 2) != nullptr) std::fill_n(out(io, 2), l_.rows() * n_, 0.0F);
    }
    in_slots(io, parts_, slots_, [&](std::int64_t part, std::int64_t slot) {
      Buffers own = all;
      own.q = rows + slot * part_floats();
      own.h = own.q + q_;
      own.c = own.h + state_;
      own.passed = own.c + state_;
      const std::int64_t first = part * together_;
      const std::int64_t last = std::min(l_.batch, first + together_);
      forward(io, first, last, own);
      backward(io, first, last, own);
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    const std::int64_t kept = whole_lines(l_.rows() * n_) * (l_.gates == 3 ? 2 : 1);
    return static_cast<std::size_t>(packed_r() + packed_back_ + kept + slots_ * part_floats()) * sizeof(float);
  }
  [[nodiscard]] std::string_view implementation() const override {
    return multiply_ == multiply_avx512 ? "avx512 recurrent steps, back" : "avx2 recurrent steps, back";
  }

 private:
  struct Buffers {
    float *packed, *packed_back;
    float* kept;              // for each row: of LSTM c before the step, else h
    float* q_kept;            // of GRU, likewise, what its reset gate multiplies
    float *q, *h, *c;         // of a part: sums by the states, or their gradient; the states, or their gradients
    float* passed = nullptr;  // what of dh went through q
  };
  [[nodiscard]] std::int64_t part_floats() const { return q_ + 3 * state_; }

  void forward(const Io& io, std::int64_t first, std::int64_t last, const Buffers& at) const {
    load_states(io, 5, first, last, at.h);
    load_states(io, 6, first, last, at.c);
    const auto* z = io.input<float>(1);
    float* states = out(io, 2);
    for (std::int64_t k = 0; k < l_.steps; ++k) {
      add_states(io, at.h, at.packed, last - first, at.q);
      each_at(io, k, first, last, [&](std::int64_t b, std::int64_t row, std::int64_t /*to*/) {
        const std::int64_t i = b - first;
        float* h = at.h + i * n_;
        float* c = at.c + i * n_;
        const float* q = at.q + i * sums_;
        std::copy_n(l_.gates == 4 ? c : h, n_, at.kept + row * n_);
        if (states != nullptr) std::copy_n(h, n_, states + row * n_);
        if (l_.gates == 3) std::copy_n(q + 2 * n_, n_, at.q_kept + row * n_);
        loops_.step(z + row * sums_, z + (row + next_row_) * sums_, q, n_, h, c, out(io, 0) + row * sums_);
      });
    }
  }

  void backward(const Io& io, std::int64_t first, std::int64_t last, const Buffers& at) const {
    load_states(io, kRecurrentDh, first, last, at.h);
    load_states(io, kRecurrentDc, first, last, at.c);
    const auto* dy = io.input<float>(kRecurrentDy);
    float* extra = out(io, 1);
    for (std::int64_t k = l_.steps; k-- > 0;) {
      if (l_.lengths) std::fill_n(at.q, (last - first) * sums_, 0.0F);  // nothing passes back where there is no step
      each_at(io, k, first, last, [&](std::int64_t b, std::int64_t row, std::int64_t to) {
        const std::int64_t i = b - first;
        float* dh = at.h + i * n_;
        float* dq = at.q + i * sums_;
        for (std::int64_t j = 0; dy != nullptr && j < n_; ++j) dh[j] += dy[to + j];
        loops_.back(out(io, 0) + row * sums_, at.kept + row * n_, at.q_kept + row * n_, n_, dh, at.c + i * n_, dq);
        if (extra != nullptr) std::copy_n(dq, sums_, extra + row * sums_);
      });
      multiply_(at.q, sums_, 1, at.packed_back, at.passed, last - first, n_, sums_, Finish{});
      for (std::int64_t j = 0; j < (last - first) * n_; ++j) at.h[j] += at.passed[j];
    }
    store_states(at.h, first, last, out(io, 3));
    store_states(at.c, first, last, out(io, 4));
  }

  std::int64_t packed_back_ = 0;
};

}  // namespace

Result<KernelPtr> make_recurrent_steps(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "recurrent steps"));
  FALAJ_ASSIGN(auto spec, recurrent_spec(call));
  const auto layer = layer_of(spec);
  if (!layer) return refuse("other functions than the usual ones, or a GRU that resets before its product");
  if (spec.clip > 0 || spec.peepholes) return refuse("clipping or peepholes");
  if (spec.rows() == 0 || spec.hidden == 0) return refuse("nothing to compute");
  if (call.node.op.ends_with("Grad")) return std::make_unique<StepsGrad>(std::move(spec), *layer, call);
  std::shared_ptr<const Tensor> packed;
  const Tensor* r = call.in(2).constant;
  if (r != nullptr && call.packed != nullptr && !r->borrowed()) {
    packed = call.packed->get(*r, format("steps/{}x{}", spec.hidden, spec.sums()), [&] {
      Tensor t = Tensor::uninitialised(DType::f32, {static_cast<std::int64_t>(packed_elements(spec.hidden, spec.sums()))});
      pack(r->data<float>().data(), 1, spec.hidden, spec.hidden, spec.sums(), t.mutable_data<float>().data());
      return t;
    });
  }
  return std::make_unique<Steps>(std::move(spec), *layer, call, std::move(packed));
}

}  // namespace falaj::kernels::cpu
