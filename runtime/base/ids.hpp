// Strong ids and units: a raw integer where an id is meant does not compile. Values only: copy, compare, hash, print.
#pragma once
#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace falaj {

template <class Tag, class Rep = std::uint64_t>
class Id {
 public:
  using rep = Rep;
  constexpr Id() = default;
  constexpr explicit Id(Rep value) : value_(std::move(value)) {}
  [[nodiscard]] constexpr const Rep& value() const noexcept { return value_; }
  auto operator<=>(const Id&) const = default;

 private:
  Rep value_{};
};

using NodeId = Id<struct NodeIdTag>;            // hash of the node's name within its cluster; 0 is "this node / nobody"
using Incarnation = Id<struct IncarnationTag>;  // grows with every start of a node or actor; fences messages to the dead
using ActorId = Id<struct ActorIdTag>;          // unique within one incarnation of a node
using TypeId = Id<struct TypeIdTag>;            // Cap'n Proto type id of a message
using Epoch = Id<struct EpochTag>;              // who may decide; smaller ones are refused
using CorrelationId = Id<struct CorrelationTag>;
using Step = Id<struct StepTag>;  // optimizer steps done
using Partition = Id<struct PartitionTag, std::uint16_t>;
using Rank = Id<struct RankTag, std::uint32_t>;
using ModelVersion = Id<struct ModelVersionTag>;
using Revision = Id<struct RevisionTag>;  // version of a control-store key

using NodeName = Id<struct NodeNameTag, std::string>;  // [a-z0-9-]{1,63}

// 64-bit FNV-1a, stable for ever: node ids and feature partitions are derived from it and stored.
constexpr std::uint64_t stable_hash(std::string_view text) noexcept {
  std::uint64_t hash = 14695981039346656037ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return hash;
}

inline NodeId node_id(std::string_view name) noexcept { return NodeId(stable_hash(name)); }

}  // namespace falaj

template <class Tag, class Rep>
struct std::hash<falaj::Id<Tag, Rep>> {
  std::size_t operator()(const falaj::Id<Tag, Rep>& id) const noexcept { return std::hash<Rep>{}(id.value()); }
};
