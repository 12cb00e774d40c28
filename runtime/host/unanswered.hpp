// What an ask is refused with when its token is destroyed unanswered. `failed` normally; an actor that stops sets `gone`
// around the destruction of its tasks. Internal to runtime/host.
#pragma once
#include "runtime/base/result.hpp"

namespace falaj {

class UnansweredScope {
 public:
  explicit UnansweredScope(const Error& why) noexcept;
  ~UnansweredScope();
  UnansweredScope(const UnansweredScope&) = delete;
  UnansweredScope& operator=(const UnansweredScope&) = delete;

 private:
  const Error* before_;
};

}  // namespace falaj
