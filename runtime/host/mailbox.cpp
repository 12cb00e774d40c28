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
// How many were handled is told to the senders once for so many, or they would wait for that count with each message. Where the mailbox
// holds few, an ask was handled (its asker may send as many again), or the turn ends: at once.
constexpr std::uint32_t kPublishEvery = 16;
constexpr std::uint32_t kLongMailbox = 256;

const Error& full_error() {
  static const Error kFull = error(ErrorCode::overloaded, "the actor's mailbox is full; back off, then retry");
  return kFull;
}

}  // namespace

// Replies, refusals and the host's own signals are never refused: each answers to something already bounded.
const Error* Cell::admit(Delivery& delivery, std::size_t lane) {
  static const Error kBehind = error(ErrorCode::overloaded, "the actor is too far behind to answer in time; back off, then retry");
  auto& count = inbox_.produced[lane];
  const std::uint32_t produced = count.fetch_add(1, std::memory_order_relaxed);
  // The counts wrap, their difference does not; it is negative when this sender was held up here while others were served.
  const auto difference = static_cast<std::int32_t>(produced - consumed_[lane].load(std::memory_order_relaxed));
  const auto waiting = static_cast<std::uint32_t>(std::max(difference, 0));
  const bool full = waiting >= limits_[lane] && !fault::planted("mailbox-unbounded");
  if (full || comes_too_late(delivery, lane, waiting)) {
    count.fetch_sub(1, std::memory_order_relaxed);
    return full ? &full_error() : &kBehind;
  }
  if (delivery.lane == Lane::bulk) {
    const std::size_t size = delivery.body.bytes().size();
    if (inbox_.bulk_bytes.fetch_add(size, std::memory_order_relaxed) + size > limits::kMailboxBulkBytes) {
      inbox_.bulk_bytes.fetch_sub(size, std::memory_order_relaxed);
      count.fetch_sub(1, std::memory_order_relaxed);
      return &full_error();
    }
  }
  if (produced % kSampleEvery == 0 || node_->tracer.on()) {
    delivery.sent = node_->now();
    delivery.ahead = waiting;
  }
  return nullptr;
}

bool Cell::comes_too_late(const Delivery& delivery, std::size_t lane, std::uint32_t waiting) {
  if (delivery.kind != Kind::ask || delivery.deadline == Instant::max()) return false;
  if (waiting < kLongQueue) {
    delays_[lane].is_short();
    return false;
  }
  return delays_[lane].too_long(node_->now(), delivery.deadline,
                                std::chrono::nanoseconds(pace_ns_.load(std::memory_order_relaxed)) * waiting);
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
    const Error* why = refused ? &full_error() : admit(*delivery, static_cast<std::size_t>(delivery->lane));
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
  auto& incoming = inbox_.incoming[static_cast<std::size_t>(delivery->lane)];
  const bool control = delivery->lane == Lane::control;
  Delivery* raw = delivery.release();
  raw->next = incoming.load(std::memory_order_relaxed);
  // seq_cst here and in wake() and release_turn(): either the sender sees the cell idle, or the turn sees the message.
  while (!incoming.compare_exchange_weak(raw->next, raw, std::memory_order_seq_cst, std::memory_order_relaxed)) {
  }
  if (control) control_waiting_.store(true, std::memory_order_seq_cst);
}

void Cell::wake(bool urgent) noexcept {
  std::uint8_t expected = idle;
  auto& state = inbox_.state;
  if (state.load(std::memory_order_seq_cst) == idle && state.compare_exchange_strong(expected, busy, std::memory_order_seq_cst)) {
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

std::unique_ptr<Delivery> Cell::pop_lane(std::size_t lane) noexcept {
  auto& queue = lanes_[lane];
  if (queue.ready == nullptr) {
    auto& incoming = inbox_.incoming[lane];
    if (incoming.load(std::memory_order_relaxed) == nullptr) return nullptr;
    Delivery* newest = incoming.exchange(nullptr, std::memory_order_acquire);
    while (newest != nullptr) {
      Delivery* older = std::exchange(newest->next, queue.ready);
      queue.ready = std::exchange(newest, older);
    }
  }
  std::unique_ptr<Delivery> out(queue.ready);
  queue.ready = out->next;
  if (out->kind == Kind::tell || out->kind == Kind::ask) {
    ++queue.consumed;
    if (limits_[lane] < kLongMailbox || queue.consumed % kPublishEvery == 0 || out->kind == Kind::ask) publish(lane);
    if (lane == static_cast<std::size_t>(Lane::bulk)) inbox_.bulk_bytes.fetch_sub(out->body.bytes().size(), std::memory_order_relaxed);
  }
  return out;
}

void Cell::publish(std::size_t lane) noexcept { consumed_[lane].store(lanes_[lane].consumed, std::memory_order_relaxed); }

// While there are messages of another lane to handle, the control lane's arrivals are looked at only when there are some: the senders'
// line of the cache is theirs.
std::unique_ptr<Delivery> Cell::pop() noexcept {
  constexpr auto kControl = static_cast<std::size_t>(Lane::control);
  bool control = lanes_[kControl].ready != nullptr;
  if (!control && control_waiting_.load(std::memory_order_relaxed)) {
    control_waiting_.store(false, std::memory_order_seq_cst);  // before the look: who comes after it says so again
    control = true;
  }
  if (control) {
    if (auto out = pop_lane(kControl)) return out;
  }
  for (std::size_t lane = kControl + 1; lane < kLanes; ++lane) {
    if (auto out = pop_lane(lane)) return out;
  }
  return pop_lane(kControl);
}

bool Cell::has_incoming() const noexcept {
  if (timer_due_.load(std::memory_order_seq_cst)) return true;
  if (killed_.load(std::memory_order_seq_cst) && !dead_.load(std::memory_order_relaxed)) return true;
  for (const auto& incoming : inbox_.incoming) {
    if (incoming.load(std::memory_order_seq_cst) != nullptr) return true;
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
  for (std::size_t lane = 0; lane < kLanes; ++lane)
    sum += inbox_.produced[lane].load(std::memory_order_relaxed) - consumed_[lane].load(std::memory_order_relaxed);
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
  for (std::size_t lane = 0; lane < kLanes; ++lane) publish(lane);
  flush_counts();
  if (t_turn_mark != nullptr) t_turn_mark->end();
  if (has_ready()) return true;
  return release_turn();
}

// True: more came while we looked, and the cell is still ours.
bool Cell::release_turn() {
  inbox_.state.exchange(idle, std::memory_order_seq_cst);
  // From here on another thread may run the cell: only its atomics may be touched.
  if (!has_incoming()) return false;
  std::uint8_t expected = idle;
  return inbox_.state.compare_exchange_strong(expected, busy, std::memory_order_seq_cst);
}

}  // namespace falaj
