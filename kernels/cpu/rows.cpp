// Softmax and LayerNormalization along rows, for AVX2 and AVX-512, and Transpose. A row's bits depend on nothing but the row.
#include "kernels/cpu/rows.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/named_kernel.hpp"
#include "kernels/cpu/turn.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 rows: {}", why)}; }

template <class F>
KernelPtr rows(F f) {
  return named_kernel(has_avx512() ? "avx512 rows" : "avx2 rows", std::move(f));
}

struct Norm {
  std::int64_t rows, width;
  double epsilon;
};

#define FALAJ_BODY "kernels/cpu/rows_body.hpp"
#include "kernels/cpu/both_widths.hpp"

// --- Transpose ----------------------------------------------------------------------------------------------------------------

// A dimension of the result: its size, and how far apart its elements are in what is read and in what is written.
struct Loop {
  std::int64_t size, read, write;
};

// A matrix whose rows are read together and whose columns are written together.
FALAJ_AVX2 void turn(const float* x, float* y, const Loop& rows_read, const Loop& columns_read) {
  const std::int64_t m = rows_read.size;     // written together
  const std::int64_t n = columns_read.size;  // read together
  std::int64_t done = 0;
  if (m == 3 && columns_read.write == 3) {  // colours
    for (; done + 8 <= n; done += 8) turn3(x + done, rows_read.read, y + 3 * done);
  }
  for (std::int64_t i = 0; i < m; i += 8) {
    for (std::int64_t j = done; j < n; j += 8) {
      if (i + 8 <= m && j + 8 <= n) {
        turn8(x + i * rows_read.read + j, rows_read.read, y + j * columns_read.write + i, columns_read.write);
        continue;
      }
      for (std::int64_t b = j; b < std::min(j + 8, n); ++b) {
        for (std::int64_t a = i; a < std::min(i + 8, m); ++a) y[b * columns_read.write + a] = x[a * rows_read.read + b];
      }
    }
  }
}

class TransposeKernel final : public Kernel {
 public:
  explicit TransposeKernel(std::vector<Loop> loops) : loops_(std::move(loops)) {
    // The loop within all others moves runs of elements, or turns a matrix.
    straight_ = loops_.back().read == 1;
    inner_.push_back(loops_.back());
    loops_.pop_back();
    if (straight_) return;
    const auto together = std::ranges::find(loops_, 1, &Loop::read);
    if (together == loops_.end()) return;
    inner_.push_back(*together);
    loops_.erase(together);
  }
  void run(const Io& io) const override { walk(io.input<float>(0), io.output<float>(0), 0); }
  [[nodiscard]] std::string_view implementation() const override { return straight_ ? "runs" : "avx2 turns"; }

 private:
  void walk(const float* x, float* y, std::size_t depth) const {
    if (depth < loops_.size()) {
      const Loop& loop = loops_[depth];
      for (std::int64_t i = 0; i < loop.size; ++i) walk(x + i * loop.read, y + i * loop.write, depth + 1);
      return;
    }
    const Loop& last = inner_[0];
    if (straight_) {
      std::memcpy(y, x, static_cast<std::size_t>(last.size) * sizeof(float));
    } else if (inner_.size() == 2) {
      turn(x, y, last, inner_[1]);
    } else {
      for (std::int64_t i = 0; i < last.size; ++i) y[i] = x[i * last.read];
    }
  }

  std::vector<Loop> loops_, inner_;
  bool straight_ = false;
};

}  // namespace

SoftmaxRows softmax_rows() { return has_avx512() ? lanes16::softmax_rows : lanes8::softmax_rows; }

Result<KernelPtr> make_softmax(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 rows"));
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  const auto split = split_at(in, axis);
  if (call.opset < 13 || split.inner != 1 || split.size == 0) return refuse("only along the last dimension, of opset 13 and newer");
  return rows([split, softmax = softmax_rows()](const Io& io) {
    in_ranges(io, split.outer, part_rows(split.size), [&](std::int64_t first, std::int64_t last) {
      softmax(io.input<float>(0) + first * split.size, io.output<float>(0) + first * split.size, last - first, split.size);
    });
  });
}

Result<KernelPtr> make_layer_norm(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 rows"));
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  FALAJ_ASSIGN(const double epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  const Norm norm{in.elements(0, static_cast<std::size_t>(axis)), in.elements(static_cast<std::size_t>(axis), in.rank()), epsilon};
  for (std::size_t i = 1; i < call.node.outputs.size(); ++i) {
    if (!call.node.outputs[i].empty()) return refuse("mean and deviation are wanted too");
  }
  if (norm.width == 0) return refuse("rows of nothing");
  return rows([norm, bias = call.has(2), norm_rows = has_avx512() ? lanes16::norm_rows : lanes8::norm_rows](const Io& io) {
    in_ranges(io, norm.rows, part_rows(norm.width), [&](std::int64_t first, std::int64_t last) {
      norm_rows(io.input<float>(0) + first * norm.width, io.input<float>(1), bias ? io.input<float>(2) : nullptr,
                io.output<float>(0) + first * norm.width, last - first, norm);
    });
  });
}

Result<KernelPtr> make_transpose(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  const Shape& in = call.in(0).shape;
  const Shape& out = call.outputs[0].shape;
  if (size_of(call.in(0).dtype) != sizeof(float) || out.elements() == 0) return refuse("only elements of four bytes");
  std::vector<std::int64_t> perm;
  for (std::size_t i = in.rank(); i-- > 0;) perm.push_back(static_cast<std::int64_t>(i));
  FALAJ_ASSIGN(perm, attr_ints(call.node, "perm", perm));
  const Strides read = row_major(in);
  const Strides write = row_major(out);
  std::vector<Loop> loops;
  for (std::size_t d = 0; d < out.rank(); ++d) {
    const Loop loop{out[d], read[static_cast<std::size_t>(perm[d])], write[d]};
    if (loop.size == 1) continue;
    const bool joins = !loops.empty() && loops.back().read == loop.size * loop.read;  // the result's own steps always do
    if (joins) {
      loops.back() = {loops.back().size * loop.size, loop.read, loop.write};
    } else {
      loops.push_back(loop);
    }
  }
  if (loops.empty()) loops.push_back({1, 1, 1});
  return std::make_unique<TransposeKernel>(std::move(loops));
}

}  // namespace falaj::kernels::cpu
