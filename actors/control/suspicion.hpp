// Whether a node is lost, by whose word. Pure: time is an argument, who counts as a witness is asked.
//
// After SWIM (Das, Gupta, Motivala, DSN 2002) and Lifeguard (Dadgar, Phillips, Currey, DSN-W 2018), for a cluster with one that decides:
// control's own evidence is needed, and so is the word of one other node. So neither a sick node nor one broken connection takes a
// healthy node out. What nobody confirms is believed after a while, and later still when control has lost many at once: then it is more
// likely control that is cut off.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "runtime/base/clock.hpp"

namespace falaj::control {

class Suspicion {
 public:
  static constexpr Duration kWordHolds = std::chrono::milliseconds(1500);  // a witness says it again every half second
  static constexpr Duration kAlone = std::chrono::seconds(4);
  static constexpr Duration kAloneOfMany = std::chrono::seconds(15);

  void lost(Instant now) {
    if (!lost_at_) lost_at_ = now;
  }
  void heard() {  // control has, from the node itself
    lost_at_.reset();
    words_.clear();
  }
  void accuse(const std::string& witness, Instant now) { words_[witness] = now + kWordHolds; }
  [[nodiscard]] bool suspected() const { return lost_at_.has_value(); }
  [[nodiscard]] bool accused(Instant now) const;

  struct Court {
    std::function<bool(const std::string& witness)> counts;  // is up, not suspected itself, not leaving
    bool witnesses = false;                                  // there is somebody who could confirm
    bool many = false;                                       // control has lost more than half of the others at once
  };
  [[nodiscard]] bool dead(Instant now, const Court& court) const;

 private:
  std::optional<Instant> lost_at_;        // control's own evidence
  std::map<std::string, Instant> words_;  // witness -> until when its word holds
};

}  // namespace falaj::control
