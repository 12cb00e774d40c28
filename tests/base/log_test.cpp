#include "runtime/base/log.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace falaj::log {
namespace {

class LogFile : public testing::Test {
 protected:
  std::string path = testing::TempDir() + "falaj_log_test_" + std::to_string(getpid());
  void TearDown() override {
    configure({});
    std::filesystem::remove(path);
  }
  [[nodiscard]] std::string text() const {
    flush();
    std::ifstream in(path);
    std::stringstream all;
    all << in.rdbuf();
    return all.str();
  }
};

TEST_F(LogFile, JsonLines) {
  configure({.level = Level::info, .style = Style::json, .file = path, .node = "n1"});
  debug("link", "not written");
  info("link", "peer \"up\"\n", {{"rtt_us", 12}, {"ratio", 0.5}, {"ok", true}, {"name", "a\\b\x01"}, {"big", ~0ULL}});
  const auto line = text();
  EXPECT_EQ(line.find("not written"), std::string::npos);
  EXPECT_NE(
      line.find(
          "\"level\":\"info\",\"node\":\"n1\",\"component\":\"link\",\"event\":\"peer \\\"up\\\"\\u000a\",\"rtt_us\":12,\"ratio\":0.5,"
          "\"ok\":true,\"name\":\"a\\\\b\\u0001\",\"big\":18446744073709551615}\n"),
      std::string::npos)
      << line;
  EXPECT_EQ(line.substr(0, 8), "{\"time\":");
}

TEST_F(LogFile, HumanLinesStayLines) {
  configure({.level = Level::debug, .style = Style::human, .file = path});
  warn("store", "slow", {{"text", "two words"}, {"plain", "word"}, {"empty", ""}});
  const auto line = text();
  EXPECT_NE(line.find("store: slow text=\"two words\" plain=word empty=\"\""), std::string::npos) << line;
}

TEST_F(LogFile, CountsErrors) {
  configure({.level = Level::off, .style = Style::json, .file = path});
  const auto before = errors();
  error("x", "bad");
  EXPECT_EQ(errors(), before + 1);
  EXPECT_EQ(text(), "");
}

}  // namespace
}  // namespace falaj::log
