// `falaj simulate members`: membership alone, on many nodes. All register; then some are lost at once, and the rest must come to the
// same view of it. The same seed gives the same digest.
#pragma once
#include <cstdint>
#include <string>

namespace falaj::simulations {

struct MembersPlan {
  std::uint64_t seed = 1;
  unsigned nodes = 200;
  unsigned lost = 40;
  bool power = false;  // they fall silent, instead of their processes ending
};

struct MembersReport {
  std::string trouble;  // empty: all came about
  double all_here = 0;  // simulated seconds until everybody saw everybody
  double agreed = 0;    // ... from the loss until every survivor had the same view, without the lost
  // Messages of membership from other nodes, received by one node while the news spread: by control, and by the busiest of the others.
  std::uint64_t by_control = 0, by_another = 0;
  // Peers with which a node other than control exchanges heartbeats while nothing happens: of the one that has most.
  std::size_t beats_with = 0;
  std::uint64_t steps = 0, digest = 0;
};

MembersReport run_members(const MembersPlan& plan);

}  // namespace falaj::simulations
