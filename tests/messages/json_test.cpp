#include "messages/json.hpp"

#include <gtest/gtest.h>

#include "messages/message.hpp"
#include "runtime/base/limits.hpp"
#include "tests/messages/sample.capnp.h"

namespace falaj {
namespace {

using sample::Sample;

std::string fault(std::string_view json) {
  capnp::MallocMessageBuilder builder;
  const auto status = from_json<Sample>(json, builder.initRoot<Sample>());
  EXPECT_FALSE(status.has_value()) << json.substr(0, 200);
  if (status.has_value()) return "";
  EXPECT_EQ(status.error().code, ErrorCode::invalid);
  EXPECT_EQ(status.error().message.find('\n'), std::string::npos);
  return status.error().message;
}

TEST(Json, RoundTrip) {
  capnp::MallocMessageBuilder builder;
  auto s = builder.initRoot<Sample>();
  s.setName("a\"\n\xC3\xA9");
  s.setLarge(~0ULL);
  s.setSpeed(sample::Speed::SLOW);
  s.initModel().initMlp().initHidden(1).set(0, 5);
  const auto json = to_json(s.asReader());
  EXPECT_NE(json.find("\"large\":\"18446744073709551615\""), std::string::npos) << json;
  EXPECT_NE(json.find("\"speed\":\"slow\""), std::string::npos) << json;

  for (const auto style : {JsonStyle::compact, JsonStyle::pretty}) {
    capnp::MallocMessageBuilder other;
    auto t = other.initRoot<Sample>();
    ASSERT_TRUE(from_json<Sample>(to_json(s.asReader(), style), t).has_value());
    EXPECT_EQ(text(t.getName()), "a\"\n\xC3\xA9");
    EXPECT_EQ(t.getLarge(), ~0ULL);
    EXPECT_EQ(t.getModel().getMlp().getHidden()[0], 5U);
    EXPECT_EQ(to_json(t.asReader()), json);
  }
}

TEST(Json, IsUtf8WhateverATextHolds) {
  const std::pair<const char*, const char*> cases[] = {
      {"\xC3\xA9t\xC3\xA9", "\xC3\xA9t\xC3\xA9"}, {"a\xE3", "a\xEF\xBF\xBD"},
      {"\xFF\xFEx", "\xEF\xBF\xBD\xEF\xBF\xBDx"}, {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
      {"\xF0\x9F\x92\xA7!", "\xF0\x9F\x92\xA7!"},
  };
  for (const auto& [given, shown] : cases) {
    capnp::MallocMessageBuilder builder;
    auto s = builder.initRoot<Sample>();
    s.setName(given);
    EXPECT_NE(to_json(s.asReader()).find(std::string("\"name\":\"") + shown + "\""), std::string::npos) << to_json(s.asReader());
  }
}

TEST(Json, AcceptsWhatTheStandardAllows) {
  for (const auto* json :
       {"{}", " \n{\t}\r\n", R"({"name":"\ud83d\ude00\/\b\u00e9"})", R"({"rate":-1.5e+2,"large":"7"})", R"({"inner":{"inner":{}}})"}) {
    capnp::MallocMessageBuilder builder;
    const auto status = from_json<Sample>(json, builder.initRoot<Sample>());
    EXPECT_TRUE(status.has_value()) << json << ": " << status.error().message;
  }
}

TEST(Json, NamesThePlaceOfASyntaxError) {
  EXPECT_EQ(fault(""), "JSON:1:1: the document ends too early: expected a value");
  EXPECT_EQ(fault("{\n  \"name\": tru\n}"), "JSON:2:11: expected true");
  EXPECT_EQ(fault("{\"a\" 1}"), "JSON:1:6: expected ':'");
  EXPECT_EQ(fault("{\"a\":1,}"), "JSON:1:8: expected a member's name in quotes");
  EXPECT_EQ(fault("{} x"), "JSON:1:4: text after the end of the document");
  EXPECT_EQ(fault("{\"name\":\"a"), "JSON:1:11: the document ends too early: expected '\"'");
  EXPECT_EQ(fault("{\"name\":\"\\ud800\"}"), "JSON:1:15: a lone surrogate in a \\u escape");
  EXPECT_EQ(fault("{\"name\":\"\\x\"}"), "JSON:1:11: an unknown escape");
  EXPECT_EQ(fault("{\"rate\":01}"), "JSON:1:9: a number with a leading zero");
  EXPECT_EQ(fault("{\"rate\":1.}"), "JSON:1:11: expected a digit");
  EXPECT_EQ(fault("[1]"), "JSON:1:1: expected an object");
  EXPECT_EQ(fault("{\"name\":\"\xFF\"}"), "JSON:1:10: not UTF-8");
}

TEST(Json, RefusesWhatTheSchemaDoesNotHave) {
  EXPECT_NE(fault(R"({"nam":"x"})").find("nam"), std::string::npos);
  EXPECT_FALSE(fault(R"({"name":5})").empty());
  EXPECT_FALSE(fault(R"({"epochs":-1})").empty());
  EXPECT_FALSE(fault(R"({"epochs":1e300})").empty());
  EXPECT_FALSE(fault(R"({"epochs":1.5})").empty());
  EXPECT_FALSE(fault(R"({"large":"seven"})").empty());
  EXPECT_FALSE(fault(R"({"speed":"warp"})").empty());
  EXPECT_FALSE(fault(R"({"secret":[256]})").empty());
}

TEST(Json, Bounds) {
  EXPECT_NE(fault(std::string(1000000, '[')).find("nested deeper than"), std::string::npos);
  std::string deep;
  for (int i = 0; i < limits::kNestingMax + 2; ++i) deep += "{\"inner\":";
  EXPECT_NE(fault(deep).find("nested deeper than"), std::string::npos);
  EXPECT_NE(fault(std::string(limits::kMessageBytesMax + 1, ' ')).find("over the limit"), std::string::npos);
}

}  // namespace
}  // namespace falaj
