// How a kernel shares its work among an executor's threads. What is one part depends on shapes alone, never on the number of threads, and
// parts write to different places: results are the same bits on any number of threads.
//
// Ways to get hurt: parts must not call io.fail(), nor in_parts() again.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/ops.hpp"
#include "kernels/team.hpp"

namespace falaj::kernels {

// part(i) for each i of [0, parts).
template <class Part>
void in_parts(const Io& io, std::int64_t parts, Part&& part) {
  if (io.team == nullptr || parts <= 1) {
    for (std::int64_t i = 0; i < parts; ++i) part(i);
    return;
  }
  io.team->run(static_cast<std::size_t>(parts), [&](std::size_t i) { part(static_cast<std::int64_t>(i)); });
}

// part(i, slot) for each i of [0, parts), where no two with the same slot of [0, slots) run at a time: for scratch memory.
template <class Part>
void in_slots(const Io& io, std::int64_t parts, std::int64_t slots, Part&& part) {
  in_parts(io, std::min(parts, slots), [&](std::int64_t slot) {
    for (std::int64_t i = slot; i < parts; i += slots) part(i, slot);
  });
}

// part(first, last) for consecutive ranges of [0, size), each of `length`, the last of what is left.
template <class Part>
void in_ranges(const Io& io, std::int64_t size, std::int64_t length, Part&& part) {
  if (size <= length) {
    if (size > 0) part(std::int64_t{0}, size);
    return;
  }
  in_parts(io, (size + length - 1) / length, [&](std::int64_t i) { part(i * length, std::min(size, (i + 1) * length)); });
}

// Elements, or additions of a sum, that are worth a part of their own.
constexpr std::int64_t kPartWork = std::int64_t{1} << 14;

// Multiply-adds of vectors below which a whole product or convolution is done before a second thread is awake.
constexpr std::int64_t kSharedWork = std::int64_t{1} << 22;
// The same launch for the calling thread alone, where there is less work than that.
inline Io alone_if_small(const Io& io, std::int64_t work) {
  Io own = io;
  if (work < kSharedWork) own.team = nullptr;
  return own;
}

// Rows of `width` elements that make a part.
constexpr std::int64_t part_rows(std::int64_t width) { return std::max<std::int64_t>(kPartWork / std::max<std::int64_t>(width, 1), 1); }

}  // namespace falaj::kernels
