// The TOML that README and the examples show is TOML that Falaj reads.
#include <gtest/gtest.h>

#include <filesystem>

#include "messages/resources.capnp.h"
#include "runtime/config.hpp"

namespace falaj::config {
namespace {

void expect_resources(const std::string& text, const std::string& name) {
  capnp::MallocMessageBuilder builder;
  const auto status = parse_toml<messages::ResourceFile>(text, name, builder.initRoot<messages::ResourceFile>());
  EXPECT_TRUE(status.has_value()) << status.error().message;
}

TEST(Docs, ReadmeShowsValidToml) {
  const auto page = read_file(FALAJ_SOURCE_DIR "/README.md").value();
  const std::string fence = "```toml\n";
  int blocks = 0;
  for (auto at = page.find(fence); at != std::string::npos; at = page.find(fence, at)) {
    at += fence.size();
    expect_resources(page.substr(at, page.find("```", at) - at), "README.md");
    ++blocks;
  }
  EXPECT_GT(blocks, 0);
}

TEST(Docs, ExamplesAreValid) {
  for (const auto& entry : std::filesystem::directory_iterator(FALAJ_SOURCE_DIR "/configs/examples")) {
    if (entry.path().extension() != ".toml") continue;
    expect_resources(read_file(entry.path()).value(), entry.path().filename());
  }
}

}  // namespace
}  // namespace falaj::config
