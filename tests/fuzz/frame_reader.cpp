// Bytes of a hostile peer, in pieces of its choosing: the reader must stay within its bounds, and what it accepts must open.
#include <cstring>

#include "runtime/net/frames.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace falaj;
  if (size < 2) return 0;
  const bool greet = (data[0] & 1U) != 0;
  const std::size_t piece = 1U + data[1] * 16U;
  ByteView bytes(data + 2, size - 2);
  net::FrameReader reader;
  bool greeted = !greet;
  while (!bytes.empty()) {
    const auto space = reader.space();
    const auto count = std::min({space.size(), bytes.size(), piece});
    std::memcpy(space.data(), bytes.data(), count);
    reader.commit(count);
    bytes = bytes.subspan(count);
    if (!greeted) {
      auto hello = reader.next_hello();
      if (!hello.has_value()) return 0;
      if (!hello.value().has_value()) continue;
      static_cast<void>((*hello.value()).open<messages::Hello>());
      greeted = true;
    }
    for (;;) {
      auto frame = reader.next();
      if (!frame.has_value()) return 0;
      if (!frame.value().has_value()) break;
      static_cast<void>((*frame.value()).envelope.open<messages::Envelope>());
      static_cast<void>((*frame.value()).body.open<messages::ErrorInfo>());
    }
  }
  return 0;
}
