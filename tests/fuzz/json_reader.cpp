// Any text is read onto a schema struct or refused; what was read is written and read again to the same text.
#include <capnp/message.h>

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "messages/json.hpp"
#include "tests/messages/sample.capnp.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using falaj::sample::Sample;
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  capnp::MallocMessageBuilder builder;
  auto root = builder.initRoot<Sample>();
  if (!falaj::from_json<Sample>(text, root).has_value()) return 0;
  const auto written = falaj::to_json(root.asReader());
  capnp::MallocMessageBuilder again;
  auto second = again.initRoot<Sample>();
  if (!falaj::from_json<Sample>(written, second).has_value()) std::abort();
  if (falaj::to_json(second.asReader()) != written) std::abort();
  return 0;
}
