// The thread-safe half of Cell: senders push, the turn pops.
#include <algorithm>

#include "runtime/base/fault.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/host/cell.hpp"
#include "runtime/host/watchdog.hpp"

namespace falaj {

namespace {
// One message in this many has its waiting and service time measured: two clock reads are dear beside a message.
constexpr std::uint32_t kSampleEvery = 16;
constexpr std::uint32_t kLongQueue = 16;  // shorter ones are not worth a look at the clock

const Error& full_error() {
  static const Error kFull = error(ErrorCode::overloaded, "the actor's mailbox is full; back off, then retry");
  return kFull;
}

}  // namespace

// Replies, refusals and the host's own signals are never refused: each answers to something already bounded.
const Error* Cell::admit(Delivery& delivery, LaneQueue& lane) {
  static const Error kBehind = error(ErrorCode::overloaded, "the actor is too far behind to answer in time; back off, then retry");
  const std::uint32_t produced = lane.produced.fetch_add(1, std::memory_order_relaxed);
  // The counts wrap, their difference does not; it is negative when this sender was held up here while others were served.
  const auto difference = static_cast<std::int32_t>(produced - lane.consumed.load(std::memory_order_relaxed));
  const auto waiting = static_cast<std::uint32_t>(std::max(difference, 0));
  const bool full = waiting >= lane.limit && !fault::planted("mailbox-unbounded");
  if (full || comes_too_late(delivery, waiting)) {
    lane.produced.fetch_sub(1, std::memory_order_relaxed);
    return full ? &full_error() : &kBehind;
  }
  if (delivery.lane == Lane::bulk) {
    const std::size_t size = delivery.body.bytes().size();
    if (bulk_bytes_.fetch_add(size, std::memory_order_relaxed) + size > limits::kMailboxBulkBytes) {
      bulk_bytes_.fetch_sub(size, std::memory_order_relaxed);
      lane.produced.fetch_sub(1, std::memory_order_relaxed);
      return &full_error();
    }
  }
  if (produced % kSampleEvery == 0 || node_->tracer.on()) {
    delivery.sent = node_->now();
    delivery.ahead = waiting;
  }
  return nullptr;
}

// A queue in order of arrival, longer than the deadlines of its asks, would answer each of them just too late: all work, no use. An ask
// that cannot be answered in time is refused while its asker can still go elsewhere, and those that are let in are answered.
bool Cell::comes_too_late(const Delivery& delivery, std::uint32_t waiting) const {
  if (delivery.kind != Kind::ask || waiting < kLongQueue || delivery.deadline == Instant::max()) return false;
  const Duration expected = std::chrono::nanoseconds(pace_ns_.load(std::memory_order_relaxed)) * waiting;
  return expected * 4 > (delivery.deadline - node_->now()) * 3;  // a quarter is left for the work and the way back
}

// Only from a queue that was long enough for its length to be what mattered.
void Cell::measure_pace(Instant sent, std::uint32_t ahead, Instant now) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  if (ahead < kLongQueue / 2) return;
  const auto sample = std::min<std::int64_t>(std::chrono::nanoseconds(now - sent).count() / ahead, kSecond);
  const auto before = static_cast<std::int64_t>(pace_ns_.load(std::memory_order_relaxed));
  pace_ns_.store(static_cast<std::uint32_t>(before == 0 ? sample : before + (sample - before) / 4), std::memory_order_relaxed);
}

void Cell::deliver(std::unique_ptr<Delivery> delivery) {
  if (dead_.load(std::memory_order_acquire)) {
    node_->undeliverable(std::move(delivery), *this, error(ErrorCode::gone, "the actor has ended; look its name up again"));
    return;
  }
  const bool counted = delivery->kind == Kind::tell || delivery->kind == Kind::ask;
  const bool refused = delivery->lane != Lane::control && fault::rarely("mailbox-full", 0.01);
  if (counted) {
    const Error* why = refused ? &full_error() : admit(*delivery, lanes_[static_cast<std::size_t>(delivery->lane)]);
    if (why != nullptr) {
      node_->undeliverable(std::move(delivery), *this, *why);
      return;
    }
  }
  const bool urgent = delivery->lane == Lane::control;
  push(std::move(delivery));
  wake(urgent);
}

void Cell::push(std::unique_ptr<Delivery> delivery) noexcept {
  auto& incoming = lanes_[static_cast<std::size_t>(delivery->lane)].incoming;
  Delivery* raw = delivery.release();
  raw->next = incoming.load(std::memory_order_relaxed);
  // seq_cst here and in wake() and release_turn(): either the sender sees the cell idle, or the turn sees the message.
  while (!incoming.compare_exchange_weak(raw->next, raw, std::memory_order_seq_cst, std::memory_order_relaxed)) {
  }
}

void Cell::wake(bool urgent) noexcept {
  std::uint8_t expected = idle;
  if (state_.load(std::memory_order_seq_cst) == idle && state_.compare_exchange_strong(expected, busy, std::memory_order_seq_cst)) {
    retain();
    node_->executor.schedule(*this, urgent);
  }
}

void Cell::kill() noexcept {
  killed_.store(true, std::memory_order_seq_cst);
  wake(true);
}

void Cell::timer_due() noexcept {
  timer_due_.store(true, std::memory_order_seq_cst);
  wake(true);
}

std::unique_ptr<Delivery> Cell::pop_lane(LaneQueue& lane, bool bulk) noexcept {
  if (lane.ready == nullptr) {
    if (lane.incoming.load(std::memory_order_relaxed) == nullptr) return nullptr;
    Delivery* newest = lane.incoming.exchange(nullptr, std::memory_order_acquire);
    while (newest != nullptr) {
      Delivery* older = std::exchange(newest->next, lane.ready);
      lane.ready = std::exchange(newest, older);
    }
  }
  std::unique_ptr<Delivery> out(lane.ready);
  lane.ready = out->next;
  if (out->kind == Kind::tell || out->kind == Kind::ask) {
    lane.consumed.store(lane.consumed.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    if (bulk) bulk_bytes_.fetch_sub(out->body.bytes().size(), std::memory_order_relaxed);
  }
  return out;
}

std::unique_ptr<Delivery> Cell::pop() noexcept {
  for (std::size_t i = 0; i < kLanes; ++i) {
    if (auto out = pop_lane(lanes_[i], i == static_cast<std::size_t>(Lane::bulk))) return out;
  }
  return nullptr;
}

bool Cell::has_incoming() const noexcept {
  if (timer_due_.load(std::memory_order_seq_cst)) return true;
  if (killed_.load(std::memory_order_seq_cst) && !dead_.load(std::memory_order_relaxed)) return true;
  for (const auto& lane : lanes_) {
    if (lane.incoming.load(std::memory_order_seq_cst) != nullptr) return true;
  }
  return false;
}

bool Cell::has_ready() const noexcept {
  for (const auto& lane : lanes_) {
    if (lane.ready != nullptr) return true;
  }
  return false;
}

std::size_t Cell::depth() const noexcept {
  std::uint32_t sum = 0;
  for (const auto& lane : lanes_) sum += lane.produced.load(std::memory_order_relaxed) - lane.consumed.load(std::memory_order_relaxed);
  return static_cast<std::int32_t>(sum) < 0 ? 0 : sum;  // the two counts are not read together
}

void Cell::flush_counts() noexcept {
  if (turn_handled_ == 0) return;
  if (auto* stats = stats_.load(std::memory_order_relaxed)) stats->handled.add(turn_handled_);
  turn_handled_ = 0;
}

bool Cell::run(std::size_t messages) {
  if (t_turn_mark != nullptr) t_turn_mark->begin(id_);
  for (std::size_t i = 0; i < messages; ++i) {
    if (killed_.load(std::memory_order_relaxed) && phase_ != Phase::dead) {
      end_ = End{.failed = true, .call_on_stop = false, .why = error(ErrorCode::gone, "killed by its supervisor")};
      destroy_tasks();
      if (children_) children_->kill_all();
      finish();
    }
    if (timer_due_.load(std::memory_order_relaxed)) run_timers();
    auto delivery = pop();
    if (!delivery) break;
    node_->tracer.on() ? handle_traced(std::move(delivery)) : handle(std::move(delivery));
  }
  flush_counts();
  if (t_turn_mark != nullptr) t_turn_mark->end();
  if (has_ready()) return true;
  return release_turn();
}

// True: more came while we looked, and the cell is still ours.
bool Cell::release_turn() {
  state_.exchange(idle, std::memory_order_seq_cst);
  // From here on another thread may run the cell: only its atomics may be touched.
  if (!has_incoming()) return false;
  std::uint8_t expected = idle;
  return state_.compare_exchange_strong(expected, busy, std::memory_order_seq_cst);
}

}  // namespace falaj
