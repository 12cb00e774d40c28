#include "messages/message.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

#include "messages/bench.capnp.h"
#include "messages/envelope.capnp.h"
#include "runtime/base/limits.hpp"
#include "runtime/base/random.hpp"

namespace falaj {
namespace {

using messages::Ball;
using messages::Envelope;
using messages::ErrorInfo;

Message sample(std::string_view text) {
  return Message::build<ErrorInfo>([&](ErrorInfo::Builder b) {
    b.setCode(messages::ErrorCode::DENIED);
    b.setMessage(std::string(text));
  });
}

TEST(Message, LocalRoundTrip) {
  const auto m = sample("no verb");
  const auto view = m.view<ErrorInfo>();
  EXPECT_EQ(text(view->getMessage()), "no verb");
  EXPECT_EQ(m.type().value(), capnp::typeId<ErrorInfo>());
}

TEST(Message, GrowsIntoOneSegment) {
  const std::string large(100'000, 'x');
  const auto m = sample(large);
  EXPECT_EQ(text(m.view<ErrorInfo>()->getMessage()), large);
  std::uint32_t segments = 1;
  std::memcpy(&segments, m.bytes().data(), 4);
  EXPECT_EQ(segments, 0U);
}

// Structs without pointers are filled in where the thread keeps a form for them: the bytes are those that a builder of its own gives.
TEST(Message, FormsGiveTheBytesOfBuilders) {
  for (std::uint64_t value : {std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{7}}) {
    const auto m = Message::build<Ball>([&](Ball::Builder b) {
      EXPECT_EQ(b.getStamp(), 0U) << "left over from the last one";
      b.setStamp(value);
    });
    capnp::MallocMessageBuilder builder;
    builder.initRoot<Ball>().setStamp(value);
    const auto words = capnp::messageToFlatArray(builder);
    const auto expected = words.asBytes();
    EXPECT_TRUE(std::ranges::equal(m.bytes(), expected));
  }
  EXPECT_EQ(Message::build<messages::Empty>().bytes().size(), 16U);
}

TEST(Message, FormsAreNotFilledInTwiceAtOnce) {
  Message inner;
  const auto outer = Message::build<Ball>([&](Ball::Builder b) {
    b.setLeft(1);
    inner = Message::build<Ball>([](Ball::Builder other) { other.setLeft(2); });
    b.setStamp(3);
  });
  EXPECT_EQ(inner.view<Ball>()->getLeft(), 2U);
  EXPECT_EQ(inner.view<Ball>()->getStamp(), 0U);
  EXPECT_EQ(outer.view<Ball>()->getLeft(), 1U);
  EXPECT_EQ(outer.view<Ball>()->getStamp(), 3U);
}

TEST(Message, AFormIsFreeAgainAfterAnException) {
  const auto throwing = [](Ball::Builder b) {
    b.setLeft(9);
    throw std::runtime_error("half way");
  };
  EXPECT_THROW(static_cast<void>(Message::build<Ball>(throwing)), std::runtime_error);
  EXPECT_EQ(Message::build<Ball>().view<Ball>()->getLeft(), 0U);
}

TEST(Message, FromOutsideIsReadWithLimits) {
  const auto m = sample("over the wire");
  auto received = message_from_bytes(m.type(), m.bytes());
  ASSERT_TRUE(received.has_value());
  EXPECT_FALSE(received->trusted());
  auto view = received->open<ErrorInfo>();
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(text((*view)->getMessage()), "over the wire");
  EXPECT_EQ(received->open<Envelope>().error().code, ErrorCode::unimplemented);
}

TEST(Message, DamagedBytesAreRefusedNotRead) {
  const char* given = std::getenv("FALAJ_TEST_SEED");
  const std::uint64_t seed = given != nullptr ? std::stoull(given) : 7;
  RecordProperty("seed", static_cast<int>(seed));
  Random random(seed);
  const auto m = Message::build<Envelope>([](Envelope::Builder b) {
    b.initTo().setName("features/shard");
    b.initScope().setTenant("default");
  });
  for (int round = 0; round < 20'000; ++round) {
    Bytes damaged(m.bytes().begin(), m.bytes().end());
    for (std::uint64_t i = 0; i <= random.below(4); ++i)
      damaged[random.below(damaged.size())] ^= static_cast<std::uint8_t>(1 + random.below(255));
    auto received = message_from_bytes(m.type(), damaged);
    if (!received.has_value()) continue;
    auto view = received->open<Envelope>();
    if (!view.has_value()) continue;
    static_cast<void>((*view)->getTo().getName().size() + (*view)->getScope().getTenant().size());
  }
}

TEST(Message, SizesAreBounded) {
  EXPECT_EQ(MessageBuffer::allocate(limits::kMessageBytesMax + 8).error().code, ErrorCode::invalid);
  EXPECT_EQ(MessageBuffer::allocate(12).error().code, ErrorCode::invalid);
  const Bytes many_segments = {255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(message_from_bytes(TypeId(1), many_segments).error().code, ErrorCode::corrupt);
}

TEST(Message, ErrorCodesMatchTheSchema) {
  const auto enumerants = capnp::Schema::from<messages::ErrorCode>().getEnumerants();
  for (const auto e : enumerants) {
    std::string name;
    for (const char c : std::string_view(e.getProto().getName().cStr())) {
      if (c >= 'A' && c <= 'Z') {
        name += '_';
        name += static_cast<char>(c - 'A' + 'a');
      } else {
        name += c;
      }
    }
    EXPECT_EQ(name, to_string(static_cast<ErrorCode>(e.getOrdinal())));
  }
  EXPECT_EQ(enumerants.size(), 12U);
}

}  // namespace
}  // namespace falaj
