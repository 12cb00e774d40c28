// The loop of Adam and AdamW, eight parameters at a time where there is AVX2: the same bits as one at a time, for each lane does the same
// IEEE operations in the same order, and none is contracted.
#pragma once
#include <cstddef>
#include <cstdint>

namespace falaj::kernels::cpu {

struct AdamStep {
  float keep;        // factor of a decayed parameter
  float added;       // of the parameter, to its gradient
  float beta1_rest;  // 1 - beta1
  float beta2, beta2_rest;
  float root_scale, epsilon;  // of the second moment's root
  float rate;
};
// decay[i] != 0: parameter i decays.
void adam(const AdamStep& step, const std::uint8_t* decay, const float* gradients, float* first, float* second, float* parameters,
          std::size_t count);

}  // namespace falaj::kernels::cpu
