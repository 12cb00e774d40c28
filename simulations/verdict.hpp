// Where everything that watches a simulation reports what must not have happened.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "runtime/base/clock.hpp"

namespace falaj::simulations {

class Verdict {
 public:
  struct Violation {
    Instant when;
    std::string what;
  };
  explicit Verdict(std::function<Instant()> now) : now_(std::move(now)) {}
  void fail(std::string what) {
    if (violations_.size() < kKept) violations_.push_back({now_(), std::move(what)});
  }
  [[nodiscard]] bool good() const { return violations_.empty(); }
  [[nodiscard]] const std::vector<Violation>& violations() const { return violations_; }

 private:
  static constexpr std::size_t kKept = 8;
  std::function<Instant()> now_;
  std::vector<Violation> violations_;
};

}  // namespace falaj::simulations
