// What an actor waits for: answers, sleeps, work on the pool, callbacks. One table of slots, one heap of deadlines, and at most one
// timer of the executor for each cell.
#include <algorithm>

#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/host/cell.hpp"

namespace falaj {

namespace {
constexpr std::uint32_t index_of(std::uint64_t token) { return static_cast<std::uint32_t>(token); }
constexpr std::uint32_t generation_of(std::uint64_t token) { return static_cast<std::uint32_t>(token >> 32); }
}  // namespace

std::uint64_t Cell::take_slot(Slot::Use use, void* state) {
  std::uint32_t index = 0;
  if (free_slots_.empty()) {
    index = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    index = free_slots_.back();
    free_slots_.pop_back();
  }
  auto& slot = slots_[index];
  slot.use = use;
  slot.state = state;
  if (use == Slot::Use::ask) ++asks_;
  return std::uint64_t{slot.generation} << 32 | index;
}

Cell::Slot* Cell::slot_of(std::uint64_t token) noexcept {
  const auto index = index_of(token);
  if (index >= slots_.size() || slots_[index].generation != generation_of(token) || slots_[index].use == Slot::Use::free) return nullptr;
  return &slots_[index];
}

void Cell::free_slot(std::uint64_t token) noexcept {
  auto* slot = slot_of(token);
  if (slot == nullptr) return;
  if (slot->use == Slot::Use::ask) --asks_;
  slot->use = Slot::Use::free;
  slot->state = nullptr;
  slot->call.reset();
  if (++slot->generation == 0) slot->generation = 1;
  free_slots_.push_back(index_of(token));
}

void Cell::add_due(Instant when, std::uint64_t token) {
  due_.push_back(Due{when, ++due_order_, token});
  std::push_heap(due_.begin(), due_.end());
  // Most asks are answered long before their deadline: what is left of them is swept out when it has doubled the heap.
  const std::size_t live = slots_.size() - free_slots_.size();
  if (due_.size() > 64 && due_.size() > 2 * live + 64) {
    std::erase_if(due_, [this](const Due& due) { return slot_of(due.token) == nullptr; });
    std::make_heap(due_.begin(), due_.end());
  }
  arm();
}

// The executor's timer may be early (its ask was answered meanwhile), never late.
void Cell::arm() {
  if (due_.empty()) return;
  const auto first = due_.front().when;
  if (first >= armed_) return;
  if (armed_ != Instant::max()) node_->executor.cancel(armed_timer_);
  armed_ = first;
  armed_timer_ = node_->executor.call_at(first, [self = ActorRef(this)] { static_cast<Cell*>(self.get())->timer_due(); });
}

void Cell::run_timers() {
  timer_due_.exchange(false, std::memory_order_acquire);
  armed_ = Instant::max();
  const auto now = node_->now();
  while (!due_.empty() && due_.front().when <= now) {
    std::pop_heap(due_.begin(), due_.end());
    const auto token = due_.back().token;
    due_.pop_back();
    fire(token);
  }
  while (!due_.empty() && slot_of(due_.front().token) == nullptr) {
    std::pop_heap(due_.begin(), due_.end());
    due_.pop_back();
  }
  arm();
}

void Cell::fire(std::uint64_t token) {
  auto* slot = slot_of(token);
  if (slot == nullptr) return;
  switch (slot->use) {
    case Slot::Use::ask:
      complete_ask(token, error(ErrorCode::deadline, "no answer in time; whether it was done is unknown"));
      break;
    case Slot::Use::wait:
      complete_wait(token);
      break;
    case Slot::Use::call: {
      const auto call = std::move(slot->call);
      free_slot(token);
      guarded([&] { (*call)(*this); });
      break;
    }
    case Slot::Use::free:
      break;
  }
}

void Cell::complete_ask(std::uint64_t token, Result<Message> result) {
  auto* slot = slot_of(token);
  if (slot == nullptr || slot->use != Slot::Use::ask) {
    node_->late_answer();
    return;
  }
  auto& state = *static_cast<detail::AskState*>(slot->state);
  free_slot(token);
  state.result.emplace(std::move(result));
  state.pending = false;
  if (state.gather != nullptr && !state.gather->ended(state.result->has_value())) return;
  guarded([&] { state.waiting.resume(); });
}

void Cell::complete_wait(std::uint64_t token) {
  auto* slot = slot_of(token);
  if (slot == nullptr || slot->use != Slot::Use::wait) return;
  auto& state = *static_cast<detail::WaitState*>(slot->state);
  free_slot(token);
  state.pending = false;
  guarded([&] { state.waiting.resume(); });
}

void Cell::drop_waits() noexcept {
  for (std::uint32_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].use != Slot::Use::free) free_slot(std::uint64_t{slots_[i].generation} << 32 | i);
  }
  due_.clear();
}

void Cell::ask_begin(detail::AskState& state, const ActorRef& to, Message message, const SendOptions& options) {
  auto patience = options.timeout.count() != 0 ? options.timeout : Duration(limits::kAskDefault);
  if (fault::rarely("ask-ends-early", 0.01)) patience /= 16;
  const auto deadline = node_->now() + patience;
  const auto token = take_slot(Slot::Use::ask, &state);
  state.correlation = CorrelationId(token);
  state.pending = true;
  auto delivery = std::make_unique<Delivery>();
  delivery->kind = Kind::ask;
  delivery->lane = options.lane;
  delivery->body = std::move(message);
  delivery->correlation = state.correlation;
  delivery->from = ActorRef(this);
  delivery->deadline = deadline;
  delivery->trace = options.trace;
  delivery->scope = options.scope;
  if (!fault::planted("ask-without-deadline")) add_due(deadline, token);
  // A refusal comes through the mailbox like any answer: nothing resumes while it is being suspended.
  if (!to) {
    node_->undeliverable(std::move(delivery), *this, error(ErrorCode::not_found, "no actor of that name is known"));
  } else if (asks_ > limits::kAsksPerActor) {
    node_->undeliverable(std::move(delivery), *this, error(ErrorCode::overloaded, "the actor has too many asks outstanding"));
  } else {
    to.get()->deliver(std::move(delivery));
  }
}

void Cell::ask_forget(detail::AskState& state) noexcept { free_slot(state.correlation.value()); }

void Cell::sleep_begin(detail::WaitState& state, Duration duration) {
  state.id = take_slot(Slot::Use::wait, &state);
  state.pending = true;
  add_due(node_->now() + std::max(duration, Duration::zero()), state.id);
}

bool Cell::blocking_begin(detail::WaitState& state, std::move_only_function<void()> work) {
  state.id = take_slot(Slot::Use::wait, &state);
  state.pending = true;
  const bool taken = node_->executor.run_blocking([self = ActorRef(this), token = state.id, work = std::move(work)]() mutable {
    work();
    work = nullptr;
    auto done = std::make_unique<Delivery>();
    done->kind = Kind::work;
    done->correlation = CorrelationId(token);
    self.get()->deliver(std::move(done));
  });
  if (!taken) {
    free_slot(state.id);
    state.pending = false;
  }
  return taken;
}

void Cell::wait_forget(detail::WaitState& state) noexcept { free_slot(state.id); }

TimerId Cell::after(Duration duration, std::move_only_function<void(Context&)> call) {
  const auto token = take_slot(Slot::Use::call, nullptr);
  slots_[index_of(token)].call = std::make_unique<std::move_only_function<void(Context&)>>(std::move(call));
  add_due(node_->now() + std::max(duration, Duration::zero()), token);
  return token;
}

void Cell::cancel(TimerId timer) {
  const auto* slot = slot_of(timer);
  if (slot != nullptr && slot->use == Slot::Use::call) free_slot(timer);
}

}  // namespace falaj
