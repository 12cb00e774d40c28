// Threads that share one piece of work after another, with little time lost between them: growing a tree, or a run of a plan, is thousands
// of short pieces. Between two of them a thread looks for a moment whether there is more, then sleeps. Nothing is allocated.
// Who does which part is chance, so parts must write to different places, and what they write must not depend on the order. Helpers
// compute in the caller's float mode (denormals).
//
// Ways to get hurt: run() is for one thread at a time, is not re-entrant, and its parts must not throw.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

#include "runtime/base/thread.hpp"

namespace falaj::kernels {

class Team {
 public:
  explicit Team(std::size_t threads, std::string_view name = "team");  // the caller is one of them
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  [[nodiscard]] std::size_t threads() const noexcept { return helpers_.size() + 1; }

  // part(i) for each i in [0, parts), once; returns when all are done.
  template <class Part>
  void run(std::size_t parts, Part&& part) {
    if (parts <= 1 || helpers_.empty()) {
      for (std::size_t i = 0; i < parts; ++i) part(i);
      return;
    }
    share(parts, &part, [](void* work, std::size_t i) { (*static_cast<std::remove_reference_t<Part>*>(work))(i); });
  }

  // part(first, last) for consecutive ranges of [0, size), none shorter than `least` but the last.
  template <class Part>
  void ranges(std::size_t size, std::size_t least, Part&& part) {
    const std::size_t length = size <= least ? size : std::max(least, (size + 4 * threads() - 1) / (4 * threads()));
    const std::size_t parts = length == 0 ? 0 : (size + length - 1) / length;
    run(parts, [&](std::size_t i) { part(i * length, std::min(size, (i + 1) * length)); });
  }

 private:
  using Call = void (*)(void* work, std::size_t part);
  void share(std::size_t parts, void* work, Call call);
  void take_parts();
  void help();

  std::vector<Thread> helpers_;
  // Written before round_ goes up, read by helpers after they saw that.
  Call call_ = nullptr;
  void* work_ = nullptr;
  std::size_t parts_ = 0;
  unsigned float_mode_ = 0;
  bool stop_ = false;
  std::atomic<std::uint32_t> round_ = 0;
  alignas(64) std::atomic<std::size_t> next_ = 0;
  alignas(64) std::atomic<std::uint32_t> busy_ = 0;  // helpers that have not finished the round
};

// Threads that are worth it for so many cells (rows x columns), of `most`.
std::size_t threads_for(std::size_t cells, std::size_t most) noexcept;

}  // namespace falaj::kernels
