// A progress bar on a terminal; nothing elsewhere.
#pragma once
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace falaj::nodes {

class Progress {
 public:
  Progress(std::string what, std::uint64_t total) : what_(std::move(what)), total_(total), shown_(isatty(STDERR_FILENO) == 1) {}
  void at(std::uint64_t done) {
    if (!shown_ || total_ == 0) return;
    const auto cells = static_cast<int>(done * 40 / total_);
    if (cells == cells_) return;
    cells_ = cells;
    std::fprintf(stderr, "\r%s [%.*s%*s] %llu/%llu", what_.c_str(), cells, "########################################", 40 - cells, "",
                 static_cast<unsigned long long>(done), static_cast<unsigned long long>(total_));
  }
  void end() const {
    if (shown_ && cells_ >= 0) std::fprintf(stderr, "\r\033[K");
  }

 private:
  std::string what_;
  std::uint64_t total_;
  bool shown_;
  int cells_ = -1;
};

}  // namespace falaj::nodes
