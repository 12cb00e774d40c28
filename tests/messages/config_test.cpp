// Configuration: every kind of field, every annotation, and every refusal with its place.
#include "runtime/config.hpp"

#include <gtest/gtest.h>

#include "messages/message.hpp"
#include "tests/messages/sample.capnp.h"

namespace falaj::config {
namespace {

using sample::Sample;

struct Parsed {
  capnp::MallocMessageBuilder builder;
  Sample::Builder builder_root = builder.initRoot<Sample>();
  Status status;
  Sample::Reader root;
  explicit Parsed(std::string_view text) : status(parse_toml<Sample>(text, "t.toml", builder_root)), root(builder_root.asReader()) {}
};

std::string fault(std::string_view text) {
  const Parsed parsed(text);
  EXPECT_FALSE(parsed.status.has_value()) << text;
  if (parsed.status.has_value()) return "";
  EXPECT_EQ(parsed.status.error().code, ErrorCode::invalid);
  return parsed.status.error().message;
}

constexpr std::string_view kFull = R"(
name = "a \"b\" é"
epochs = 7
small = -128
large = 9223372036854775807
enabled = false
rate = 2
speed = "slow"
secret = "AQID"
tags = ["red", "blue"]
sizes = [1, 65535]
matrix = [[1.5, 2], []]
p99_limit_ms = -5

[optimizer]
name = "sgd"
learning_rate = 0.5

[model.mlp]
hidden = [64, 32]
dropout = 0.25

[[fields]]
name = "x"
number = true

[[fields]]
name = "y"
categories = ["u", "v"]

[inner]
name = "deep"
model = "linear"
)";

void expect_full(Sample::Reader s) {
  EXPECT_EQ(text(s.getName()), "a \"b\" é");
  EXPECT_EQ(s.getEpochs(), 7U);
  EXPECT_EQ(s.getSmall(), -128);
  EXPECT_EQ(s.getLarge(), 9223372036854775807ULL);
  EXPECT_FALSE(s.getEnabled());
  EXPECT_EQ(s.getRate(), 2.0F);
  EXPECT_EQ(s.getSpeed(), sample::Speed::SLOW);
  EXPECT_EQ(s.getSecret().size(), 3U);
  EXPECT_EQ(s.getSecret()[2], 3);
  ASSERT_EQ(s.getTags().size(), 2U);
  EXPECT_EQ(text(s.getTags()[1]), "blue");
  EXPECT_EQ(s.getSizes()[1], 65535);
  ASSERT_EQ(s.getMatrix().size(), 2U);
  EXPECT_EQ(s.getMatrix()[0][1], 2.0);
  EXPECT_EQ(s.getMatrix()[1].size(), 0U);
  EXPECT_EQ(s.getP99LimitMs(), -5);
  EXPECT_EQ(text(s.getOptimizer().getName()), "sgd");
  EXPECT_EQ(s.getOptimizer().getLearningRate(), 0.5);
  ASSERT_TRUE(s.getModel().isMlp());
  EXPECT_EQ(s.getModel().getMlp().getHidden()[1], 32U);
  EXPECT_EQ(s.getModel().getMlp().getDropout(), 0.25);
  ASSERT_EQ(s.getFields().size(), 2U);
  EXPECT_TRUE(s.getFields()[0].isNumber());
  EXPECT_EQ(text(s.getFields()[1].getCategories()[0]), "u");
  EXPECT_TRUE(s.getInner().getModel().isLinear());
}

TEST(Config, ReadsEveryKindOfField) {
  const Parsed parsed(kFull);
  ASSERT_TRUE(parsed.status.has_value()) << parsed.status.error().message;
  expect_full(parsed.root);
}

TEST(Config, WritesWhatItReads) {
  const Parsed parsed(kFull);
  const auto text = to_toml(parsed.root);
  const Parsed again(text);
  ASSERT_TRUE(again.status.has_value()) << again.status.error().message << "\n" << text;
  expect_full(again.root);
  EXPECT_EQ(to_toml(again.root), text);
}

TEST(Config, KeepsDefaults) {
  const Parsed parsed("name = ''");
  ASSERT_TRUE(parsed.status.has_value()) << parsed.status.error().message;
  EXPECT_EQ(parsed.root.getEpochs(), 10U);
  EXPECT_TRUE(parsed.root.getEnabled());
  EXPECT_EQ(to_toml(parsed.root), "name = \"\"\n");
}

TEST(Config, OneTableIsAListOfOne) {
  const Parsed parsed("name = 'n'\n[fields]\nname = 'only'\nwidth = 3\n");
  ASSERT_TRUE(parsed.status.has_value()) << parsed.status.error().message;
  ASSERT_EQ(parsed.root.getFields().size(), 1U);
  EXPECT_EQ(parsed.root.getFields()[0].getWidth(), 3);
}

TEST(Config, UnknownKeyNamesPlaceAndNearest) {
  EXPECT_EQ(fault("name = 'n'\nepoch = 3\n"), "t.toml:2:1: unknown key 'epoch'; did you mean 'epochs'?");
  EXPECT_EQ(fault("name = 'n'\n\n[optimizer]\n  leraning_rate = 0.1\n"),
            "t.toml:4:3: unknown key 'optimizer.leraning_rate'; did you mean 'learning_rate'?");
  EXPECT_EQ(fault("name = 'n'\n[optimizer]\nzzzzzzzzzzzzzz = 1\n"),
            "t.toml:3:1: unknown key 'optimizer.zzzzzzzzzzzzzz'; the nearest is 'name' (known: name, learning_rate, weight_decay)");
  EXPECT_NE(fault("name = 'n'\nlearningRate = 1\n").find("unknown key 'learningRate'"), std::string::npos);
}

TEST(Config, WrongTypes) {
  EXPECT_EQ(fault("name = 3"), "t.toml:1:8: 'name': expected a string, found an integer");
  EXPECT_EQ(fault("name = 'n'\nepochs = 1.5"), "t.toml:2:10: 'epochs': expected an integer, found a number with a fraction");
  EXPECT_EQ(fault("name = 'n'\nenabled = 'yes'"), "t.toml:2:11: 'enabled': expected true or false, found a string");
  EXPECT_EQ(fault("name = 'n'\ntags = 'red'"), "t.toml:2:8: 'tags': expected a list, found a string");
  EXPECT_EQ(fault("name = 'n'\ntags = ['red', 5]"), "t.toml:2:16: 'tags[1]': expected a string, found an integer");
  EXPECT_EQ(fault("name = 'n'\noptimizer = 1"), "t.toml:2:13: 'optimizer': expected a table, found an integer");
  EXPECT_EQ(fault("name = 'n'\nfields = [1]"), "t.toml:2:11: 'fields[0]': expected a table, found an integer");
  EXPECT_EQ(fault("name = 'n'\nrate = 2020-01-01"), "t.toml:2:8: 'rate': expected a number, found a date");
  EXPECT_EQ(fault("name = 'n'\nmatrix = [1]"), "t.toml:2:11: 'matrix[0]': expected a list, found an integer");
  EXPECT_EQ(fault("name = 'n'\nsecret = '!'"), "t.toml:2:10: 'secret': not a base64url character");
}

TEST(Config, OutOfRange) {
  EXPECT_EQ(fault("name = 'n'\nepochs = 0"), "t.toml:2:10: 'epochs': 0 is outside 1 to 1000");
  EXPECT_EQ(fault("name = 'n'\nsmall = 128"), "t.toml:2:9: 'small': 128 is outside -128 to 127");
  EXPECT_EQ(fault("name = 'n'\nlarge = -1").substr(0, 36), "t.toml:2:9: 'large': -1 is outside 0");
  EXPECT_EQ(fault("name = 'n'\nsizes = [1, 0]"), "t.toml:2:13: 'sizes[1]': 0 is outside 1 to 65535");
  EXPECT_EQ(fault("name = 'n'\noptimizer.learning_rate = 1.5"), "t.toml:2:27: 'optimizer.learning_rate': 1.5 is outside 0 to 1");
  EXPECT_EQ(fault("name = 'n'\nrate = nan").substr(0, 25), "t.toml:2:8: 'rate': nan i");
}

TEST(Config, NotOneOf) {
  EXPECT_EQ(fault("name = 'n'\n[optimizer]\nname = 'adam'"), "t.toml:3:8: 'optimizer.name': no such choice 'adam'; did you mean 'adamw'?");
  EXPECT_EQ(fault("name = 'n'\nspeed = 'veryfast'"), "t.toml:2:9: 'speed': no such choice 'veryfast'; did you mean 'very_fast'?");
  EXPECT_EQ(fault("name = 'n'\ntags = ['rde']"), "t.toml:2:9: 'tags[0]': no such choice 'rde'; did you mean 'red'?");
  EXPECT_EQ(fault("name = 'n'\nmodel = 'liner'"), "t.toml:2:9: 'model': no such choice 'liner'; did you mean 'linear'?");
}

TEST(Config, MissingAndExclusiveKeys) {
  EXPECT_EQ(fault("epochs = 1"), "t.toml:1:1: missing key 'name': what it is called");
  EXPECT_EQ(fault("name = 'n'\n[[fields]]\nnumber = true\n"), "t.toml:2:1: missing key 'fields[0].name'");
  EXPECT_NE(fault("name = 'n'\n[model]\nonnx = 'f'\nlinear = true\n").find("exclude each other"), std::string::npos);
  EXPECT_EQ(fault("name = 'n'\n[model]\nlinear = false\n"), "t.toml:3:10: 'model.linear': expected the value true, found a boolean");
}

TEST(Config, SyntaxDuplicatesAndEncoding) {
  EXPECT_EQ(fault("name = 'n'\nname = 'm'").substr(0, 11), "t.toml:2:8:");
  EXPECT_EQ(fault("name = ").substr(0, 9), "t.toml:1:");
  EXPECT_EQ(fault("name = 'n'\nx = '\xC3\xA9\xFF'"), "t.toml:2:7: not UTF-8");
  EXPECT_EQ(fault(std::string("name = 'n'\n# \0", 14)).substr(0, 9), "t.toml:2:");
}

TEST(Config, LettersBeyondAsciiOutsideText) {
  EXPECT_EQ(fault("\xC3\xA9 = 1").substr(0, 9), "t.toml:1:");
  EXPECT_EQ(fault("name = \"\\\xC3\xA9\"").substr(0, 9), "t.toml:1:");
  const Parsed parsed("name = \"\"\"\\\n  \xC3\xA9\"\"\"");
  ASSERT_TRUE(parsed.status.has_value()) << parsed.status.error().message;
  EXPECT_EQ(text(parsed.root.getName()), "\xC3\xA9");
}

TEST(Config, BrokenHeaders) {
  for (const auto* text : {"[", "[\n", "[\na]", "[[\n", "[a", "[a.", "[a.\n", "[=]", "[]"})
    EXPECT_EQ(fault(text).substr(0, 7), "t.toml:") << text;
}

TEST(Config, AllErrorsInOrderAtMostTwenty) {
  EXPECT_EQ(fault("name = 1\nepochs = 'x'\nb = 2\n"),
            "t.toml:1:8: 'name': expected a string, found an integer\n"
            "t.toml:2:10: 'epochs': expected an integer, found a string\n"
            "t.toml:3:1: unknown key 'b'; the nearest is 'name' (known: name, epochs, small, large, enabled, rate, speed, secret, tags, "
            "sizes, matrix, optimizer, fields, p99_limit_ms, model, inner)");
  std::string many = "name = 'n'\n";
  for (int i = 0; i < 30; ++i) many += "unknown" + std::to_string(i) + " = 1\n";
  const auto message = fault(many);
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 20);
  EXPECT_TRUE(message.ends_with("t.toml: 10 more errors"));
}

TEST(Config, Bounds) {
  EXPECT_NE(fault(std::string(1100000, ' ')).find("more than the 1048576"), std::string::npos);
  std::string dotted = "a";
  for (int i = 0; i < 200000; ++i) dotted += ".a";
  EXPECT_EQ(fault("\n" + dotted + " = 1"), "t.toml:2:1: key of more than 16 parts");
  EXPECT_EQ(fault("x = {" + dotted + " = 1}"), "t.toml:1:1: key of more than 16 parts");
  EXPECT_FALSE(fault("x = " + std::string(100000, '[')).empty());
  std::string tables = "x = ";
  for (int i = 0; i < 10000; ++i) tables += "{a=";
  EXPECT_FALSE(fault(tables).empty());
}

TEST(Config, DotsInTextAreNotKeys) {
  const std::string dots(100, '.');
  const Parsed parsed("# " + dots + "\nname = \"\"\"\n" + dots + "\"\"\" # " + dots + "\nmodel.onnx = '" + dots + "\"\\'\n");
  ASSERT_TRUE(parsed.status.has_value()) << parsed.status.error().message;
  EXPECT_EQ(text(parsed.root.getName()), dots);
}

TEST(Config, ReadFile) {
  EXPECT_EQ(read_file("/nonexistent/x.toml").error().code, ErrorCode::not_found);
  const auto text = read_file(FALAJ_SOURCE_DIR "/tests/messages/sample.capnp");
  ASSERT_TRUE(text.has_value());
  EXPECT_NE(text->find("struct Sample"), std::string::npos);
}

}  // namespace
}  // namespace falaj::config
