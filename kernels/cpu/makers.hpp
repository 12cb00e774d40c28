// What the CPU backend can make. Each maker returns a kernel or says why not.
#pragma once
#include "kernels/ops.hpp"

namespace falaj::kernels::cpu {

Result<KernelPtr> make_small_matmul(const KernelCall& call);  // own AVX2
Result<KernelPtr> make_dnnl_matmul(const KernelCall& call);   // oneDNN
Result<KernelPtr> make_binary(const KernelCall& call);        // Add Sub Mul Div
Result<KernelPtr> make_unary(const KernelCall& call);         // Relu Sigmoid Tanh Exp Sqrt Neg
Result<KernelPtr> make_slope(const KernelCall& call);         // ReluGrad SigmoidGrad TanhGrad
Result<KernelPtr> make_reduce_like(const KernelCall& call);   // sums over leading dimensions

}  // namespace falaj::kernels::cpu
