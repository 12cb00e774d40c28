#include "runtime/base/result.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <unordered_set>

#include "runtime/base/ids.hpp"

namespace falaj {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return invalid("odd");
  return n / 2;
}
Result<int> quarter(int n) {
  FALAJ_ASSIGN(const int h, half(n));
  FALAJ_ASSIGN(const int q, half(h));
  return q;
}
Status both(int a, int b) {
  FALAJ_TRY(half(a));
  FALAJ_TRY(half(b));
  return {};
}

TEST(Result, LeavesWithTheFirstError) {
  EXPECT_EQ(quarter(12).value(), 3);
  EXPECT_EQ(quarter(6).error(), invalid("odd"));
  EXPECT_TRUE(both(2, 4).has_value());
  EXPECT_EQ(both(2, 3).error().message, "odd");
}

TEST(Result, CarriesMoveOnlyValues) {
  const auto make = []() -> Result<std::unique_ptr<int>> { return std::make_unique<int>(5); };
  auto made = make();
  ASSERT_TRUE(made.has_value());
  EXPECT_EQ(**made, 5);
}

TEST(Result, SaysWhere) {
  const auto e = within("job.toml", error(ErrorCode::conflict, "taken"));
  EXPECT_EQ(e.code, ErrorCode::conflict);
  EXPECT_EQ(e.message.find("job.toml"), 0U);
  EXPECT_NE(e.message.find("taken"), std::string::npos);
  EXPECT_NE(to_string(e).find("conflict"), std::string::npos);
}

TEST(Result, EachCodeHasItsWord) {
  std::unordered_set<std::string_view> words;
  for (int code = 0; code <= static_cast<int>(ErrorCode::no_space); ++code) words.insert(to_string(static_cast<ErrorCode>(code)));
  EXPECT_EQ(words.size(), static_cast<std::size_t>(ErrorCode::no_space) + 1);
}

TEST(Ids, AreStoredForEver) {  // node ids and feature partitions derive from this hash: the values may never change
  EXPECT_EQ(stable_hash(""), 14695981039346656037ULL);
  EXPECT_EQ(stable_hash("a"), 0xAF63DC4C8601EC8CULL);
  EXPECT_EQ(stable_hash("foobar"), 0x85944171F73967E8ULL);
  EXPECT_EQ(node_id("foobar").value(), 0x85944171F73967E8ULL);
}

TEST(Ids, CompareAndHash) {
  EXPECT_LT(Step(1), Step(2));
  EXPECT_EQ(NodeName("a"), NodeName("a"));
  const std::unordered_set<NodeId> set{NodeId(1), NodeId(1), NodeId(2)};
  EXPECT_EQ(set.size(), 2U);
  static_assert(!std::is_convertible_v<std::uint64_t, NodeId>);
  static_assert(!std::is_constructible_v<NodeId, ActorId>);
}

}  // namespace
}  // namespace falaj
