// NumPy's .npy format, in and out. What NumPy has no type for travels as bits: bfloat16 as uint16, the 8-bit floats as uint8, 4-bit
// integers as int8 or uint8 with one value a byte; strings as fixed-width UTF-32 ('<U').
//
// Input is what anybody may send: sizes are checked against the bytes that are there before memory is taken.
#pragma once
#include <string_view>

#include "kernels/tensor.hpp"
#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

// `wanted`: the element type the values are for; undefined: as the file says. A file of another type is refused, not converted.
Result<Tensor> read_npy(ByteView file, DType wanted = DType::undefined);
Result<Bytes> write_npy(const Tensor& tensor);

}  // namespace falaj::kernels
