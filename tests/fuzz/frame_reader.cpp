// Bytes of a hostile peer, in pieces of its choosing: the reader must stay within its bounds, and what it accepts must open. What it reads
// of an envelope is what Cap'n Proto reads.
#include <cstring>

#include "runtime/net/frames.hpp"

namespace {

using falaj::text;

bool same(const falaj::Header::Address& read, falaj::messages::Address::Reader wanted) {
  return read.node == wanted.getNode() && read.incarnation == wanted.getIncarnation() && read.actor == wanted.getActor() &&
         read.name == text(wanted.getName());
}

// An envelope as the header reads it and as the schema does. Bytes of one that only the header can read are fine: it looks at no more than
// it needs.
void compare(falaj::ByteView framed) {
  using namespace falaj;
  Header header;
  const auto read = read_header(framed, header);
  const auto message = message_from_bytes(TypeId(capnp::typeId<messages::Envelope>()), framed);
  if (!message.has_value()) {
    if (read.has_value()) __builtin_trap();
    return;
  }
  const auto view = message->open<messages::Envelope>();
  if (!view.has_value()) return;
  const auto& e = **view;
  const auto s = e.getScope();
  const bool alike = read.has_value() && header.kind == e.getKind() && header.sampled == e.getSampled() &&
                     header.type.value() == e.getTypeId() && header.correlation == e.getCorrelation() &&
                     header.budget_us == e.getBudgetUs() && header.trace_high == e.getTraceHigh() && header.trace_low == e.getTraceLow() &&
                     header.span == e.getSpan() && same(header.to, e.getTo()) && same(header.from, e.getFrom()) &&
                     header.has_scope == e.hasScope() && header.scope.principal == text(s.getPrincipal()) &&
                     header.scope.tenant == text(s.getTenant()) && header.scope.purpose == text(s.getPurpose()) &&
                     header.scope.residency == text(s.getResidency()) && header.scope.idempotency_key == text(s.getIdempotencyKey());
  if (!alike) __builtin_trap();
  HeaderBytes space;
  const auto again = write_header(header, space);
  Header back;
  if (!again.empty() && (!read_header(again, back).has_value() || back.unusual || back.to.name != header.to.name)) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace falaj;
  if (size < 2) return 0;
  const bool greet = (data[0] & 1U) != 0;
  const std::size_t piece = 1U + data[1] * 16U;
  ByteView bytes(data + 2, size - 2);
  compare(bytes.first(bytes.size() / 8 * 8));
  net::FrameReader reader;
  net::Frame frame;
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
      const auto whole = reader.next(frame);
      if (!whole.has_value()) return 0;
      if (!*whole) break;
      static_cast<void>(std::string(frame.header.to.name) + std::string(frame.header.scope.principal));
      static_cast<void>(frame.body.open<messages::ErrorInfo>());
    }
  }
  return 0;
}
