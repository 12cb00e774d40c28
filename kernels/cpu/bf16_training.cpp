// Training in bfloat16: products and convolutions, forward and backward, take their operands rounded to it and sum in f32; what they give,
// and all between them, stays f32, but for what products alone read (kernels/halves.cpp) and what lies between convolutions in blocks of
// channels (kernels/blocks.cpp). Where there is AVX512_BF16, large products are ours (halves.cpp), or oneDNN's for what these do not take,
// and convolutions are oneDNN's, but for gradients of weights from blocks (block_weights.cpp); other products are our own f32 ones, of
// rounded operands. Convolutions without that instruction set stay f32.
#include "kernels/cpu/makers.hpp"
#include "kernels/plan.hpp"

namespace falaj::kernels {
namespace {

Result<KernelPtr> make(const OpDef& op, const KernelCall& call) {
  const bool product = op.type == "MatMul" || (op.type == "Gemm" && op.domain == kOnnx);
  if (product) {
    for (auto* large : {cpu::make_rounded_product, cpu::make_bf16_product}) {
      if (auto kernel = large(call)) return kernel;
    }
    return cpu::make_rounded_matmul(call);
  }
  const bool convolution = (op.type == "Conv" && op.domain == kOnnx) || op.type == "ConvDataGrad" || op.type == "ConvWeightGrad";
  if (convolution) return cpu::make_bf16_conv(call);
  return Error{ErrorCode::unimplemented, "bf16 training: only products and convolutions"};
}

}  // namespace

const Backend& bf16_training_backend() {
  static const Backend kTraining{"bf16", make};
  return kTraining;
}

}  // namespace falaj::kernels
