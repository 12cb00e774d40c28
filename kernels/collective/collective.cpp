#include "kernels/collective/collective.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/collective/float_mode.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

namespace {

// out = incoming + shards[0] + shards[1] + ..., element by element in exactly this order. A shard may be `out` itself.
void left_fold(std::span<const float> incoming, std::span<const std::span<const float>> shards, std::size_t offset, std::span<float> out) {
  constexpr std::size_t kBlock = 512;  // stays in the first-level cache while the shards pass by
  float sum[kBlock];
  for (std::size_t begin = 0; begin < out.size(); begin += kBlock) {
    const std::size_t count = std::min(kBlock, out.size() - begin);
    if (incoming.empty()) {
      std::fill_n(sum, count, 0.0F);
    } else {
      std::copy_n(incoming.data() + begin, count, sum);
    }
    for (const std::span<const float> shard : shards) {
      const float* part = shard.data() + offset + begin;
      for (std::size_t i = 0; i < count; ++i) sum[i] += part[i];
    }
    std::copy_n(sum, count, out.data() + begin);
  }
}

}  // namespace

std::string_view to_string(CollectiveKind kind) noexcept {
  switch (kind) {
    case CollectiveKind::fold:
      return "fold";
    case CollectiveKind::all_reduce:
      return "all_reduce";
    case CollectiveKind::reduce_scatter:
      return "reduce_scatter";
    case CollectiveKind::all_gather:
      return "all_gather";
    case CollectiveKind::broadcast:
      return "broadcast";
    case CollectiveKind::barrier:
      return "barrier";
  }
  return "?";
}

std::vector<Rank> name_missing(std::uint32_t world, std::span<const WaitReport> reports) {
  std::vector<std::uint32_t> missed_by(world, 0);
  std::vector<bool> reported(world, false);
  for (const WaitReport& report : reports) {
    if (report.self.value() < world) reported[report.self.value()] = true;
    for (const Rank rank : report.missing) {
      if (rank.value() < world) ++missed_by[rank.value()];
    }
  }
  std::vector<Rank> silent;
  std::vector<Rank> missed_by_all;
  std::vector<Rank> missed_by_some;
  for (std::uint32_t rank = 0; rank < world; ++rank) {
    if (!reported[rank]) silent.emplace_back(rank);
    if (!reports.empty() && missed_by[rank] == reports.size()) missed_by_all.emplace_back(rank);
    if (missed_by[rank] > 0) missed_by_some.emplace_back(rank);
  }
  if (!silent.empty()) return silent;
  return missed_by_all.empty() ? missed_by_some : missed_by_all;
}

ShardRange shard_range(std::uint32_t micro_shards, std::uint32_t world, Rank rank) noexcept {
  const auto begin = static_cast<std::uint32_t>(std::uint64_t{micro_shards} * rank.value() / world);
  const auto end = static_cast<std::uint32_t>(std::uint64_t{micro_shards} * (rank.value() + 1) / world);
  return {begin, end - begin};
}

Communicator::Segment Communicator::segment(std::size_t size, std::uint32_t world, Rank rank) noexcept {
  const std::size_t each = size / world;
  const std::size_t rest = size % world;
  const std::size_t r = rank.value();
  return {r * each + std::min(r, rest), each + (r < rest ? 1 : 0)};
}

struct Communicator::Operation {
  struct Chunk {
    std::size_t offset = 0;
    std::uint32_t count = 0;
    Rank origin;
    std::uint32_t next_hop = 0;  // the hop with which it comes next; larger than hops: it will not come again
  };
  struct Parcel {
    std::uint32_t chunk;
    std::uint32_t hop;
  };

  std::uint64_t sequence = 0;
  CollectiveKind kind = CollectiveKind::barrier;
  std::vector<std::span<const float>> shards;  // reductions: what this rank adds
  std::span<float> data;                       // partial sums, then the result
  Instant deadline{};
  Completion done;

  std::vector<Chunk> chunks;
  std::uint32_t fold_hops = 0;  // up to this hop the receiver adds its part
  std::uint32_t data_hops = 0;  // up to this hop the chunk carries floats
  std::uint32_t hops = 0;       // at `world` hops the chunk is back at its origin: the credit to start another
  std::uint32_t next_own = 0;   // where the search for the next chunk to start goes on
  std::uint32_t in_flight = 0;  // own chunks started and not yet back
  std::uint64_t remaining = 0;  // chunks still to arrive, counted once for each visit
  std::deque<Parcel> outbox;    // refused by the links; their floats lie in `data` and do not change before they are sent
  std::uint32_t proven = 0;     // upstream ranks known to have started this operation
  std::optional<Error> failure;

  [[nodiscard]] bool complete() const { return remaining == 0 && outbox.empty(); }

  void cut(std::size_t offset, std::size_t count, std::size_t chunk_floats, std::uint32_t world, std::optional<Rank> origin) {
    for (std::size_t at = 0; at < count; at += chunk_floats) {
      const Rank from = origin ? *origin : Rank(static_cast<std::uint32_t>(chunks.size() % world));
      chunks.push_back({offset + at, static_cast<std::uint32_t>(std::min(chunk_floats, count - at)), from, 0});
    }
  }

  void route(Rank self, std::uint32_t world) {
    const bool folds = kind != CollectiveKind::all_gather && kind != CollectiveKind::broadcast;
    const bool two_laps = folds && kind != CollectiveKind::reduce_scatter;
    fold_hops = folds ? world - 1 : 0;
    data_hops = two_laps ? 2 * world - 2 : world - 1;
    hops = two_laps ? 2 * world - 2 : world;
    if (world == 1) hops = 0;
    for (Chunk& chunk : chunks) {
      const std::uint32_t distance = (self.value() + world - chunk.origin.value()) % world;
      chunk.next_hop = distance == 0 ? world : distance;
      for (std::uint32_t hop = chunk.next_hop; hop <= hops; hop += world) ++remaining;
    }
  }
};

Communicator::Communicator(PeerLinks& links, CommunicatorOptions options) : links_(links), options_(options) {
  options_.chunk_floats = std::clamp<std::size_t>(options_.chunk_floats, 1, limits::kChunkBytes / sizeof(float));
  options_.window = std::max(options_.window, 1U);
}

Communicator::~Communicator() = default;

Status Communicator::reform(Epoch epoch, Rank self, std::uint32_t world) {
  if (world == 0 || self.value() >= world) return invalid(format("reform: rank {} does not fit in a ring of {}", self.value(), world));
  if (world_ != 0 && epoch <= epoch_) {
    return invalid(format("reform: epoch {} is not larger than the present {}", epoch.value(), epoch_.value()));
  }
  epoch_ = epoch;
  self_ = self;
  world_ = world;
  started_.reset();
  std::erase_if(early_, [&](const Early& early) {
    if (early.header.epoch >= epoch) return false;
    early_bytes_ -= early.floats.size() * sizeof(float) + sizeof(Early);
    ++ignored_;
    return true;
  });
  auto ended = std::move(running_);
  running_.clear();
  for (auto& [sequence, operation] : ended) {
    operation->done(
        error(ErrorCode::gone, format("{} {}: the ring was re-formed in epoch {}", to_string(operation->kind), sequence, epoch.value())));
  }
  return {};
}

Status Communicator::fold(std::uint64_t sequence, std::vector<std::span<const float>> shards, std::span<float> sum, Instant deadline,
                          Completion done) {
  for (const auto shard : shards) {
    if (shard.size() != sum.size())
      return invalid(format("fold {}: a micro-shard of {} floats, the sum has {}", sequence, shard.size(), sum.size()));
  }
  auto op = std::make_unique<Operation>();
  op->sequence = sequence, op->kind = CollectiveKind::fold, op->deadline = deadline;
  op->shards = std::move(shards), op->data = sum, op->done = std::move(done);
  op->cut(0, sum.size(), options_.chunk_floats, std::max(world_, 1U), Rank(0));
  return start(std::move(op));
}

Status Communicator::all_reduce(std::uint64_t sequence, std::span<float> data, Instant deadline, Completion done) {
  auto op = std::make_unique<Operation>();
  op->sequence = sequence, op->kind = CollectiveKind::all_reduce, op->deadline = deadline;
  op->shards = {data}, op->data = data, op->done = std::move(done);
  // Small data is cut finer, so that every rank starts a part of it.
  const std::size_t share = (data.size() + std::max(world_, 1U) - 1) / std::max(world_, 1U);
  op->cut(0, data.size(), std::clamp<std::size_t>(share, 1, options_.chunk_floats), std::max(world_, 1U), std::nullopt);
  return start(std::move(op));
}

Status Communicator::reduce_scatter(std::uint64_t sequence, std::span<float> data, Instant deadline, Completion done) {
  auto op = std::make_unique<Operation>();
  op->sequence = sequence, op->kind = CollectiveKind::reduce_scatter, op->deadline = deadline;
  op->shards = {data}, op->data = data, op->done = std::move(done);
  for (std::uint32_t rank = 0; rank < world_; ++rank) {
    const Segment part = segment(data.size(), world_, Rank(rank));
    op->cut(part.offset, part.count, options_.chunk_floats, world_,
            Rank((rank + 1) % world_));  // complete after world-1 hops: at its owner
  }
  return start(std::move(op));
}

Status Communicator::all_gather(std::uint64_t sequence, std::span<float> data, Instant deadline, Completion done) {
  auto op = std::make_unique<Operation>();
  op->sequence = sequence, op->kind = CollectiveKind::all_gather, op->deadline = deadline;
  op->data = data, op->done = std::move(done);
  for (std::uint32_t rank = 0; rank < world_; ++rank) {
    const Segment part = segment(data.size(), world_, Rank(rank));
    op->cut(part.offset, part.count, options_.chunk_floats, world_, Rank(rank));
  }
  return start(std::move(op));
}

Status Communicator::broadcast(std::uint64_t sequence, Rank root, std::span<float> data, Instant deadline, Completion done) {
  if (root.value() >= world_) return invalid(format("broadcast {}: no rank {} in a ring of {}", sequence, root.value(), world_));
  auto op = std::make_unique<Operation>();
  op->sequence = sequence, op->kind = CollectiveKind::broadcast, op->deadline = deadline;
  op->data = data, op->done = std::move(done);
  op->cut(0, data.size(), options_.chunk_floats, world_, root);
  return start(std::move(op));
}

Status Communicator::barrier(std::uint64_t sequence, Instant deadline, Completion done) {
  auto op = std::make_unique<Operation>();
  op->sequence = sequence, op->kind = CollectiveKind::barrier, op->deadline = deadline;
  op->done = std::move(done);
  op->chunks.push_back({0, 0, Rank(0), 0});
  return start(std::move(op));
}

Status Communicator::start(std::unique_ptr<Operation> operation) {
  const std::uint64_t sequence = operation->sequence;
  if (world_ == 0) return invalid(format("{} {}: no ring has been formed", to_string(operation->kind), sequence));
  if (started_ && sequence <= *started_) {
    return invalid(format("{} {}: the last operation started in this epoch is {}", to_string(operation->kind), sequence, *started_));
  }
  started_ = sequence;
  operation->route(self_, world_);
  Operation& op = *operation;
  running_.emplace(sequence, std::move(operation));
  if (world_ == 1) {
    for (std::uint32_t chunk = 0; chunk < op.chunks.size(); ++chunk) add_local(op, chunk, {});
  }
  inject(op);
  replay_early();
  settle(sequence);
  return {};
}

// The origin has nothing incoming, and nothing to add in all_gather and broadcast.
void Communicator::add_local(Operation& op, std::uint32_t chunk, std::span<const float> incoming) {
  if (op.shards.empty() && op.kind != CollectiveKind::fold) return;
  const FlushDenormals mode;
  const Operation::Chunk& part = op.chunks[chunk];
  left_fold(incoming, op.shards, part.offset, op.data.subspan(part.offset, part.count));
}

void Communicator::inject(Operation& op) {
  if (op.hops == 0) return;
  for (; op.in_flight < options_.window && op.next_own < op.chunks.size(); ++op.next_own) {
    if (op.chunks[op.next_own].origin != self_) continue;
    add_local(op, op.next_own, {});
    ++op.in_flight;
    op.outbox.push_back({op.next_own, 1});
  }
}

void Communicator::flush(Operation& op) {
  while (!op.outbox.empty()) {
    const auto [index, hop] = op.outbox.front();
    const Operation::Chunk& chunk = op.chunks[index];
    const std::uint32_t count = hop <= op.data_hops ? chunk.count : 0;
    const ChunkHeader header{epoch_, op.sequence, op.kind, index, hop, count};
    if (!links_.send(next(), header, op.data.subspan(chunk.offset, count))) return;
    op.outbox.pop_front();
  }
}

void Communicator::take(Operation& op, const ChunkHeader& header, std::span<const float> floats) {
  const auto refuse = [&](std::string why) {
    op.failure = error(ErrorCode::corrupt, format("{} {} of epoch {}, chunk {} hop {}: {}", to_string(op.kind), op.sequence, epoch_.value(),
                                                  header.chunk, header.hop, why));
  };
  if (header.kind != op.kind) return refuse(format("the sender runs {}", to_string(header.kind)));
  if (header.chunk >= op.chunks.size()) return refuse(format("there are {} chunks here", op.chunks.size()));
  Operation::Chunk& chunk = op.chunks[header.chunk];
  if (header.hop != chunk.next_hop || header.hop > op.hops) return refuse(format("expected hop {} of {}", chunk.next_hop, op.hops));
  const std::uint32_t count = header.hop <= op.data_hops ? chunk.count : 0;
  if (header.count != count || floats.size() != count) return refuse(format("{} floats instead of {}", floats.size(), count));

  op.proven = std::max(op.proven, std::min(header.hop, world_ - 1));
  chunk.next_hop += world_;
  --op.remaining;
  if (header.hop <= op.fold_hops) {
    if (count > 0) add_local(op, header.chunk, floats);
  } else {
    std::ranges::copy(floats, op.data.begin() + static_cast<std::ptrdiff_t>(chunk.offset));
  }
  if (header.hop < op.hops) op.outbox.push_back({header.chunk, header.hop + 1});
  if (chunk.origin == self_) {
    --op.in_flight;
    inject(op);
  }
}

void Communicator::on_chunk(Rank from, const ChunkHeader& header, std::span<const float> floats) {
  if (header.epoch < epoch_ ||
      (world_ != 0 && header.epoch == epoch_ && started_ && header.sequence <= *started_ && !running_.contains(header.sequence))) {
    ++ignored_;
    return;
  }
  if (world_ == 0 || header.epoch > epoch_ || !running_.contains(header.sequence)) {
    const std::size_t bytes = floats.size_bytes() + sizeof(Early);
    if (early_bytes_ + bytes > options_.early_bytes_max) {
      ++ignored_;
      return;
    }
    early_bytes_ += bytes;
    early_.push_back({from, header, {floats.begin(), floats.end()}});
    return;
  }
  Operation& op = *running_.at(header.sequence);
  if (from != previous()) {
    op.failure = error(ErrorCode::corrupt, format("{} {} of epoch {}: a chunk from rank {}, expected rank {}", to_string(op.kind),
                                                  op.sequence, epoch_.value(), from.value(), previous().value()));
  } else {
    take(op, header, floats);
  }
  settle(header.sequence);
}

void Communicator::replay_early() {
  std::deque<Early> now;
  std::deque<Early> later;
  for (Early& early : early_) {
    const bool due = early.header.epoch == epoch_ && early.header.sequence <= *started_;
    (due ? now : later).push_back(std::move(early));
  }
  early_ = std::move(later);
  for (const Early& early : now) {
    early_bytes_ -= early.floats.size() * sizeof(float) + sizeof(Early);
    const auto found = running_.find(early.header.sequence);
    if (found == running_.end()) {
      ++ignored_;
    } else if (!found->second->failure) {
      if (early.from == previous()) {
        take(*found->second, early.header, early.floats);
      } else {
        found->second->failure =
            error(ErrorCode::corrupt, format("a chunk from rank {}, expected rank {}", early.from.value(), previous().value()));
      }
    }
  }
}

void Communicator::settle(std::uint64_t sequence) {
  const auto found = running_.find(sequence);
  if (found == running_.end()) return;
  Operation& op = *found->second;
  if (!op.failure) flush(op);
  if (op.failure) return finish(sequence, Status(std::move(*op.failure)));
  if (op.complete()) finish(sequence, {});
}

void Communicator::finish(std::uint64_t sequence, Status status) {
  const auto node = running_.extract(sequence);
  if (!node.empty()) node.mapped()->done(std::move(status));
}

void Communicator::resume() {
  std::vector<std::uint64_t> sequences;
  for (const auto& [sequence, op] : running_) sequences.push_back(sequence);
  for (const std::uint64_t sequence : sequences) settle(sequence);
}

void Communicator::tick(Instant now) {
  std::vector<std::uint64_t> overdue;
  for (const auto& [sequence, op] : running_) {
    if (now >= op->deadline) overdue.push_back(sequence);
  }
  for (const std::uint64_t sequence : overdue) {
    const auto found = running_.find(sequence);
    if (found == running_.end()) continue;
    std::string names;
    for (const Rank rank : missing(*found->second)) names += format("{}{}", names.empty() ? "" : ", ", rank.value());
    finish(sequence, error(ErrorCode::deadline,
                           format("{} {} of epoch {}: rank {} of {} still waits for rank {}", to_string(found->second->kind), sequence,
                                  epoch_.value(), self_.value(), world_, names.empty() ? "none (its links are full)" : names)));
  }
}

void Communicator::abort(Error why) {
  auto ended = std::move(running_);
  running_.clear();
  for (auto& [sequence, op] : ended) op->done(within(format("{} {}", to_string(op->kind), sequence), why));
}

std::vector<Rank> Communicator::missing(const Operation& op) const {
  std::uint32_t needed = 0;  // how far upstream lies what we still wait for
  for (const Operation::Chunk& chunk : op.chunks) {
    if (chunk.next_hop <= op.hops) needed = std::max(needed, std::min(chunk.next_hop, world_ - 1));
  }
  std::vector<Rank> ranks;
  for (std::uint32_t distance = op.proven + 1; distance <= needed; ++distance)
    ranks.emplace_back((self_.value() + world_ - distance) % world_);
  if (ranks.empty() && needed > 0) ranks.push_back(previous());
  std::ranges::sort(ranks);
  return ranks;
}

std::vector<WaitReport> Communicator::waiting() const {
  std::vector<WaitReport> reports;
  for (const auto& [sequence, op] : running_) reports.push_back({self_, sequence, missing(*op)});
  return reports;
}

}  // namespace falaj::kernels
