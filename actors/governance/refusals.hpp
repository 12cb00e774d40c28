// Refusals on their way from the policy, which any thread asks and which must not wait, to the audit actor of this node.
//
// Bounded, and none lost: each refusal is an entry of its own while fewer than `entries_max` wait; beyond that equal ones (same
// principal, verb, target, tenant, purpose) are counted on one entry, then those of one principal, then all.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/guarded.hpp"

namespace falaj::governance {

// What becomes one AuditEntry.
struct AuditRecord {
  WallTime time;
  std::string principal, verb, target, tenant, purpose;
  bool allowed = true;
  std::string reason, request;
};

class RefusalQueue {
 public:
  explicit RefusalQueue(std::size_t entries_max = 1024) : entries_max_(entries_max) {}
  void push(AuditRecord record);
  [[nodiscard]] std::vector<AuditRecord> take_all();  // oldest first
  // Called after a push into an empty queue, on the pushing thread: must be short (a tell of DrainRefusals to governance/audit).
  void on_push(std::function<void()> wake);
  [[nodiscard]] std::uint64_t pushed() const;

 private:
  struct Waiting {
    AuditRecord record;
    std::uint64_t times = 1;
  };
  struct State {
    std::vector<Waiting> waiting;
    std::map<std::string, std::size_t> counted;  // key of an overflow entry -> its place in `waiting`
    std::function<void()> wake;
    std::uint64_t pushed = 0;
  };
  std::size_t entries_max_;
  Guarded<State> state_;
};

}  // namespace falaj::governance
