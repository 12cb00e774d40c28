// A header is an Envelope: what it writes Cap'n Proto reads, what Cap'n Proto writes it reads, and bytes that are neither are refused.
#include "messages/header.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "runtime/base/random.hpp"

namespace falaj {
namespace {

Message envelope_message(ByteView framed) { return message_from_bytes(TypeId(capnp::typeId<messages::Envelope>()), framed).value(); }

// Owns what a header's texts point into.
struct Sample {
  std::vector<std::string> texts;
  Header header;
};

Sample sample(Random& random) {
  Sample out;
  out.texts.resize(7);
  for (auto& text : out.texts) {
    if (random.chance(0.5)) text.assign(static_cast<std::size_t>(random.below(40)), 'a');
  }
  const auto number = [&]() -> std::uint64_t { return random.chance(0.5) ? 0 : random.next() >> random.below(64); };
  auto& h = out.header;
  h.kind = static_cast<messages::Kind>(random.below(9));
  h.sampled = random.chance(0.5);
  h.type = TypeId(number());
  h.correlation = number();
  h.budget_us = number();
  h.trace_high = number();
  h.trace_low = number();
  h.span = number();
  h.to = {number(), number(), number(), out.texts[0]};
  h.from = {number(), number(), number(), out.texts[1]};
  h.has_scope = random.chance(0.5);
  if (h.has_scope) h.scope = {out.texts[2], out.texts[3], out.texts[4], out.texts[5], out.texts[6]};
  return out;
}

void expect_same(const Header::Address& a, const Header::Address& b) {
  EXPECT_EQ(a.node, b.node);
  EXPECT_EQ(a.incarnation, b.incarnation);
  EXPECT_EQ(a.actor, b.actor);
  EXPECT_EQ(a.name, b.name);
}

void expect_same(const Header& a, const Header& b) {
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.sampled, b.sampled);
  EXPECT_EQ(a.type, b.type);
  EXPECT_EQ(a.correlation, b.correlation);
  EXPECT_EQ(a.budget_us, b.budget_us);
  EXPECT_EQ(a.trace_high, b.trace_high);
  EXPECT_EQ(a.trace_low, b.trace_low);
  EXPECT_EQ(a.span, b.span);
  expect_same(a.to, b.to);
  expect_same(a.from, b.from);
  EXPECT_EQ(a.has_scope, b.has_scope);
  EXPECT_EQ(a.scope.principal, b.scope.principal);
  EXPECT_EQ(a.scope.tenant, b.scope.tenant);
  EXPECT_EQ(a.scope.purpose, b.scope.purpose);
  EXPECT_EQ(a.scope.residency, b.scope.residency);
  EXPECT_EQ(a.scope.idempotency_key, b.scope.idempotency_key);
}

void expect_same(const Header& h, messages::Envelope::Reader e) {
  EXPECT_EQ(h.kind, e.getKind());
  EXPECT_EQ(h.sampled, e.getSampled());
  EXPECT_EQ(h.type.value(), e.getTypeId());
  EXPECT_EQ(h.correlation, e.getCorrelation());
  EXPECT_EQ(h.budget_us, e.getBudgetUs());
  EXPECT_EQ(h.trace_high, e.getTraceHigh());
  EXPECT_EQ(h.trace_low, e.getTraceLow());
  EXPECT_EQ(h.span, e.getSpan());
  expect_same(h.to, {e.getTo().getNode(), e.getTo().getIncarnation(), e.getTo().getActor(), text(e.getTo().getName())});
  expect_same(h.from, {e.getFrom().getNode(), e.getFrom().getIncarnation(), e.getFrom().getActor(), text(e.getFrom().getName())});
  EXPECT_EQ(h.has_scope, e.hasScope());
  EXPECT_EQ(h.scope.principal, text(e.getScope().getPrincipal()));
  EXPECT_EQ(h.scope.tenant, text(e.getScope().getTenant()));
  EXPECT_EQ(h.scope.purpose, text(e.getScope().getPurpose()));
  EXPECT_EQ(h.scope.residency, text(e.getScope().getResidency()));
  EXPECT_EQ(h.scope.idempotency_key, text(e.getScope().getIdempotencyKey()));
}

void fill(messages::Address::Builder b, const Header::Address& a) {
  b.setNode(a.node);
  b.setIncarnation(a.incarnation);
  b.setActor(a.actor);
  if (!a.name.empty()) b.setName(std::string(a.name));
}

Message by_schema(const Header& h, std::size_t words = 48) {
  return Message::build<messages::Envelope>(
      [&](messages::Envelope::Builder b) {
        fill(b.initTo(), h.to);
        fill(b.initFrom(), h.from);
        b.setKind(h.kind);
        b.setSampled(h.sampled);
        b.setTypeId(h.type.value());
        b.setCorrelation(h.correlation);
        b.setBudgetUs(h.budget_us);
        b.setTraceHigh(h.trace_high);
        b.setTraceLow(h.trace_low);
        b.setSpan(h.span);
        if (!h.has_scope) return;
        auto s = b.initScope();
        s.setPrincipal(std::string(h.scope.principal));
        s.setTenant(std::string(h.scope.tenant));
        s.setPurpose(std::string(h.scope.purpose));
        s.setResidency(std::string(h.scope.residency));
        s.setIdempotencyKey(std::string(h.scope.idempotency_key));
      },
      words);
}

TEST(Header, IsWhatTheSchemaSays) {
  Random random(3);
  for (int i = 0; i < 2000; ++i) {
    const auto one = sample(random);
    HeaderBytes space;
    const auto framed = write_header(one.header, space);
    ASSERT_FALSE(framed.empty());
    const auto message = envelope_message(framed);
    const auto view = message.open<messages::Envelope>();
    ASSERT_TRUE(view.has_value()) << view.error().message;
    expect_same(one.header, **view);
    Header back;
    ASSERT_TRUE(read_header(framed, back).has_value());
    EXPECT_FALSE(back.unusual);
    expect_same(back, one.header);
    const auto slow = by_schema(one.header);
    Header read;
    ASSERT_TRUE(read_header(slow.bytes(), read).has_value());
    EXPECT_FALSE(read.unusual);
    expect_same(read, one.header);
    EXPECT_LE(framed.size(), slow.bytes().size());
  }
}

TEST(Header, OfATellToAnActorWithAName) {
  Header h;
  h.type = TypeId(7);
  h.to = {1, 0, 0, "echo"};
  h.from = {2, 3, 4, {}};
  HeaderBytes space;
  EXPECT_EQ(write_header(h, space).size(), 96U);
}

// Far pointers are rare, and Cap'n Proto's own reader follows them.
TEST(Header, OfSeveralSegmentsIsReadToo) {
  capnp::MallocMessageBuilder builder(8, capnp::AllocationStrategy::FIXED_SIZE);
  auto b = builder.initRoot<messages::Envelope>();
  b.initTo().setName("a name that does not fit in the first segment");
  b.setCorrelation(9);
  b.initScope().setTenant("acme");
  const auto words = capnp::messageToFlatArray(builder);
  const ByteView framed(words.asBytes().begin(), words.asBytes().size());
  Header h;
  ASSERT_TRUE(read_header(framed, h).has_value());
  EXPECT_TRUE(h.unusual);
  EXPECT_EQ(h.to.name, "a name that does not fit in the first segment");
  EXPECT_EQ(h.correlation, 9U);
  EXPECT_EQ(h.scope.tenant, "acme");
}

TEST(Header, ThatDoesNotFitIsNotWritten) {
  const std::string text(3000, 'x');
  Header h;
  HeaderBytes space;
  h.to.name = text;
  EXPECT_FALSE(write_header(h, space).empty());
  h.from.name = text;
  EXPECT_TRUE(write_header(h, space).empty());
  const std::string huge(100'000, 'x');
  h.to.name = huge;
  EXPECT_TRUE(write_header(h, space).empty());
}

// Whatever bytes are changed: what is read without Cap'n Proto is what Cap'n Proto reads, and nothing is read out of bounds (ASan).
TEST(Header, ReadsWhatCapnProtoReads) {
  Random random(5);
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    const auto one = sample(random);
    HeaderBytes space;
    const auto framed = write_header(one.header, space);
    Bytes bytes(framed.begin(), framed.end());
    for (std::uint64_t changes = random.below(3) + 1; changes > 0; --changes)
      bytes[static_cast<std::size_t>(random.below(bytes.size()))] = static_cast<std::uint8_t>(random.below(256));
    if (random.chance(0.1)) bytes.resize(static_cast<std::size_t>(random.below(bytes.size() / 8 + 1)) * 8);
    Header h;
    const bool read = read_header(bytes, h).has_value();
    refused += read ? 0 : 1;
    const auto message = message_from_bytes(TypeId(capnp::typeId<messages::Envelope>()), bytes);
    if (!message.has_value()) {
      EXPECT_FALSE(read);
      continue;
    }
    const auto view = message->open<messages::Envelope>();
    if (!view.has_value()) continue;
    ASSERT_TRUE(read);
    expect_same(h, **view);
  }
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace falaj
