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
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_relu, 0.0F, 0.0F);
      return {};
    case Activation::leaky_relu:
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_relu, alpha, 0.0F);
      return {};
    case Activation::sigmoid:
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_logistic, 0.0F, 0.0F);
      return {};
    case Activation::tanh:
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_tanh, 0.0F, 0.0F);
      return {};
    case Activation::gelu:
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_gelu_erf, 0.0F, 0.0F);
      return {};
  }
  return {};
}

class DnnlMatMul final : public Kernel {
 public:
  DnnlMatMul(const MatMulSpec& spec, const dnnl::matmul::primitive_desc& pd, std::shared_ptr<const Tensor> packed)
      : pd_(pd),
        primitive_(pd),
        packed_(std::move(packed)),
        has_bias_(spec.has_bias),
        scratch_(pd.scratchpad_desc().get_size()),
        name_(format("oneDNN {}", pd.impl_info_str())) {}

  void run(const Io& io) const override {
    const dnnl::engine& e = engine();
    dnnl::stream work = stream();
    memory a(pd_.src_desc(), e, io.in[0]);
    memory b(pd_.weights_desc(), e, packed_ == nullptr ? io.in[1] : const_cast<void*>(packed_->raw()));
    memory y(pd_.dst_desc(), e, io.out[0]);
    std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, y}};
    if (has_bias_) arguments.emplace(DNNL_ARG_BIAS, memory(pd_.bias_desc(), e, io.in[2]));
    if (scratch_ > 0) arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(pd_.scratchpad_desc(), e, io.scratch));
    primitive_.execute(work, arguments);
    work.wait();
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return scratch_; }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  dnnl::matmul::primitive_desc pd_;
  dnnl::matmul primitive_;
  std::shared_ptr<const Tensor> packed_;
  bool has_bias_;
  std::size_t scratch_;
  std::string name_;
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

Result<KernelPtr> make(const KernelCall& call, const MatMulSpec& spec) {
  one_thread();
  memory::desc a = plain(spec.m, spec.k, spec.a_row, spec.a_col);
  memory::desc own = plain(spec.k, spec.n, spec.b_row, spec.b_col);
  memory::desc y = plain(spec.m, spec.n, spec.n, 1);
  bool constant = call.in(1).constant != nullptr && call.packed != nullptr && !call.in(1).constant->borrowed();
  memory::desc b = constant ? memory::desc({spec.k, spec.n}, memory::data_type::f32, memory::format_tag::any) : own;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (spec.alpha != 1.0) attributes.set_output_scales(0, {static_cast<float>(spec.alpha)});
  dnnl::post_ops ops;
  FALAJ_TRY(add_activation(spec, ops));
  attributes.set_post_ops(ops);
  auto describe_product = [&] {
    if (!spec.has_bias) return dnnl::matmul::desc(a, b, y);
    return dnnl::matmul::desc(a, b, memory::desc({1, spec.n}, memory::data_type::f32, memory::format_tag::ab), y);
  };
  dnnl::matmul::primitive_desc pd(describe_product(), attributes, engine());
  std::shared_ptr<const Tensor> packed;
  if (constant && pd.weights_desc() != own) packed = packed_weights(call, spec, pd.weights_desc(), own);
  return std::make_unique<DnnlMatMul>(spec, pd, std::move(packed));
}

}  // namespace

Result<KernelPtr> make_dnnl_matmul(const KernelCall& call) {
  if (call.batch_invariant) return refuse("its sums depend on the batch, and this graph is compiled to be invariant");
  if (call.in(0).dtype != DType::f32) return refuse(format("only float32, not {}", to_string(call.in(0).dtype)));
  FALAJ_ASSIGN(auto spec, matmul_spec(call));
  if (spec.batches() != 1) return refuse("batched operands");
  if (spec.m * spec.n * spec.k < kWorkMin)
    return refuse(format("{} multiply-adds are too few to repay the call ({})", spec.m * spec.n * spec.k, kWorkMin));
  if (spec.has_bias && (spec.bias_row != 0 || spec.bias_col != 1 || spec.beta != 1.0 || spec.alpha != 1.0))
    return refuse("the bias is no plain row, or alpha or beta is not 1");
  try {
    return make(call, spec);
  } catch (const dnnl::error& e) {
    return refuse(format("{} (status {})", e.what(), static_cast<int>(e.status)));
  }
}

}  // namespace falaj::kernels::cpu
