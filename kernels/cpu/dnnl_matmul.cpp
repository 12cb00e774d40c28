// MatMul and Gemm by oneDNN: for products that are large enough to repay its call. Weights known before the run are kept in the layout
// that oneDNN asks for; bias and activation are fused.
//
// One primitive is one immutable kernel, run from any thread: scratch memory is ours (scratchpad_mode::user), and memory objects are
// made in the run from handles, for they carry pointers.
#include <unordered_map>

#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/onednn.hpp"
#include "kernels/ops/matmul.hpp"
#include "kernels/parallel.hpp"
#include "kernels/plan.hpp"

namespace falaj::kernels::cpu {
namespace {

// Measured on AVX2: below this many multiply-adds our own product is as fast or faster.
constexpr std::int64_t kWorkMin = std::int64_t{1} << 21;

using dnnl::memory;

memory::desc plain(std::int64_t rows, std::int64_t cols, std::int64_t row_stride, std::int64_t col_stride) {
  return memory::desc({rows, cols}, memory::data_type::f32, memory::dims{row_stride, col_stride});
}

Status add_activation(const MatMulSpec& spec, dnnl::post_ops& ops) {
  auto alpha = static_cast<float>(spec.activation_alpha);
  switch (spec.activation) {
    case Activation::none:
      return {};
    case Activation::relu:
      append_eltwise(ops, dnnl::algorithm::eltwise_relu);
      return {};
    case Activation::leaky_relu:
      append_eltwise(ops, dnnl::algorithm::eltwise_relu, alpha);
      return {};
    case Activation::sigmoid:
      append_eltwise(ops, dnnl::algorithm::eltwise_logistic);
      return {};
    case Activation::tanh:
      append_eltwise(ops, dnnl::algorithm::eltwise_tanh);
      return {};
    case Activation::gelu:
      append_eltwise(ops, dnnl::algorithm::eltwise_gelu_erf);
      return {};
    case Activation::clip:
    case Activation::swish:
    case Activation::hard_swish:
      return Error{ErrorCode::unimplemented, "oneDNN: the activation is another one than those of old"};
  }
  return {};
}

// A product's rows in parts, each a primitive's, which threads may share. Operands that the primitives want otherwise (rounded to
// bfloat16, in blocks, not turned) are reordered in the run, into scratch memory: the right one for all parts, the left one part by part.
class DnnlMatMul final : public Kernel {
 public:
  struct Part {
    dnnl::matmul::primitive_desc pd;
    std::int64_t first = 0, rows = 0;
  };
  DnnlMatMul(const MatMulSpec& spec, std::vector<Part> parts, std::shared_ptr<const Tensor> packed, std::size_t threads)
      : spec_(spec),
        parts_(std::move(parts)),
        right_(plain(spec.k, spec.n, spec.b_row, spec.b_col)),
        packed_(std::move(packed)),
        slots_(std::min(threads, parts_.size())),
        name_(format("oneDNN {}{}", parts_[0].pd.impl_info_str(), parts_.size() > 1 ? format(", {} parts", parts_.size()) : "")) {
    const memory::desc& blocks = parts_[0].pd.weights_desc();
    if (packed_ == nullptr && blocks != right_) {
      turn_b_ = dnnl::reorder(dnnl::reorder::primitive_desc(engine(), right_, engine(), blocks));
      b_bytes_ = aligned(blocks.get_size());
    }
    for (const Part& part : parts_) {
      primitives_.emplace_back(part.pd);
      const bool turns = part.pd.src_desc() != left(part);
      turn_a_.push_back(turns ? dnnl::reorder(dnnl::reorder::primitive_desc(engine(), left(part), engine(), part.pd.src_desc()))
                              : dnnl::reorder());
      if (turns) a_bytes_ = std::max(a_bytes_, aligned(part.pd.src_desc().get_size()));
      work_bytes_ = std::max(work_bytes_, aligned(part.pd.scratchpad_desc().get_size()));
    }
  }

  void run(const Io& io) const override {
    void* b = packed_ == nullptr ? io.in[1] : const_cast<void*>(packed_->raw());
    if (b_bytes_ > 0) {
      dnnl::stream work = stream();
      memory from(right_, engine(), b);
      memory to(parts_[0].pd.weights_desc(), engine(), io.scratch);
      turn_b_.execute(work, from, to);
      work.wait();
      b = io.scratch;
    }
    in_slots(io, static_cast<std::int64_t>(parts_.size()), static_cast<std::int64_t>(slots_), [&](std::int64_t i, std::int64_t slot) {
      run_part(io, b, static_cast<std::size_t>(i), io.scratch + b_bytes_ + static_cast<std::size_t>(slot) * (a_bytes_ + work_bytes_));
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return b_bytes_ + slots_ * (a_bytes_ + work_bytes_); }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
  [[nodiscard]] memory::desc left(const Part& part) const { return plain(part.rows, spec_.k, spec_.a_row, spec_.a_col); }

  void run_part(const Io& io, void* right, std::size_t i, std::byte* scratch) const {
    const dnnl::engine& e = engine();
    dnnl::stream work = stream();
    const Part& part = parts_[i];
    void* rows = static_cast<float*>(io.in[0]) + part.first * spec_.a_row;
    if (turn_a_[i]) {
      memory from(left(part), e, rows);
      memory to(part.pd.src_desc(), e, scratch);
      turn_a_[i].execute(work, from, to);
      rows = scratch;
    }
    memory a(part.pd.src_desc(), e, rows);
    memory b(part.pd.weights_desc(), e, right);
    memory y(part.pd.dst_desc(), e, static_cast<float*>(io.out[0]) + part.first * spec_.n);
    std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, y}};
    if (spec_.has_bias) arguments.emplace(DNNL_ARG_BIAS, memory(part.pd.bias_desc(), e, io.in[2]));
    if (work_bytes_ > 0) arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(part.pd.scratchpad_desc(), e, scratch + a_bytes_));
    primitives_[i].execute(work, arguments);
    work.wait();
  }

  MatMulSpec spec_;
  std::vector<Part> parts_;
  memory::desc right_;
  std::vector<dnnl::matmul> primitives_;
  dnnl::reorder turn_b_;
  std::vector<dnnl::reorder> turn_a_;  // empty: a is taken as it comes
  std::shared_ptr<const Tensor> packed_;
  std::size_t slots_;
  std::string name_;
  std::size_t a_bytes_ = 0, b_bytes_ = 0, work_bytes_ = 0;
};

std::shared_ptr<const Tensor> packed_weights(const KernelCall& call, const MatMulSpec& spec, const memory::desc& wanted,
                                             const memory::desc& own) {
  const Tensor& weights = *call.in(1).constant;
  // The layout is a function of machine, library and wanted bytes; for one matrix of one model that names it.
  return call.packed->get(weights, format("dnnl/{}x{}x{}", spec.m, spec.k, spec.n), [&] {
    Tensor packed = Tensor::uninitialised(DType::u8, {static_cast<std::int64_t>(wanted.get_size())});
    memory from(own, engine(), const_cast<void*>(weights.raw()));
    memory to(wanted, engine(), packed.mutable_raw());
    dnnl::stream work = stream();
    dnnl::reorder(from, to).execute(work, from, to);
    work.wait();
    return packed;
  });
}

// Rows of a part: the shape alone decides, so that sums have one order on any number of threads.
std::int64_t rows_of_part(const MatMulSpec& spec) {
  constexpr std::int64_t kWorkOfParts = std::int64_t{1} << 23;
  constexpr std::int64_t kRows = 64;
  constexpr std::int64_t kPartsMax = 4;
  if (spec.m * spec.n * spec.k < kWorkOfParts || spec.m < 2 * kRows) return spec.m;
  const std::int64_t parts = std::min(kPartsMax, spec.m / kRows);
  return (spec.m + parts * kRows - 1) / (parts * kRows) * kRows;
}

Result<KernelPtr> make(const KernelCall& call, const MatMulSpec& spec, bool bf16) {
  one_thread();
  const auto type = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const bool constant = !bf16 && call.in(1).constant != nullptr && call.packed != nullptr && !call.in(1).constant->borrowed();
  const std::int64_t together = rows_of_part(spec);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops ops;
  if (spec.alpha != 1.0) append_eltwise(ops, dnnl::algorithm::eltwise_linear, static_cast<float>(spec.alpha));
  FALAJ_TRY(add_activation(spec, ops));
  attributes.set_post_ops(ops);
  const memory::desc own = plain(spec.k, spec.n, spec.b_row, spec.b_col);
  const bool blocks = constant || bf16 || together < spec.m;  // parts would arrange it each for itself
  const memory::desc b = blocks ? memory::desc({spec.k, spec.n}, type, memory::format_tag::any) : own;
  const memory::desc bias = spec.has_bias ? memory::desc({1, spec.n}, memory::data_type::f32, memory::format_tag::ab) : memory::desc();
  std::vector<DnnlMatMul::Part> parts;
  for (std::int64_t first = 0; first < spec.m; first += together) {
    const std::int64_t rows = std::min(together, spec.m - first);
    // One that lies column by column is turned first: for such, oneDNN has slower products, which allocate in the run.
    const bool turned = bf16 || (blocks && spec.a_col != 1);
    const memory::desc a =
        turned ? memory::desc({rows, spec.k}, type, memory::format_tag::ab) : plain(rows, spec.k, spec.a_row, spec.a_col);
    const memory::desc y = plain(rows, spec.n, spec.n, 1);
    // All parts take the right operand as the first one wants it.
    const memory::desc& given = parts.empty() ? b : parts[0].pd.weights_desc();
    parts.push_back({describe_product(a, given, bias, y, attributes), first, rows});
  }
  std::shared_ptr<const Tensor> packed;
  if (constant && parts[0].pd.weights_desc() != own) packed = packed_weights(call, spec, parts[0].pd.weights_desc(), own);
  return std::make_unique<DnnlMatMul>(spec, std::move(parts), std::move(packed), call.threads);
}

Result<KernelPtr> make_if_fit(const KernelCall& call, bool bf16) {
  if (call.batch_invariant) return refuse("its sums depend on the batch, and this graph is compiled to be invariant");
  if (call.in(0).dtype != DType::f32) return refuse(format("only float32, not {}", to_string(call.in(0).dtype)));
  FALAJ_ASSIGN(auto spec, matmul_spec(call));
  if (spec.batches() != 1) return refuse("batched operands");
  if (spec.m * spec.n * spec.k < kWorkMin)
    return refuse(format("{} multiply-adds are too few to repay the call ({})", spec.m * spec.n * spec.k, kWorkMin));
  if (spec.has_bias && (spec.bias_row != 0 || spec.bias_col != 1 || spec.beta != 1.0 || spec.alpha != 1.0))
    return refuse("the bias is no plain row, or alpha or beta is not 1");
  try {
    return make(call, spec, bf16);
  } catch (const dnnl::error& e) {
    return refuse(format("{} (status {})", e.what(), static_cast<int>(e.status)));
  }
}

}  // namespace

Result<KernelPtr> make_dnnl_matmul(const KernelCall& call) { return make_if_fit(call, false); }

Result<KernelPtr> make_bf16_product(const KernelCall& call) {
  if (!has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  return make_if_fit(call, true);
}

}  // namespace falaj::kernels::cpu
