// Any bytes are read as an array or refused; what was read is written and read again as it was.
#include <cstdint>
#include <cstdlib>

#include "kernels/npy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  auto tensor = falaj::kernels::read_npy({bytes, size});
  if (!tensor) return 0;
  auto written = falaj::kernels::write_npy(*tensor);
  if (!written) std::abort();
  auto again = falaj::kernels::read_npy(*written);
  if (!again) std::abort();
  // Texts that are no UTF-8 are repaired once.
  if (tensor->dtype() != falaj::kernels::DType::string && !falaj::kernels::equal_bits(*tensor, *again)) std::abort();
  return 0;
}
