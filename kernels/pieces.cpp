#include "kernels/pieces.hpp"

#include <algorithm>
#include <array>
#include <string>

#include "kernels/parallel.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

constexpr std::int64_t kProductRows = 32;  // that each fetch of weights from the farther caches is worth
constexpr std::int64_t kSlotsMax = 64;     // threads that run pieces
constexpr std::int64_t kFewRows = 4;
constexpr std::size_t kFarther = 16;  // how much more than a piece's bytes the farther caches hold
constexpr std::size_t kTimesMin = 8;  // pieces' bytes in what the whole batch would need: up to there, caches hold it well enough

// What of a row is alive at a step of a part, and what is read or written by it.
class Live {
 public:
  Live(std::span<const PieceStep> steps, std::span<const PieceValue> values)
      : steps_(steps), values_(values), here_(values.size(), false) {}
  std::size_t add(std::size_t step) {
    std::size_t passing = 0;  // made before the part
    for (const std::size_t v : steps_[step].reads) passing += here_[v] ? 0 : values_[v].row_bytes;
    for (const std::size_t v : steps_[step].makes) {
      here_[v] = true;
      alive_.push_back(v);
    }
    std::size_t bytes = passing;
    for (const std::size_t v : alive_) bytes += values_[v].row_bytes;
    std::erase_if(alive_, [&](std::size_t v) { return values_[v].last <= step; });
    return bytes;
  }

 private:
  std::span<const PieceStep> steps_;
  std::span<const PieceValue> values_;
  std::vector<bool> here_;
  std::vector<std::size_t> alive_;
};

// As many rows of `here` bytes as fit; a few in any case, if farther caches hold them, for each piece fetches all weights.
std::int64_t rows_that_fit(std::size_t here, std::size_t bytes) {
  const auto near = static_cast<std::int64_t>(bytes / std::max<std::size_t>(here, 1));
  const auto far = static_cast<std::int64_t>(kFarther * bytes / std::max<std::size_t>(here, 1));
  return std::max({std::min(far, kFewRows), near, std::int64_t{1}});
}

// At most `most` rows at a time: equal pieces, where that costs no more than half of them.
std::int64_t even_rows(std::int64_t batch, std::int64_t most) {
  for (std::int64_t rows = most; 2 * rows > most; --rows) {
    if (batch % rows == 0) return rows;
  }
  const std::int64_t pieces = (batch + most - 1) / most;
  return (batch + pieces - 1) / pieces;
}

class PiecesKernel final : public Kernel {
 public:
  PiecesKernel(Pieces pieces, std::size_t threads)
      : pieces_(std::move(pieces)),
        count_((pieces_.batch + pieces_.rows - 1) / pieces_.rows),
        slots_(std::min({count_, static_cast<std::int64_t>(threads), kSlotsMax})),
        name_(format("{} launches, {} rows at a time", pieces_.plan->launches.size(), pieces_.rows)) {
    std::size_t arena = pieces_.plan->arena_bytes;
    std::size_t arguments = pieces_.plan->arguments.size();
    if (pieces_.rest != nullptr) {
      arena = std::max(arena, pieces_.rest->arena_bytes);
      arguments = std::max(arguments, pieces_.rest->arguments.size());
    }
    arena_bytes_ = aligned(arena);
    slot_bytes_ = arena_bytes_ + aligned(arguments * sizeof(void*));
  }

  void run(const Io& io) const override {
    std::array<Failure, kSlotsMax> failures;
    in_slots(io, count_, slots_, [&](std::int64_t piece, std::int64_t slot) {
      Failure& failure = failures[static_cast<std::size_t>(slot)];
      if (failure.piece != kNone) return;
      run_piece(io, piece, io.scratch + static_cast<std::size_t>(slot) * slot_bytes_, failure.what);
      if (!failure.what.empty()) failure.piece = piece;
    });
    // The first row that is wrong, whoever came to one first.
    Failure& first = *std::ranges::min_element(failures, {}, &Failure::piece);
    if (first.piece != kNone) io.fail(std::move(first.what));
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return static_cast<std::size_t>(slots_) * slot_bytes_; }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static constexpr std::int64_t kNone = std::int64_t{1} << 62;
  struct Failure {
    std::int64_t piece = kNone;
    std::string what;
  };
  static std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

  void run_piece(const Io& io, std::int64_t piece, std::byte* arena, std::string& failure) const {
    const std::int64_t first = piece * pieces_.rows;
    const bool whole = first + pieces_.rows <= pieces_.batch;
    const Plan& plan = whole ? *pieces_.plan : *pieces_.rest;
    void** arguments = reinterpret_cast<void**>(arena + arena_bytes_);
    for (std::size_t i = 0; i < plan.arguments.size(); ++i) {
      const Place& place = plan.arguments[i];
      const auto row = [&](void* const* tensors, const std::vector<std::size_t>& bytes) -> void* {
        return static_cast<std::byte*>(tensors[place.index]) + static_cast<std::size_t>(first) * bytes[place.index];
      };
      arguments[i] = place.kind == Place::Kind::input      ? row(io.in, pieces_.input_bytes)
                     : place.kind == Place::Kind::output   ? row(io.out, pieces_.output_bytes)
                     : place.kind == Place::Kind::constant ? place.data
                     : place.kind == Place::Kind::arena    ? arena + place.index
                                                           : nullptr;
    }
    for (const Launch& launch : plan.launches) {
      void* const* at = arguments + launch.first_argument;
      launch.kernel->run(Io{at, at + launch.inputs, arena + launch.scratch, &failure, slots_ > 1 ? nullptr : io.team});
      if (!failure.empty()) [[unlikely]] {
        failure = within(launch.node, invalid(std::move(failure))).message;
        return;
      }
    }
  }

  Pieces pieces_;
  std::int64_t count_, slots_;
  std::string name_;
  std::size_t arena_bytes_ = 0, slot_bytes_ = 0;
};

}  // namespace

std::vector<Part> parts_of(std::span<const PieceStep> steps, std::span<const PieceValue> values, std::int64_t batch, std::size_t bytes,
                           std::size_t threads) {
  std::vector<Part> parts;
  for (std::size_t first = 0; first < steps.size();) {
    Live live(steps, values);
    std::int64_t most = batch;  // rows that fit
    std::int64_t least = 1;     // rows that products want
    std::size_t peak = 0;
    std::size_t end = first;
    for (; end < steps.size() && steps[end].apart; ++end) {
      const std::size_t here = live.add(end);
      const std::int64_t most_here = std::min(most, rows_that_fit(here, bytes));
      const std::int64_t wanted = steps[end].product_rows == 0 ? 1 : (kProductRows + steps[end].product_rows - 1) / steps[end].product_rows;
      if (most_here < std::min(std::max(least, wanted), batch)) break;
      most = most_here;
      least = std::max(least, wanted);
      peak = std::max(peak, here);
    }
    const bool better = most < batch && end - first > 1 && peak * static_cast<std::size_t>(batch) > kTimesMin * bytes;
    if (better && threads > 1) most = std::clamp<std::int64_t>(batch / static_cast<std::int64_t>(threads), std::min(least, most), most);
    if (better) parts.push_back({first, end, even_rows(batch, most)});
    first = std::max(end, first + 1);
  }
  return parts;
}

KernelPtr make_pieces(Pieces pieces, std::size_t threads) { return std::make_unique<PiecesKernel>(std::move(pieces), threads); }

}  // namespace falaj::kernels
