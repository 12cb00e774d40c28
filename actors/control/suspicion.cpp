#include "actors/control/suspicion.hpp"

#include <algorithm>

namespace falaj::control {

bool Suspicion::accused(Instant now) const {
  return std::ranges::any_of(words_, [now](const auto& word) { return word.second > now; });
}

bool Suspicion::dead(Instant now, const Court& court) const {
  if (!lost_at_) return false;
  if (!court.witnesses) return true;
  if (now - *lost_at_ >= (court.many ? kAloneOfMany : kAlone)) return true;
  return std::ranges::any_of(words_, [&](const auto& word) { return word.second > now && court.counts(word.first); });
}

}  // namespace falaj::control
