// Any text is read or refused; what was read is written and read again to the same struct.
#include <capnp/message.h>

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "runtime/config.hpp"
#include "tests/messages/sample.capnp.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using falaj::sample::Sample;
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  capnp::MallocMessageBuilder builder;
  auto root = builder.initRoot<Sample>();
  if (!falaj::config::parse_toml<Sample>(text, "fuzz.toml", root).has_value()) return 0;
  const auto written = falaj::config::to_toml(root.asReader());
  capnp::MallocMessageBuilder again;
  auto second = again.initRoot<Sample>();
  if (!falaj::config::parse_toml<Sample>(written, "again.toml", second).has_value()) std::abort();
  if (falaj::config::to_toml(second.asReader()) != written) std::abort();
  return 0;
}
