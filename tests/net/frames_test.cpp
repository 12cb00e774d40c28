#include "runtime/net/frames.hpp"

#include <cstring>

#include "runtime/base/random.hpp"
#include "tests/net/harness.hpp"

namespace falaj::net::testing {
namespace {

Bytes pair(std::string_view text) {
  const auto body = text_message(text);
  auto bytes = envelope_for(body);
  bytes.insert(bytes.end(), body.bytes().begin(), body.bytes().end());
  return bytes;
}

// Feeds in pieces; returns the texts that came out, or the error.
Result<std::vector<std::string>> feed(FrameReader& reader, ByteView bytes, Random& random, std::size_t piece_max) {
  std::vector<std::string> texts;
  Frame frame;
  while (!bytes.empty()) {
    const auto space = reader.space();
    const auto size = std::min({bytes.size(), space.size(), std::size_t{1} + static_cast<std::size_t>(random.below(piece_max))});
    std::memcpy(space.data(), bytes.data(), size);
    reader.commit(size);
    bytes = bytes.subspan(size);
    for (;;) {
      const auto whole = reader.next(frame);
      if (!whole.has_value()) return whole.error();
      if (!*whole) break;
      texts.push_back(frame.body ? text_of(frame.body) : "heartbeat");
    }
  }
  return texts;
}

TEST(Frames, ComeOutWholeHoweverTheyWereCut) {
  std::vector<std::string> sent;
  Bytes stream;
  Random random(11);
  for (int i = 0; i < 60; ++i) {
    if (i % 7 == 3) {
      const auto beat = heartbeat_envelope(messages::Kind::HEARTBEAT, 5);
      stream.insert(stream.end(), beat.begin(), beat.end());
      sent.emplace_back("heartbeat");
    }
    const std::size_t size =
        i % 10 == 0 ? 300'000 + static_cast<std::size_t>(i) : static_cast<std::size_t>(random.below(i % 3 == 0 ? 20'000 : 100));
    sent.emplace_back(size, static_cast<char>('a' + i % 26));
    const auto bytes = pair(sent.back());
    stream.insert(stream.end(), bytes.begin(), bytes.end());
  }
  for (const std::size_t piece : {1UL, 7UL, 100UL, 5000UL, 1UL << 20}) {
    FrameReader reader;
    const auto got =
        feed(reader, piece == 1 ? ByteView(stream).first(std::min<std::size_t>(stream.size(), 60'000)) : ByteView(stream), random, piece);
    ASSERT_TRUE(got.has_value()) << got.error().message;
    EXPECT_TRUE(piece == 1 || got.value() == sent) << piece;
  }
}

TEST(Frames, RefuseClaimsBeforeAnythingIsAllocated) {
  Random random(1);
  const auto refused = [&](std::initializer_list<std::uint32_t> table) {
    Bytes bytes(table.size() * 4);
    std::memcpy(bytes.data(), std::data(table), bytes.size());
    FrameReader reader;
    const auto got = feed(reader, bytes, random, 100);
    return got.has_value() ? std::string() : got.error().message;
  };
  EXPECT_NE(refused({63 + 1, 1}), "");      // too many segments
  EXPECT_NE(refused({0xffffffff, 1}), "");  // the count overflows
  EXPECT_NE(refused({0, 0xffffffff}), "");  // 32 GiB
  EXPECT_NE(refused({0, 513}), "");         // more than an envelope may have
  EXPECT_NE(refused({1, 0xffffffff, 0xffffffff, 0}), "");
  EXPECT_NE(refused({0, 0}), "");    // nothing in it
  EXPECT_EQ(refused({0, 100}), "");  // only incomplete
  auto good = pair("x");
  std::memset(good.data() + 8, 0xff, 16);  // an envelope whose root pointer leads nowhere
  FrameReader reader;
  EXPECT_FALSE(feed(reader, good, random, 1000).has_value());
}

TEST(Frames, ABodyOfTooManyBytesIsRefusedByItsTable) {
  const auto body = text_message("x");
  auto bytes = envelope_for(body);
  const std::uint32_t table[2] = {0, static_cast<std::uint32_t>(limits::kMessageBytesMax / 8)};
  bytes.insert(bytes.end(), reinterpret_cast<const std::uint8_t*>(table), reinterpret_cast<const std::uint8_t*>(table) + 8);
  FrameReader reader;
  Random random(1);
  EXPECT_FALSE(feed(reader, bytes, random, 1000).has_value());
}

}  // namespace
}  // namespace falaj::net::testing
