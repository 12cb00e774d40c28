// Kernels that conv.cpp chooses from.
#pragma once
#include <memory>

#include "kernels/ops/channels_last.hpp"

namespace falaj::kernels::cpu {

// Each channel has a map of its own. `packed`: of pack_depthwise, [places, channels].
Tensor pack_depthwise(const Tensor& weights, const ConvSpec& s);
KernelPtr make_depthwise(FusedConv fused, std::shared_ptr<const Tensor> packed);

}  // namespace falaj::kernels::cpu
