// Collectives as non-blocking state machines over links that somebody else owns: a Communicator is told what arrives
// (on_chunk), when there is room again (resume) and what time it is (tick); it answers by sending chunks and by calling the
// completion of an operation once. It has no threads, no clock and no sockets, so that the actor layer, the simulator and a
// test in one thread drive the same code.
//
// One schedule serves all verbs. Data is cut into chunks; each chunk starts at its origin and travels the ring
// 0 -> 1 -> ... -> n-1 -> 0. On its first lap every rank adds its part (reductions), on the next the result is spread. A chunk
// that has come back to its origin is the origin's credit to start another: `window` bounds what one rank keeps in flight.
//   fold            all chunks start at rank 0, every rank adds its micro-shards one by one: a left fold in the order of the
//                   micro-shards, so that the bits do not depend on how many ranks there are (deterministic mode)
//   all_reduce      chunk c starts at rank c mod n: all links carry the same load (fast mode; bits depend on the ranks)
//   reduce_scatter, all_gather, broadcast, barrier   the same with fewer hops
//
// Ways to get hurt:
// - Every rank must start the same operations with the same sequence numbers, growing, and the same sizes.
// - The spans given to a start must live, and stay untouched, until its completion ran (or abort or reform returned).
// - After a failure the contents of the output are undefined; recompute, re-form with a larger epoch, start again.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

enum class CollectiveKind : std::uint8_t { fold, all_reduce, reduce_scatter, all_gather, broadcast, barrier };
std::string_view to_string(CollectiveKind kind) noexcept;

// Travels in front of each chunk's floats. All fields are checked on receipt.
struct ChunkHeader {
  Epoch epoch;                 // of the ring; smaller ones are ignored, larger ones kept until reform()
  std::uint64_t sequence = 0;  // which operation of the epoch
  CollectiveKind kind = CollectiveKind::barrier;
  std::uint32_t chunk = 0;  // number of the chunk within the operation
  std::uint32_t hop = 0;    // links travelled, this one included
  std::uint32_t count = 0;  // floats that follow
  bool operator==(const ChunkHeader&) const = default;
};

class PeerLinks {
 public:
  virtual ~PeerLinks() = default;
  // Takes a copy of the floats before it returns. false: no room now; resume() is called when there is.
  // Chunks to one rank arrive in the order of the calls or not at all.
  virtual bool send(Rank to, const ChunkHeader& header, std::span<const float> floats) = 0;
};

// What one rank knows about an operation that does not end.
struct WaitReport {
  Rank self;
  std::uint64_t sequence = 0;
  std::vector<Rank> missing;  // ranks of which nothing has arrived, directly or through others; else the predecessor
};
// The ranks that keep the others waiting, from the reports of those that answered: who sent no report at all, else the ranks
// that every reporter misses. Sorted.
std::vector<Rank> name_missing(std::uint32_t world, std::span<const WaitReport> reports);

// Contiguous, as even as possible: rank r of n holds micro-shards [first, first + count).
struct ShardRange {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  bool operator==(const ShardRange&) const = default;
};
ShardRange shard_range(std::uint32_t micro_shards, std::uint32_t world, Rank rank) noexcept;

struct CommunicatorOptions {
  std::size_t chunk_floats = limits::kChunkBytes / sizeof(float) / 4;  // 256 KiB: small enough to pipeline, large enough for the links
  std::uint32_t window = 16;                                           // chunks one rank keeps in flight in one operation
  std::size_t early_bytes_max = 64U << 20;  // chunks kept for operations not yet started here, or for a newer epoch
};

class Communicator {
 public:
  using Completion = std::move_only_function<void(Status)>;

  Communicator(PeerLinks& links, CommunicatorOptions options = {});
  ~Communicator();  // drops what runs; completions are not called
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // A new ring. What runs ends with `gone`; kept chunks of this epoch are used, older ones dropped. An epoch not larger than the
  // present one is refused (invalid).
  Status reform(Epoch epoch, Rank self, std::uint32_t world);

  // Each start is refused (invalid) when its sequence is not larger than the last one started in this epoch. A completion may
  // run inside the start (a world of one, or all chunks here already), and may start the next operation.
  // fold: sum = 0 + shards[0] + shards[1] + ... over all ranks in order; each shard has sum.size() floats, none is allowed.
  Status fold(std::uint64_t sequence, std::vector<std::span<const float>> shards, std::span<float> sum, Instant deadline, Completion done);
  // In place.
  Status all_reduce(std::uint64_t sequence, std::span<float> data, Instant deadline, Completion done);
  // In place over the whole data, segment r = segment(size, world, r): afterwards only the own segment is defined.
  Status reduce_scatter(std::uint64_t sequence, std::span<float> data, Instant deadline, Completion done);
  // In place: the own segment is read, all others are written.
  Status all_gather(std::uint64_t sequence, std::span<float> data, Instant deadline, Completion done);
  Status broadcast(std::uint64_t sequence, Rank root, std::span<float> data, Instant deadline, Completion done);
  // Ends when every rank has started it.
  Status barrier(std::uint64_t sequence, Instant deadline, Completion done);

  // A chunk from the predecessor. A wrong one (size, hop, duplicate) ends its operation with `corrupt`.
  void on_chunk(Rank from, const ChunkHeader& header, std::span<const float> floats);
  void resume();           // links have room again
  void tick(Instant now);  // ends overdue operations with `deadline`, naming who is missing
  void abort(Error why);   // ends all operations; later chunks of them are ignored

  [[nodiscard]] bool idle() const noexcept { return running_.empty(); }
  [[nodiscard]] std::vector<WaitReport> waiting() const;  // one for each operation that runs
  [[nodiscard]] Epoch epoch() const noexcept { return epoch_; }
  [[nodiscard]] Rank self() const noexcept { return self_; }
  [[nodiscard]] std::uint32_t world() const noexcept { return world_; }
  [[nodiscard]] std::uint64_t ignored() const noexcept { return ignored_; }  // chunks of the past, or beyond early_bytes_max

  // The part of `size` floats that belongs to a rank in reduce_scatter and all_gather.
  struct Segment {
    std::size_t offset = 0;
    std::size_t count = 0;
  };
  static Segment segment(std::size_t size, std::uint32_t world, Rank rank) noexcept;

 private:
  struct Operation;
  struct Early {
    Rank from;
    ChunkHeader header;
    std::vector<float> floats;
  };

  Status start(std::unique_ptr<Operation> operation);
  void take(Operation& operation, const ChunkHeader& header, std::span<const float> floats);
  void add_local(Operation& operation, std::uint32_t chunk, std::span<const float> incoming);
  void inject(Operation& operation);
  void flush(Operation& operation);
  void settle(std::uint64_t sequence);
  void finish(std::uint64_t sequence, Status status);
  void replay_early();
  [[nodiscard]] std::vector<Rank> missing(const Operation& operation) const;
  [[nodiscard]] Rank next() const noexcept { return Rank((self_.value() + 1) % world_); }
  [[nodiscard]] Rank previous() const noexcept { return Rank((self_.value() + world_ - 1) % world_); }

  PeerLinks& links_;
  CommunicatorOptions options_;
  Epoch epoch_{};
  Rank self_{};
  std::uint32_t world_ = 0;
  std::optional<std::uint64_t> started_;  // largest sequence started in this epoch
  std::map<std::uint64_t, std::unique_ptr<Operation>> running_;
  std::deque<Early> early_;
  std::size_t early_bytes_ = 0;
  std::uint64_t ignored_ = 0;
};

}  // namespace falaj::kernels
