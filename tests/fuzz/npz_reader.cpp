// Any bytes are read as a zip file of arrays or refused, within bounds.
#include <cstdint>
#include <cstdlib>

#include "kernels/npz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  constexpr std::uint64_t kBytesMax = 1U << 22;
  const falaj::ByteView file(bytes, size);
  const auto names = falaj::kernels::npz_names(file);
  if (!names) return 0;
  std::size_t tried = 0;
  for (const auto& name : *names) {
    if (++tried > 4) break;
    const auto tensor = falaj::kernels::read_npz(file, name, falaj::kernels::DType::undefined, kBytesMax);
    // Text is kept wider than it is stored, numbers are as they are.
    if (tensor && tensor->dtype() != falaj::kernels::DType::string && tensor->bytes() > kBytesMax) std::abort();
  }
  return 0;
}
