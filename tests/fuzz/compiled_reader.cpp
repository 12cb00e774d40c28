// Any head, with a checksum that fits, is read as a compiled model or refused, within bounds; what is read can be written again.
#include <cstdint>
#include <cstring>

#include "kernels/compiled_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace falaj;
  constexpr std::size_t kOpening = 20;
  constexpr std::size_t kPage = 4096;
  const std::size_t head = size + sizeof(std::uint32_t);
  kernels::Tensor storage(kernels::DType::u8, {static_cast<std::int64_t>((kOpening + head + kPage - 1) / kPage * kPage + kPage)});
  auto* file = storage.mutable_data<std::uint8_t>().data();
  const std::uint32_t version = 1;
  const std::uint64_t length = head;
  const std::uint32_t sum = crc32c({bytes, size});
  std::memcpy(file, "FALAJCMP", 8);
  std::memcpy(file + 8, &version, sizeof version);
  std::memcpy(file + 12, &length, sizeof length);
  if (size > 0) std::memcpy(file + kOpening, bytes, size);
  std::memcpy(file + kOpening + size, &sum, sizeof sum);
  const auto kept = std::make_shared<const kernels::Tensor>(storage);
  const auto read = kernels::read_compiled({kept->data<std::uint8_t>(), kept}, "", {});
  if (read) (void)kernels::write_compiled(**read, "", [](ByteView) -> Status { return {}; });
  return 0;
}
