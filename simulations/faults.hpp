// `falaj simulate faults`: one run of a whole cluster under the faults of a seed. First safety: everything may fail, and nothing wrong may
// happen. Then calm: everything is mended, and all that was promised must come about. The same seed gives the same digest.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "simulations/verdict.hpp"

namespace falaj::simulations {

struct FaultPlan {
  std::uint64_t seed = 1;
  unsigned nodes = 5;
  unsigned minutes = 5;                                // simulated; the last two fifths are calm, and 40 s at least
  std::string plant;                                   // a deliberate defect (see plants())
  bool faults = true;                                  // false: calm weather throughout
  std::function<void(const std::string& line)> trace;  // each message and fault
};

struct FaultReport {
  std::uint64_t digest = 0;
  std::vector<Verdict::Violation> violations;
  double simulated_seconds = 0, settled_after = 0;  // the latter counts from when calm came
  std::uint64_t steps = 0, faults = 0;
  std::uint64_t runs = 0, promotions = 0, predictions = 0, rows = 0, audit_entries = 0;
  std::string storm;  // the kinds of faults
  [[nodiscard]] bool good() const { return violations.empty(); }
};

FaultReport run_faults(const FaultPlan& plan);

// The defects that can be planted: fault points in production code, where a line is left out or done wrong.
const std::vector<std::string>& plants();

}  // namespace falaj::simulations
