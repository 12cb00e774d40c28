// What must hold at every moment of a simulation, whatever fails, and what must hold in the end.
#pragma once
#include <map>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

#include "simulations/cluster.hpp"
#include "simulations/verdict.hpp"

namespace falaj::simulations {

class Checks {
 public:
  Checks(Cluster& cluster, Verdict& verdict) : cluster_(cluster), verdict_(verdict) {}

  void seen(const SimSeen& message);
  void viewed(const std::string& machine, const cluster::ClusterSnapshot& view);
  void ended(const std::string& node);
  void every_second();

  // In the end. Empty: all good; otherwise what is still missing.
  [[nodiscard]] std::string not_settled();
  struct Audit {
    std::uint64_t entries = 0, reads = 0, promotions = 0;
  };
  Audit audit();  // verifies the chain, and that each entry is there once

 private:
  struct Seen {
    std::uint64_t epoch = 0, revision = 0;
  };
  std::string views_differ();
  std::string actors_left();

  Cluster& cluster_;
  Verdict& verdict_;
  std::map<std::string, std::unordered_set<std::uint64_t>, std::less<>> answers_;  // by node: tokens of replies and downs
  std::map<std::string, Seen> views_;                                              // of this boot, by machine
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint32_t> contents_;      // checksum, by epoch and revision
  std::vector<std::uint16_t> owners_;                                              // of partitions, once dealt
  std::vector<std::string> feature_nodes_;
  std::pair<std::uint64_t, std::uint64_t> dealt_;  // the first view known to name them
};

}  // namespace falaj::simulations
