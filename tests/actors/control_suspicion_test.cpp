// Who takes a node for dead: control with a witness at once, control alone only after a while.
#include <gtest/gtest.h>

#include "actors/control/suspicion.hpp"

namespace falaj::control {
namespace {

using namespace std::chrono_literals;

const Instant kNow{100s};

Suspicion::Court court(bool witnesses = true, bool many = false) {
  return {[](const std::string& witness) { return witness != "sick"; }, witnesses, many};
}

TEST(Suspicion, WitnessesAloneKillNobody) {
  Suspicion s;
  for (const char* witness : {"a", "b", "c"}) s.accuse(witness, kNow);
  EXPECT_TRUE(s.accused(kNow));
  EXPECT_FALSE(s.suspected());
  EXPECT_FALSE(s.dead(kNow, court()));
}

TEST(Suspicion, ControlAndOneWitnessDo) {
  Suspicion s;
  s.lost(kNow);
  EXPECT_FALSE(s.dead(kNow, court()));
  s.accuse("a", kNow);
  EXPECT_TRUE(s.dead(kNow, court()));
}

TEST(Suspicion, TheWordOfOneWhoIsNotHeardDoesNotCount) {
  Suspicion s;
  s.lost(kNow);
  s.accuse("sick", kNow);
  EXPECT_FALSE(s.dead(kNow, court()));
}

TEST(Suspicion, AWordIsForgottenUnlessSaidAgain) {
  Suspicion s;
  s.accuse("a", kNow);
  s.lost(kNow + 2s);
  EXPECT_FALSE(s.accused(kNow + 2s));
  EXPECT_FALSE(s.dead(kNow + 2s, court()));
}

TEST(Suspicion, WithoutWitnessesControlDecidesAlone) {
  Suspicion s;
  s.lost(kNow);
  EXPECT_TRUE(s.dead(kNow, court(false)));
}

TEST(Suspicion, UnconfirmedLossIsBelievedLaterAndThatOfManyLaterStill) {
  Suspicion s;
  s.lost(kNow);
  EXPECT_FALSE(s.dead(kNow + 3s, court()));
  EXPECT_TRUE(s.dead(kNow + 4s, court()));
  EXPECT_FALSE(s.dead(kNow + 14s, court(true, true)));
  EXPECT_TRUE(s.dead(kNow + 15s, court(true, true)));
}

TEST(Suspicion, WhoIsHeardIsAlive) {
  Suspicion s;
  s.lost(kNow);
  s.accuse("a", kNow);
  s.heard();
  EXPECT_FALSE(s.suspected());
  EXPECT_FALSE(s.accused(kNow));
  s.lost(kNow + 1s);
  EXPECT_FALSE(s.dead(kNow + 1s, court()));
}

}  // namespace
}  // namespace falaj::control
