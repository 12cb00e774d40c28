// Fault points: places in production code where a simulation may let something rare or wrong happen. Outside simulation each is one
// branch on a null pointer of the thread.
//
//   if (fault::planted("reply-twice")) ...             // a deliberate defect, which the simulator must find (tests/simulations)
//   if (fault::rarely("shard-commit-one", 0.25)) ...   // something allowed but rare: a smaller batch, an early timeout
//
// A rare thing happens in a quarter of the runs that have such things at all, there with the given chance each time.
//
// Ways to get hurt: a fault point that is reached by another thread than the simulation's does nothing there.
#pragma once
#include <string_view>

namespace falaj::fault {

class Injector {
 public:
  virtual ~Injector() = default;
  virtual bool planted(std::string_view name) = 0;
  virtual bool rarely(std::string_view name, double chance) = 0;
};

inline constinit thread_local Injector* injector = nullptr;

[[nodiscard]] inline bool planted(std::string_view name) { return injector != nullptr && injector->planted(name); }
[[nodiscard]] inline bool rarely(std::string_view name, double chance) { return injector != nullptr && injector->rarely(name, chance); }

}  // namespace falaj::fault
