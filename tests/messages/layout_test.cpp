// What Layout::walk lets through can be read whole; what it refuses, Cap'n Proto's own readers refuse too.
#include "messages/layout.hpp"

#include <capnp/dynamic.h>
#include <capnp/serialize.h>
#include <gtest/gtest.h>

#include "messages/message.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/random.hpp"
#include "tests/messages/sample.capnp.h"

namespace falaj {
namespace {

using sample::Sample;

// The slow way: by schema, field by field. Throws what reading throws.
void read_all(capnp::DynamicValue::Reader value, int depth) {
  if (depth > limits::kNestingMax) throw std::length_error("too deep");
  if (value.getType() == capnp::DynamicValue::STRUCT) {
    const auto structure = value.as<capnp::DynamicStruct>();
    for (const auto field : structure.getSchema().getNonUnionFields()) {
      if (field.getProto().isGroup() || structure.has(field)) read_all(structure.get(field), depth + (field.getProto().isGroup() ? 0 : 1));
    }
    KJ_IF_MAYBE (field, structure.which()) {
      if (field->getProto().isGroup() || structure.has(*field))
        read_all(structure.get(*field), depth + (field->getProto().isGroup() ? 0 : 1));
    }
  } else if (value.getType() == capnp::DynamicValue::LIST) {
    for (const auto element : value.as<capnp::DynamicList>()) read_all(element, depth + 1);
  }
}

Message full() {
  return Message::build<Sample>([](Sample::Builder b) {
    b.setName("a name");
    b.setSecret(data(as_bytes("secret")));
    auto tags = b.initTags(3);
    for (unsigned i = 0; i < 3; ++i) tags.set(i, "red");
    auto sizes = b.initSizes(5);
    for (unsigned i = 0; i < 5; ++i) sizes.set(i, static_cast<std::uint16_t>(i));
    auto matrix = b.initMatrix(2);
    for (unsigned i = 0; i < 2; ++i) matrix.init(i, 3).set(1, 0.5);
    b.initOptimizer().setName("adamw");
    auto fields = b.initFields(2);
    fields[0].setName("one");
    fields[0].initCategories(2).set(1, "x");
    fields[1].setName("two");
    b.initModel().initMlp().initHidden(4).set(0, 7);
    auto inner = b.initInner();
    inner.setName("inner");
    inner.initModel().setOnnx("a path");
  });
}

std::vector<capnp::word> aligned(const Bytes& bytes) {
  std::vector<capnp::word> words(bytes.size() / 8);
  std::memcpy(words.data(), bytes.data(), words.size() * 8);
  return words;
}

template <class Read>
bool passes(kj::ArrayPtr<const capnp::word> words, Read read) {
  capnp::ReaderOptions options;
  options.nestingLimit = limits::kNestingMax;
  options.traversalLimitInWords = limits::kTraversalWordsMax;
  try {
    capnp::FlatArrayMessageReader reader(words, options);
    read(reader);
    return true;
  } catch (const kj::Exception&) {
    return false;
  } catch (const std::length_error&) {
    return false;
  }
}

bool layout_passes(kj::ArrayPtr<const capnp::word> words) {
  return passes(words, [](auto& reader) { layout_of(capnp::Schema::from<Sample>()).walk(reader.template getRoot<capnp::AnyStruct>()); });
}
bool layout_fits(const std::vector<capnp::word>& words) {
  const auto* begin = reinterpret_cast<const std::uint64_t*>(words.data());
  return layout_of(capnp::Schema::from<Sample>()).fits({begin + 1, words.size() - 1});
}
bool reading_passes(kj::ArrayPtr<const capnp::word> words) {
  return passes(words, [](auto& reader) { read_all(reader.template getRoot<capnp::DynamicStruct>(capnp::Schema::from<Sample>()), 0); });
}

TEST(Layout, AWholeMessagePasses) {
  const auto m = full();
  const auto words = aligned(Bytes(m.bytes().begin(), m.bytes().end()));
  EXPECT_TRUE(layout_passes({words.data(), words.size()}));
  EXPECT_TRUE(reading_passes({words.data(), words.size()}));
  EXPECT_TRUE(layout_fits(words)) << "the fast way must do for what we send ourselves";
}

TEST(Layout, APointerThatNoFieldOwnsDoesNotFit) {
  const auto m = full();
  std::uint64_t root = 0;
  std::memcpy(&root, m.bytes().data() + 8, 8);
  const auto data = static_cast<std::uint16_t>(root >> 32);
  const auto pointers = static_cast<std::uint16_t>(root >> 48);
  // A root of a newer schema, with one pointer more and nothing in it.
  std::vector<std::uint64_t> lone(2 + data + pointers + 1U, 0);
  lone[1] = std::uint64_t{data} << 32 | std::uint64_t{pointers + 1U} << 48;
  auto& stray = lone.back();
  const auto fits = [&] { return layout_of(capnp::Schema::from<Sample>()).fits({lone.data() + 1, lone.size() - 1}); };
  EXPECT_TRUE(fits());
  stray = std::uint64_t{1000} << 2 | std::uint64_t{1} << 32;
  EXPECT_FALSE(fits());
  // Nor is it opened: nobody reads it, but who copies the message would.
  lone[0] = std::uint64_t{lone.size() - 1} << 32;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(lone.data());
  const auto message = message_from_bytes(TypeId(capnp::typeId<Sample>()), {bytes, lone.size() * 8});
  ASSERT_TRUE(message.has_value());
  EXPECT_FALSE(message->open<Sample>().has_value());
}

TEST(Layout, AgreesWithReadingOnDamagedMessages) {
  const char* given = std::getenv("FALAJ_TEST_SEED");
  const std::uint64_t seed = given != nullptr ? std::stoull(given) : 11;
  RecordProperty("seed", static_cast<int>(seed));
  Random random(seed);
  const auto m = full();
  int refused = 0;
  int fitting = 0;
  for (int round = 0; round < 50'000; ++round) {
    Bytes damaged(m.bytes().begin(), m.bytes().end());
    for (std::uint64_t i = 0; i <= random.below(3); ++i)
      damaged[8 + random.below(damaged.size() - 8)] ^= static_cast<std::uint8_t>(1 + random.below(255));
    const auto words = aligned(damaged);
    const bool passed = layout_passes({words.data(), words.size()});
    const bool fits = layout_fits(words);
    // Whoever fits may be read unchecked, and copied with all it holds.
    if (fits) {
      ++fitting;
      ASSERT_TRUE(passed) << "round " << round << ", FALAJ_TEST_SEED=" << seed;
      const auto root = capnp::readMessageUnchecked<Sample>(words.data() + 1);
      read_all(capnp::DynamicStruct::Reader(root), 0);
      capnp::MallocMessageBuilder copy;
      copy.setRoot(root);
    }
    refused += passed ? 0 : 1;
    ASSERT_EQ(passed, reading_passes({words.data(), words.size()})) << "round " << round << ", FALAJ_TEST_SEED=" << seed;
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(fitting, 1000);
}

TEST(Layout, NestingIsBounded) {
  const auto deep = Message::build<Sample>([](Sample::Builder b) {
    for (int i = 0; i < limits::kNestingMax + 2; ++i) b = b.initInner();
  });
  auto received = message_from_bytes(deep.type(), deep.bytes());
  ASSERT_TRUE(received.has_value());
  EXPECT_FALSE(received->open<Sample>().has_value());
}

}  // namespace
}  // namespace falaj
