// What the CPU backend can make. Each maker returns a kernel or says why not.
#pragma once
#include "kernels/ops.hpp"

namespace falaj::kernels::cpu {

// What our own f32 kernels need: AVX2, and a first operand of float32. `kernel` is what the refusal calls it.
Status check_f32(const KernelCall& call, std::string_view kernel);

Result<KernelPtr> make_small_matmul(const KernelCall& call);    // own AVX2
Result<KernelPtr> make_rounded_matmul(const KernelCall& call);  // the same, of operands rounded to bfloat16
Result<KernelPtr> make_dnnl_matmul(const KernelCall& call);     // oneDNN
Result<KernelPtr> make_binary(const KernelCall& call);          // Add Sub Mul Div PRelu
Result<KernelPtr> make_extremum(const KernelCall& call);        // Min Max
Result<KernelPtr> make_where(const KernelCall& call);           // of elements of four bytes
Result<KernelPtr> make_unary(const KernelCall& call);           // functions of one element: Relu Sigmoid Exp HardSwish ...
Result<KernelPtr> make_clip(const KernelCall& call);
Result<KernelPtr> make_pow(const KernelCall& call);            // by one of a few numbers
Result<KernelPtr> make_resize(const KernelCall& call);         // Resize, Upsample: along one dimension, or two neighbours
Result<KernelPtr> make_slope(const KernelCall& call);          // ReluGrad SigmoidGrad TanhGrad
Result<KernelPtr> make_reduce(const KernelCall& call);         // ReduceSum ReduceMean over neighbouring dimensions
Result<KernelPtr> make_reduce_like(const KernelCall& call);    // sums over leading dimensions
Result<KernelPtr> make_gelu_grad(const KernelCall& call);      // of the exact Gelu
Result<KernelPtr> make_softmax_grad(const KernelCall& call);   // SoftmaxGrad LogSoftmaxGrad, along the last dimension
Result<KernelPtr> make_cross_entropy(const KernelCall& call);  // SoftmaxCrossEntropy SoftmaxCrossEntropyGrad
Result<KernelPtr> make_layer_norm_grad(const KernelCall& call);
Result<KernelPtr> make_batch_norm(const KernelCall& call);         // by the batch's statistics, and BatchNormalizationTrainingGrad
Result<KernelPtr> make_softmax(const KernelCall& call);            // along the last dimension
Result<KernelPtr> make_layer_norm(const KernelCall& call);         // LayerNormalization without its optional outputs
Result<KernelPtr> make_group_norm(const KernelCall& call);         // InstanceNormalization GroupNormalization
Result<KernelPtr> make_mean_variance(const KernelCall& call);      // MeanVarianceNormalization over the last dimensions
Result<KernelPtr> make_lp_norm(const KernelCall& call);            // LpNormalization along the last dimension
Result<KernelPtr> make_rms_norm(const KernelCall& call);           // RMSNormalization
Result<KernelPtr> make_fixed_norm(const KernelCall& call);         // BatchNormalization by fixed statistics
Result<KernelPtr> make_attention(const KernelCall& call);          // ai.falaj's Attention
Result<KernelPtr> make_transpose(const KernelCall& call);          // of elements of four bytes
Result<KernelPtr> make_trees(const KernelCall& call);              // tree ensembles over f32
Result<KernelPtr> make_dnnl_conv(const KernelCall& call);          // Conv, and the gradients of it and of ConvTranspose, by oneDNN
Result<KernelPtr> make_conv_transpose(const KernelCall& call);     // own product, summed up where its places lie
Result<KernelPtr> make_bf16_product(const KernelCall& call);       // MatMul and Gemm by oneDNN, operands rounded to bfloat16 in the run
Result<KernelPtr> make_bf16_conv(const KernelCall& call);          // Conv and its gradients, likewise
Result<KernelPtr> make_block_conv(const KernelCall& call);         // ai.falaj's BlockConv and its gradients by oneDNN
Result<KernelPtr> make_block_weight_grad(const KernelCall& call);  // BlockConvWeightGrad by our own tiles
Result<KernelPtr> make_block_reorder(const KernelCall& call);      // ToBlocks FromBlocks
Result<KernelPtr> make_blocks(const KernelCall& call);             // what is between convolutions on blocks of channels
Result<KernelPtr> make_block_pool(const KernelCall& call);         // BlockPool and its gradients
Result<KernelPtr> make_half_product(const KernelCall& call);       // ai.falaj's HalfMatMul, HalfWeightGrad
Result<KernelPtr> make_rounded_product(const KernelCall& call);    // MatMul and Gemm in the same tiles, operands rounded in the run
Result<KernelPtr> make_winograd(const KernelCall& call);           // ai.falaj's Conv, 3 x 3 at stride 1: channels last, weights known
Result<KernelPtr> make_conv(const KernelCall& call);               // any of ai.falaj's Conv, likewise
Result<KernelPtr> make_pool(const KernelCall& call);               // ai.falaj's pools: channels last
Result<KernelPtr> make_recurrent_steps(const KernelCall& call);    // ai.falaj's RNNSteps GRUSteps LSTMSteps and their gradients
Result<KernelPtr> make_integer_matmul(const KernelCall& call);     // ai.falaj's QMatMul: weights known
Result<KernelPtr> make_integer_winograd(const KernelCall& call);   // ai.falaj's QConv, 3 x 3 at stride 1, likewise
Result<KernelPtr> make_integer_conv(const KernelCall& call);       // any of ai.falaj's QConv
Result<KernelPtr> make_integer_add(const KernelCall& call);        // ai.falaj's QAdd
Result<KernelPtr> make_integer_pool(const KernelCall& call);       // ai.falaj's QMaxPool, QGlobalAveragePool
Result<KernelPtr> make_quantize(const KernelCall& call);           // f32 to u8 or i8 by one scale; ai.falaj's Quantize
Result<KernelPtr> make_dequantize(const KernelCall& call);         // and back

}  // namespace falaj::kernels::cpu
