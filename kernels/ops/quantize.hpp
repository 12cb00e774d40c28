// What the quantised ops share.
#pragma once
#include <vector>

#include "kernels/ops.hpp"

namespace falaj::kernels {

// Zero point `input` (optional) must have the type of `of`, and one element, or `each` of them.
Status check_zero_point(const OpCall& call, std::size_t input, std::size_t of, std::int64_t each);
// The input's values; {0} if it is absent.
std::vector<double> numbers_or_zero(const std::vector<ValueType>& types, std::size_t input, const Io& io);
// Values less the zero point (its first).
std::vector<double> dequantised(const ValueType& type, const void* x, const std::vector<double>& zero);

}  // namespace falaj::kernels
