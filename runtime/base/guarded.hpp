// Data that several threads touch, together with the mutex that guards it: reachable only while it is held.
//
//   Guarded<State> state;
//   const auto n = state.with([](State& s) { return s.n++; });
//
// Ways to get hurt: a reference that leaves the function outlives the lock.
#pragma once
#include <mutex>
#include <utility>

namespace falaj {

template <class T>
class Guarded {
 public:
  Guarded() = default;
  explicit Guarded(T value) : value_(std::move(value)) {}
  template <class F>
  decltype(auto) with(F&& f) {
    const std::scoped_lock lock(mutex_);
    return std::forward<F>(f)(value_);
  }
  template <class F>
  decltype(auto) with(F&& f) const {
    const std::scoped_lock lock(mutex_);
    return std::forward<F>(f)(value_);
  }

 private:
  mutable std::mutex mutex_;
  T value_{};
};

}  // namespace falaj
