// The CPU backend: which kernel for which op, in order of preference. Flags of the floating-point unit for compute threads.
#include <xmmintrin.h>

#include <array>
#include <utility>

#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/onednn.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

extern "C" void omp_set_num_threads(int);  // libgomp, which oneDNN runs on

namespace falaj::kernels {
namespace cpu {

void one_thread() { omp_set_num_threads(1); }

namespace {
constinit thread_local bool g_without_avx512 = false;
}
WithoutAvx512::WithoutAvx512() noexcept : before_(std::exchange(g_without_avx512, true)) {}
WithoutAvx512::~WithoutAvx512() { g_without_avx512 = before_; }

bool has_avx2() noexcept {
  static const bool kHas = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return kHas;
}
bool has_avx512() noexcept {
  static const bool kHas = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512dq");
  return kHas && !g_without_avx512;
}
bool has_avx_vnni() noexcept {
  static const bool kHas = has_avx2() && __builtin_cpu_supports("avxvnni");
  return kHas;
}
bool has_avx512_vnni() noexcept { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx512_bf16() noexcept { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

Status check_f32(const KernelCall& call, std::string_view kernel) {
  if (!has_avx2()) return Error{ErrorCode::unimplemented, format("{}: this CPU has no AVX2", kernel)};
  if (call.in(0).dtype == DType::f32) return {};
  return Error{ErrorCode::unimplemented, format("{}: only float32, not {}", kernel, to_string(call.in(0).dtype))};
}

namespace {

struct Entry {
  std::string_view domain, op;
  Result<KernelPtr> (*make)(const KernelCall&);
};
constexpr Entry kEntries[] = {
    {kOnnx, "Conv", make_dnnl_conv},
    {kOnnx, "ConvTranspose", make_conv_transpose},
    {kFalaj, "ConvDataGrad", make_dnnl_conv},
    {kFalaj, "ConvWeightGrad", make_dnnl_conv},
    {kFalaj, "ConvTransposeDataGrad", make_dnnl_conv},
    {kFalaj, "ConvTransposeWeightGrad", make_dnnl_conv},
    {kOnnxMl, "TreeEnsembleRegressor", make_trees},
    {kOnnxMl, "TreeEnsembleClassifier", make_trees},
    {kOnnxMl, "TreeEnsemble", make_trees},
    {kOnnx, "Erf", make_unary},
    {kOnnx, "Gelu", make_unary},
    {kOnnx, "Softmax", make_softmax},
    {kOnnx, "LayerNormalization", make_layer_norm},
    {kOnnx, "BatchNormalization", make_fixed_norm},
    {kOnnx, "InstanceNormalization", make_group_norm},
    {kOnnx, "GroupNormalization", make_group_norm},
    {kOnnx, "MeanVarianceNormalization", make_mean_variance},
    {kOnnx, "LpNormalization", make_lp_norm},
    {kOnnx, "RMSNormalization", make_rms_norm},
    {kFalaj, "Attention", make_attention},
    {kOnnx, "Transpose", make_transpose},
    {kOnnx, "MatMul", make_dnnl_matmul},
    {kOnnx, "Gemm", make_dnnl_matmul},
    {kFalaj, "MatMul", make_dnnl_matmul},
    {kOnnx, "MatMul", make_small_matmul},
    {kOnnx, "Gemm", make_small_matmul},
    {kFalaj, "MatMul", make_small_matmul},
    {kOnnx, "Add", make_binary},
    {kOnnx, "Sub", make_binary},
    {kOnnx, "Mul", make_binary},
    {kOnnx, "Div", make_binary},
    {kOnnx, "PRelu", make_binary},
    {kOnnx, "Min", make_extremum},
    {kOnnx, "Max", make_extremum},
    {kOnnx, "Where", make_where},
    {kOnnx, "Clip", make_clip},
    {kOnnx, "Pow", make_pow},
    {kOnnx, "ReduceSum", make_reduce},
    {kOnnx, "ReduceMean", make_reduce},
    {kOnnx, "Relu", make_unary},
    {kOnnx, "LeakyRelu", make_unary},
    {kOnnx, "Elu", make_unary},
    {kOnnx, "Selu", make_unary},
    {kOnnx, "Sigmoid", make_unary},
    {kOnnx, "HardSigmoid", make_unary},
    {kOnnx, "Swish", make_unary},
    {kOnnx, "HardSwish", make_unary},
    {kOnnx, "Mish", make_unary},
    {kOnnx, "Tanh", make_unary},
    {kOnnx, "Softplus", make_unary},
    {kOnnx, "Softsign", make_unary},
    {kOnnx, "Exp", make_unary},
    {kOnnx, "Log", make_unary},
    {kOnnx, "Sqrt", make_unary},
    {kOnnx, "Reciprocal", make_unary},
    {kOnnx, "Neg", make_unary},
    {kOnnx, "Abs", make_unary},
    {kOnnx, "Floor", make_unary},
    {kOnnx, "Ceil", make_unary},
    {kOnnx, "Round", make_unary},
    {kOnnx, "Resize", make_resize},
    {kOnnx, "Upsample", make_resize},
    {kFalaj, "ReluGrad", make_slope},
    {kFalaj, "SigmoidGrad", make_slope},
    {kFalaj, "TanhGrad", make_slope},
    {kFalaj, "ReduceLike", make_reduce_like},
    {kFalaj, "GeluGrad", make_gelu_grad},
    {kFalaj, "SoftmaxGrad", make_softmax_grad},
    {kFalaj, "LogSoftmaxGrad", make_softmax_grad},
    {kFalaj, "SoftmaxCrossEntropy", make_cross_entropy},
    {kFalaj, "SoftmaxCrossEntropyGrad", make_cross_entropy},
    {kFalaj, "LayerNormalizationGrad", make_layer_norm_grad},
    {kFalaj, "BatchNormalization", make_batch_norm},
    {kFalaj, "BatchNormalizationTrainingGrad", make_batch_norm},
    {kFalaj, "HalfMatMul", make_half_product},
    {kFalaj, "HalfWeightGrad", make_half_product},
    {kFalaj, "BlockConv", make_block_conv},
    {kFalaj, "BlockConvDataGrad", make_block_conv},
    {kFalaj, "BlockConvWeightGrad", make_block_weight_grad},
    {kFalaj, "BlockConvWeightGrad", make_block_conv},
    {kFalaj, "ToBlocks", make_block_reorder},
    {kFalaj, "FromBlocks", make_block_reorder},
    {kFalaj, "BlockStatistics", make_blocks},
    {kFalaj, "BlockNorm", make_blocks},
    {kFalaj, "BlockNormGrad", make_blocks},
    {kFalaj, "BlockSum", make_blocks},
    {kFalaj, "ChannelSums", make_blocks},
    {kFalaj, "BlockPool", make_block_pool},
    {kFalaj, "BlockMaxPoolGrad", make_block_pool},
    {kFalaj, "BlockMeanPoolGrad", make_block_pool},
    {kFalaj, "Conv", make_winograd},
    {kFalaj, "Conv", make_conv},
    {kFalaj, "MaxPool", make_pool},
    {kFalaj, "AveragePool", make_pool},
    {kFalaj, "GlobalMaxPool", make_pool},
    {kFalaj, "GlobalAveragePool", make_pool},
    {kFalaj, "RNNSteps", make_recurrent_steps},
    {kFalaj, "GRUSteps", make_recurrent_steps},
    {kFalaj, "LSTMSteps", make_recurrent_steps},
    {kFalaj, "RNNStepsGrad", make_recurrent_steps},
    {kFalaj, "GRUStepsGrad", make_recurrent_steps},
    {kFalaj, "LSTMStepsGrad", make_recurrent_steps},
    {kFalaj, "QMatMul", make_integer_matmul},
    {kFalaj, "QConv", make_integer_winograd},
    {kFalaj, "QConv", make_integer_conv},
    {kFalaj, "QAdd", make_integer_add},
    {kFalaj, "QMaxPool", make_integer_pool},
    {kFalaj, "QGlobalAveragePool", make_integer_pool},
    {kFalaj, "Quantize", make_quantize},
    {kOnnx, "QuantizeLinear", make_quantize},
    {kOnnx, "DequantizeLinear", make_dequantize},
};

Result<KernelPtr> make(const OpDef& op, const KernelCall& call) {
  Error refused{ErrorCode::unimplemented, "no fast kernel for this op"};
  bool first = true;
  for (const Entry& entry : kEntries) {
    if (entry.op != op.type || entry.domain != op.domain) continue;
    auto made = entry.make(call);
    if (made) return made;
    refused.message = first ? made.error().message : refused.message + "; " + made.error().message;
    first = false;
  }
  return refused;
}

}  // namespace
}  // namespace cpu

const Backend& cpu_backend() {
  static const Backend kCpu{"cpu", cpu::make};
  return kCpu;
}

std::string backends_version() {
  const dnnl_version_t& v = *dnnl_version();
  return format("avx2 {:d} avx512 {:d} avx_vnni {:d} avx512_vnni {:d} avx512_bf16 {:d} amx_int8 {:d} amx_bf16 {:d} oneDNN {}.{}.{} for {}",
                cpu::has_avx2(), cpu::has_avx512(), cpu::has_avx_vnni(), cpu::has_avx512_vnni(), cpu::has_avx512_bf16(),
                cpu::has_amx_int8(), cpu::has_amx_bf16(), v.major, v.minor, v.patch, static_cast<int>(dnnl::get_effective_cpu_isa()));
}

void set_flush_denormals() {
  _mm_setcsr(_mm_getcsr() | 0x8040U);  // flush to zero, denormals are zero
}

}  // namespace falaj::kernels
