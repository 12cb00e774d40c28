#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/base/format.hpp"
#include "runtime/base/json_syntax.hpp"
#include "runtime/base/random.hpp"
#include "runtime/net/http/json_reader.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::net {
namespace {

TEST(JsonReader, WalksADocument) {
  JsonReader reader;
  const auto root =
      reader
          .parse(
              R"( {"id": "42\u00e9", "n": -7, "big": 18446744073709551615, "x": 1.5e3, "t": true, "z": null, "a": [1, [2, 3]], "o": {"k": "v"}} )")
          .value();
  EXPECT_EQ(root.type(), JsonType::object);
  EXPECT_EQ(root.size(), 8U);
  EXPECT_EQ(root.member("id")->as_string().value(), "42\xc3\xa9");
  EXPECT_EQ(root.member("n")->as_int().value(), -7);
  EXPECT_EQ(root.member("big")->as_uint().value(), 18446744073709551615ULL);
  EXPECT_FALSE(root.member("big")->as_int().has_value());
  EXPECT_EQ(root.member("x")->as_double().value(), 1500.0);
  EXPECT_EQ(root.member("x")->as_int().value(), 1500);
  EXPECT_TRUE(root.member("t")->as_bool().value());
  EXPECT_TRUE(root.member("z")->is_null());
  EXPECT_EQ(root.member("none").error().code, ErrorCode::not_found);
  EXPECT_FALSE(root.find("none").has_value());
  EXPECT_FALSE(root.member("id")->find("x").has_value());
  EXPECT_FALSE(root.member("id")->as_int().has_value());
  std::string keys;
  for (auto it = root.begin(); it != root.end(); ++it) keys += format("{}:{},", it.key(), to_string((*it).type()));
  EXPECT_EQ(keys, "id:a string,n:a number,big:a number,x:a number,t:a boolean,z:null,a:an array,o:an object,");
  int items = 0;
  for (const auto item : root.member("a").value()) items += item.type() == JsonType::array ? 10 : 1;
  EXPECT_EQ(items, 11);
  for (const auto item : root.member("id").value()) FAIL() << to_string(item.type());
}

TEST(JsonReader, FlattensNestedNumbers) {
  JsonReader reader;
  std::vector<float> floats;
  ASSERT_TRUE(reader.parse("[[1, 2.5], [null, -3e2]]")->flatten(floats, 4).has_value());
  ASSERT_EQ(floats.size(), 4U);
  EXPECT_EQ(floats[1], 2.5F);
  EXPECT_TRUE(std::isnan(floats[2]));
  EXPECT_EQ(floats[3], -300.0F);
  std::vector<std::int64_t> integers;
  ASSERT_TRUE(reader.parse("[1, [2, [3.0]], 9007199254740993]")->flatten(integers, 10).has_value());
  EXPECT_EQ(integers, (std::vector<std::int64_t>{1, 2, 3, 9007199254740993}));
  for (const auto* bad : {"[1.5]", "[null]", "[\"1\"]", "[true]", "[18446744073709551615]", "{}"}) {
    EXPECT_FALSE(reader.parse(bad)->flatten(integers, 10).has_value()) << bad;
  }
  floats.clear();
  EXPECT_FALSE(reader.parse("[1,2,3]")->flatten(floats, 2).has_value());
  EXPECT_FALSE(reader.parse("[1e39]")->flatten(floats, 2).has_value());
  std::vector<double> doubles{7};
  ASSERT_TRUE(reader.parse("0.1")->flatten(doubles, 1).has_value());
  EXPECT_EQ(doubles, (std::vector<double>{7, 0.1}));
  std::vector<std::string> texts;
  ASSERT_TRUE(reader.parse(R"([["a", null], "c"])")->flatten(texts, 3).has_value());
  EXPECT_EQ(texts, (std::vector<std::string>{"a", "", "c"}));
}

TEST(JsonReader, NamesTheByteOfAnError) {
  struct Case {
    std::string text;
    std::size_t byte;
  };
  JsonReader reader;
  for (const auto& [text, byte] : std::vector<Case>{{"", 0},
                                                    {"{", 1},
                                                    {"[1, 2", 5},
                                                    {"[1, 2}", 5},
                                                    {"{\"a\" 1}", 5},
                                                    {"{\"a\": nul}", 6},
                                                    {"[01]", 1},
                                                    {"[1.]", 3},
                                                    {"[NaN]", 1},
                                                    {"[18446744073709551616]", 1},
                                                    {"[-9223372036854775809]", 1},
                                                    {"[1e999]", 1},
                                                    {"[1] x", 4},
                                                    {"[\"\\x\"]", 3},
                                                    {"[\"a\nb\"]", 3},
                                                    {"[\"\\udc00\"]", 7},
                                                    {"[\"\\ud800\\u0041\"]", 13},
                                                    {"{a:1}", 1}}) {
    const auto parsed = reader.parse(text);
    ASSERT_FALSE(parsed.has_value()) << text;
    EXPECT_NE(parsed.error().message.find(format("byte {}:", byte)), std::string::npos) << text << " -> " << parsed.error().message;
  }
  EXPECT_FALSE(reader.parse(std::string_view("\"\xff\xfe\"")).has_value());
  EXPECT_FALSE(reader.parse(std::string_view("[1]\0", 4)).has_value());
}

TEST(JsonReader, NoBytesAreNoDocument) {
  JsonReader reader;
  const auto nothing = reader.parse(ByteView());
  ASSERT_FALSE(nothing.has_value());
  EXPECT_EQ(nothing.error().code, ErrorCode::invalid);
}

TEST(JsonReader, TakesSurrogatesInPairs) {
  JsonReader reader;
  EXPECT_EQ(reader.parse(std::string_view("\"\\uD83D\\ude00\""))->as_string(), "\xf0\x9f\x98\x80");
}

TEST(JsonReader, BoundsDepthAndSize) {
  JsonReader reader;
  EXPECT_TRUE(reader.parse(std::string(60, '[') + std::string(60, ']')).has_value());
  EXPECT_FALSE(reader.parse(std::string(70, '[') + std::string(70, ']')).has_value());
  const auto deep = reader.parse(std::string(1'000'000, '['));
  ASSERT_FALSE(deep.has_value());
  EXPECT_NE(deep.error().message.find("nested deeper"), std::string::npos) << deep.error().message;
  JsonReader small({100, 64});
  EXPECT_FALSE(small.parse(std::string(101, ' ')).has_value());
  EXPECT_TRUE(small.parse(" 1 ").has_value());
  EXPECT_TRUE(reader.parse("[" + std::string(200'000, ' ') + "]").has_value());  // memory grows with the document
}

TEST(JsonReader, AgreesWithTheSlowChecker) {
  JsonReader reader;
  Random random(7);
  const std::string_view alphabet = "{}[]\",:0123456789-+.eEtrufalsn \\\n\x01\xc3\xa9";
  int valid = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = i % 2 == 0 ? R"({"a":[1,-2.5e3,"x\n",true,null],"b":{}})" : "[0]";
    const auto changes = random.below(4);
    for (std::uint64_t c = 0; c < changes; ++c) {
      const auto at = random.below(text.size() + 1);
      const char with = alphabet[random.below(alphabet.size())];
      if (random.chance(0.5) && at < text.size()) {
        text[at] = with;
      } else {
        text.insert(at, 1, with);
      }
    }
    const bool fast = reader.parse(text).has_value();
    const bool slow = !find_json_flaw(text, 64).has_value();
    EXPECT_EQ(fast, slow) << text;
    valid += fast ? 1 : 0;
  }
  EXPECT_GT(valid, 1000);
}

TEST(JsonWriter, WritesWhatTheReaderReads) {
  JsonWriter w;
  const std::vector<float> numbers{0.1F, -2.0F, std::numeric_limits<float>::quiet_NaN(), 3.4e38F};
  w.begin_object()
      .key("text\n\"")
      .string("a\\b\x01\xc3\xa9\xff")
      .key("list")
      .array(std::span<const float>(numbers))
      .key("i")
      .number(-5)
      .key("u")
      .number(18446744073709551615ULL);
  w.key("b").boolean(true).key("z").null().key("raw").raw("[1]").key("empty").begin_array().end_array().end_object();
  EXPECT_EQ(w.text(),
            "{\"text\\n\\\"\":\"a\\\\b\\u0001\xc3\xa9\xef\xbf\xbd\",\"list\":[0.1,-2,null,3.4e+38],\"i\":-5,\"u\":18446744073709551615,"
            "\"b\":true,\"z\":null,"
            "\"raw\":[1],\"empty\":[]}");
  JsonReader reader;
  EXPECT_TRUE(reader.parse(w.text()).has_value());
}

TEST(JsonWriter, RoundTripsDoublesAndAnyBytes) {
  Random random(3);
  JsonReader reader;
  for (int i = 0; i < 2000; ++i) {
    const double value = std::bit_cast<double>(random.next());
    if (!std::isfinite(value)) continue;
    JsonWriter w;
    w.number(value);
    const auto read = reader.parse(w.text());
    ASSERT_TRUE(read.has_value()) << w.text() << ": " << read.error().message;
    EXPECT_EQ(read->as_double().value(), value) << w.text();
    std::string bytes;
    for (std::uint64_t n = random.below(20); n > 0; --n) bytes += static_cast<char>(random.below(256));
    w.clear();
    w.string(bytes);
    EXPECT_TRUE(reader.parse(w.text()).has_value()) << w.text();
  }
}

}  // namespace
}  // namespace falaj::net
