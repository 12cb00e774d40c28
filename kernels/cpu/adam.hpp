// The loops over all parameters. They take eight of them at a time where there is AVX2, sixteen with AVX-512: the same bits as one at a
// time, for each lane does the same IEEE operations in the same order, and none is contracted.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace falaj::kernels::cpu {

struct AdamStep {
  float scale;       // of the gradients, before anything else
  float keep;        // factor of a decayed parameter
  float added;       // of the parameter, to its gradient
  float beta1_rest;  // 1 - beta1
  float beta2, beta2_rest;
  float root_scale, epsilon;  // of the second moment's root
  float rate;
};
// decay[i] != 0: parameter i decays; null: all do.
void adam(const AdamStep& step, const std::uint8_t* decay, const float* gradients, float* first, float* second, float* parameters,
          std::size_t count);

// Of the values times `scale`, rounded to f32. In double, eight sums side by side: value i goes to sum i % 8, and these are added pairwise.
double sum_of_squares(std::span<const float> values, float scale = 1.0F) noexcept;

}  // namespace falaj::kernels::cpu
