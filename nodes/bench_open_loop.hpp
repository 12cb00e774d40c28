// Questions of the other process of a benchmark (bench_pair.hpp) at a given rate. The loop is open: a question is due when its time has
// come, whatever became of those before, and waits count from then.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "runtime/host/actor.hpp"

namespace falaj::nodes {

struct OpenLoop {
  std::string_view to;
  double per_second = 1000;
  Duration deadline = std::chrono::seconds(5);
  Lane lane = Lane::normal;
};

// How the questions ended. Written by one actor; read when it has answered.
struct Ends {
  explicit Ends(std::size_t questions) : us(questions) {}  // all memory is there before the first question
  std::uint64_t asked = 0;
  std::uint64_t overloaded = 0;
  std::uint64_t late = 0;  // their deadline came first
  std::uint64_t other = 0;
  std::uint64_t answered = 0;
  Duration longest{};      // until any end
  std::vector<double> us;  // waits of the answered
  Error why;               // of the last other end

  [[nodiscard]] std::uint64_t ended() const { return answered + overloaded + late + other; }
};

// An actor that takes a Ball: asks as many questions as it says, as often as the plan says, and answers when the last of them has ended.
// `ends` is there until then.
std::unique_ptr<Actor> make_asker(const OpenLoop& plan, Ends& ends);

}  // namespace falaj::nodes
