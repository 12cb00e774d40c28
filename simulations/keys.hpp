// Actors by key and a singleton, asked from every machine all the while: no owner answers after a later one has, none shares its epoch with
// another, and in the end each answers.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/shards/shards.hpp"
#include "runtime/host/host.hpp"
#include "simulations/verdict.hpp"

namespace falaj::simulations {

class Keys {
 public:
  explicit Keys(Verdict& verdict) : verdict_(verdict) {}
  [[nodiscard]] static std::vector<shards::Type> types();
  void start(Host& host);  // of a machine, after its boot
  void calm() { answered_.clear(); }
  [[nodiscard]] std::string missing() const;  // empty: all have answered since it is calm
  [[nodiscard]] std::uint64_t answers() const { return answers_; }

  // By the actors that ask.
  [[nodiscard]] static const std::vector<std::string>& names();
  [[nodiscard]] std::uint64_t floor(const std::string& name) { return seen_[name].epoch; }
  void answered(const std::string& name, std::uint64_t floor, std::uint64_t epoch, std::uint64_t by);

 private:
  struct Seen {
    std::uint64_t epoch = 0;                     // the greatest that an answer came from
    std::map<std::uint64_t, std::uint64_t> who;  // by epoch
  };
  Verdict& verdict_;
  std::map<std::string, Seen> seen_;
  std::map<std::string, bool> answered_;
  std::uint64_t answers_ = 0;
};

}  // namespace falaj::simulations
