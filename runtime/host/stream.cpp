#include "runtime/host/stream.hpp"

#include <algorithm>
#include <deque>
#include <map>

#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/retry.hpp"

namespace falaj {

namespace {

using messages::AbortStream;
using messages::AwaitStream;
using messages::DropStream;
using messages::FinishStream;
using messages::StreamAnswer;
using messages::StreamChunk;
using messages::StreamCredit;
using messages::StreamOpened;
using messages::TakeChunk;

constexpr std::size_t kChunkMax = limits::kMessageBytesMax - limits::kEnvelopeBytesMax;

RetryDelay retry_delay() { return {std::chrono::milliseconds(1), std::chrono::milliseconds(100)}; }

template <class T>
Message with_reason(const Error& why) {
  return Message::build<T>(
      [&](typename T::Builder b) {
        auto reason = b.initReason();
        reason.setCode(static_cast<messages::ErrorCode>(why.code));
        reason.setMessage(why.message);
      },
      why.message.size() / 8 + 8);
}

Error reason_of(messages::ErrorInfo::Reader reason) { return refusal_error(Message::copy_of<messages::ErrorInfo>(reason)); }

Error silent(std::string_view who, Duration silence) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(silence).count();
  return error(ErrorCode::deadline, format("nothing was heard of the stream's {} for {} ms", who, ms));
}

// ---- the inlet ---------------------------------------------------------------------------------------------------------------------

// Takes in what the sender sends, in whatever order it comes, and hands it to its parent, the receiver, one by one. It lives as long as
// the receiver's StreamIn, or until the sender has the answer.
class Inlet final : public ActorOf<Inlet> {
 public:
  static constexpr std::string_view kType = "host/stream";
  static void handlers(Handlers<Inlet>& on) {
    on.message<AwaitStream>(&Inlet::await);
    on.message<StreamChunk>(&Inlet::chunk);
    on.message<AbortStream>(&Inlet::abort);
    on.message<TakeChunk>(&Inlet::take);
    on.message<FinishStream>(&Inlet::finish);
    on.message<DropStream>(&Inlet::drop);
  }
  Inlet(ActorRef receiver, ActorRef sender, StreamOptions options)
      : receiver_(std::move(receiver)), sender_(std::move(sender)), from_(sender_.address()), options_(std::move(options)) {}
  ~Inlet() override { end(error(ErrorCode::gone, "the stream's receiver has ended")); }

  void on_start(Context& ctx) override { ctx.watch(sender_); }

  void on_down(Context& ctx, const Down& down) override {
    if (answer_) return ctx.stop();  // nobody is left to have it
    const auto code = down.reason.code == ErrorCode::unreachable ? ErrorCode::unreachable : ErrorCode::gone;
    end(error(code, "the stream's sender has ended: " + down.reason.message));
  }

 private:
  template <class T>
  bool is_senders(Msg<T>& m) {
    if (m.from().address() == from_) return true;
    m.refuse(error(ErrorCode::denied, "this stream was opened by another actor"));
    return false;
  }
  template <class T>
  bool is_receivers(Msg<T>& m) {
    if (m.from() == receiver_) return true;
    m.refuse(error(ErrorCode::denied, "only its receiver takes from a stream"));
    return false;
  }

  // ---- by the sender ----
  void await(Context& ctx, Msg<AwaitStream> m) {
    if (!is_senders(m)) return;
    if (awaiting_) return m.refuse(error(ErrorCode::conflict, "the end of this stream is awaited already"));
    if (end_) return m.refuse(*end_);
    awaiting_.emplace(std::move(m));
    answer(ctx);
  }

  void chunk(Context& ctx, Msg<StreamChunk> m) {
    if (!is_senders(m)) return;
    if (end_) return m.refuse(*end_);
    const auto number = m->getSequence();
    const auto size = m->getContent().size();
    if (number < taken_ || held_.contains(number) || number > last_) {
      return break_off(m, error(ErrorCode::corrupt, format("chunk {} of a stream came twice, or after its end", number)));
    }
    if (number - taken_ >= options_.items || size > options_.bytes - held_bytes_) {
      return break_off(m, invalid(format("chunk {} of a stream came without a credit for it", number)));
    }
    if (m->getLast()) {
      if (!held_.empty() && held_.rbegin()->first > number)
        return break_off(m, error(ErrorCode::corrupt, format("a stream ended with chunk {}, but went on", number)));
      last_ = number;
    }
    heard_ = ctx.now();
    held_bytes_ += size;
    held_.emplace(number, std::move(m));
    serve(ctx);
  }

  void break_off(Msg<StreamChunk>& m, const Error& why) {
    m.refuse(why);
    end(why);
  }

  void abort(Context&, Msg<AbortStream> m) {
    if (is_senders(m)) end(reason_of(m->getReason()));
  }

  // ---- by the receiver ----
  void take(Context& ctx, Msg<TakeChunk> m) {
    if (!is_receivers(m)) return;
    if (end_) return m.refuse(*end_);
    taker_.emplace(std::move(m));
    heard_ = ctx.now();
    serve(ctx);
  }

  void serve(Context& ctx) {
    if (!taker_) return;
    const auto next = held_.find(taken_);
    if (next == held_.end()) return listen(ctx);
    auto m = std::move(next->second);
    held_.erase(next);
    held_bytes_ -= m->getContent().size();
    ++taken_;
    taker_->reply(m.message());
    taker_.reset();
    m.reply(Message::build<StreamCredit>([this](StreamCredit::Builder b) { b.setTaken(taken_); }, 4));
  }

  // While the receiver waits, the sender must show itself.
  void listen(Context& ctx) {
    if (listening_) return;
    listening_ = true;
    ctx.after(heard_ + options_.silence - ctx.now(), [this](Context& later) {
      listening_ = false;
      if (!taker_ || end_) return;
      if (later.now() - heard_ < options_.silence) return listen(later);
      end(silent("sender", options_.silence));
    });
  }

  void finish(Context& ctx, Msg<FinishStream> m) {
    if (!is_receivers(m) || end_) return;
    answer_ = Message::copy_of<StreamAnswer>(m->getAnswer());
    answer(ctx);
  }

  void answer(Context& ctx) {
    if (!answer_ || !awaiting_) return;
    awaiting_->reply(*answer_);
    ctx.stop();
  }

  void drop(Context& ctx, Msg<DropStream> m) {
    if (!is_receivers(m)) return;
    end(reason_of(m->getReason()));
    ctx.stop();
  }

  // Everybody who waits learns why.
  void end(const Error& why) {
    if (end_) return;
    end_ = why;
    for (auto& [number, m] : held_) m.refuse(why);
    held_.clear();
    if (taker_) taker_->refuse(why);
    taker_.reset();
    if (awaiting_) awaiting_->refuse(why);
  }

  const ActorRef receiver_;
  const ActorRef sender_;
  const ActorAddress from_;
  const StreamOptions options_;
  std::map<std::uint64_t, Msg<StreamChunk>> held_;
  std::size_t held_bytes_ = 0;
  std::uint64_t taken_ = 0;  // chunks that the receiver has: the number of the next
  std::uint64_t last_ = ~std::uint64_t{0};
  Instant heard_{};
  bool listening_ = false;
  std::optional<Msg<TakeChunk>> taker_;
  std::optional<Msg<AwaitStream>> awaiting_;
  std::optional<Message> answer_;
  std::optional<Error> end_;
};

}  // namespace

// ---- the receiver's end ------------------------------------------------------------------------------------------------------------

StreamIn::StreamIn(Context& ctx, const ActorRef& sender, const StreamOptions& options) : ctx_(ctx), options_(options) {
  ChildSpec spec;
  spec.id = format("stream/{:016x}", ctx.random().next());
  spec.restart = Restart::temporary;
  spec.mailbox.bulk = options_.items;
  spec.make = [receiver = ctx.self(), sender, options] { return std::make_unique<Inlet>(receiver, sender, options); };
  inlet_ = ctx.spawn(std::move(spec));
}

StreamIn::~StreamIn() {
  if (!finished_) cancel(error(ErrorCode::gone, "the stream's receiver has left it before its end"));
}

Message StreamIn::opened() const {
  return Message::build<StreamOpened>([this](StreamOpened::Builder b) {
    const auto where = inlet_.address();
    auto inlet = b.initInlet();
    inlet.setNode(where.node.value());
    inlet.setIncarnation(where.incarnation.value());
    inlet.setActor(where.actor.value());
    b.setItems(static_cast<std::uint32_t>(options_.items));
    b.setBytes(options_.bytes);
  });
}

Task<Result<std::optional<StreamPiece>>> StreamIn::next() {
  if (end_) co_return *end_;
  if (closed_) co_return std::nullopt;
  if (taking_) co_return error(ErrorCode::conflict, "somebody else waits for this stream's next piece");
  taking_ = true;
  auto delay = retry_delay();
  for (;;) {
    // The inlet knows of the silence first.
    const SendOptions send{.timeout = options_.silence + limits::kAskDefault};
    auto asked = ctx_.ask<StreamChunk>(inlet_, Message::build<TakeChunk>(), send);
    auto taken = co_await asked;
    if (end_) break;  // cancelled meanwhile
    if (taken.has_value()) {
      taking_ = false;
      if (!(*taken)->getLast()) co_return StreamPiece(std::move(*taken));
      closed_ = true;
      co_return std::nullopt;
    }
    if (taken.error().code != ErrorCode::overloaded) {
      cancel(taken.error());
      break;
    }
    co_await ctx_.sleep(delay.next(ctx_.random()));
    if (end_) break;
  }
  taking_ = false;
  co_return *end_;
}

void StreamIn::finish(const Message& answer) {
  if (!closed_ || finished_ || end_) return;
  finished_ = true;
  const auto message = Message::build<FinishStream>(
      [&](FinishStream::Builder b) {
        auto to = b.initAnswer();
        to.setTypeId(answer.type().value());
        to.setBody(falaj::data(answer.bytes()));
      },
      answer.bytes().size() / 8 + 12);
  ctx_.tell(inlet_, message, {.lane = Lane::control});
}

void StreamIn::cancel(const Error& why) {
  if (end_ || finished_) return;
  ctx_.tell(inlet_, with_reason<DropStream>(why), {.lane = Lane::control});
  end_ = why;
}

// ---- the sender's end --------------------------------------------------------------------------------------------------------------

// Shared by the writer and by the asks that are open. All of it belongs to one actor.
struct StreamOut::State : std::enable_shared_from_this<State> {
  Context& ctx;
  StreamOptions options;
  ActorRef inlet;
  std::deque<Message> chunks;  // without a credit, the oldest first: sent again when refused for want of room
  std::deque<std::size_t> sizes;
  std::size_t bytes = 0;
  std::uint64_t written = 0;
  std::uint64_t taken = 0;
  Instant heard{};
  TimerId listening = 0;
  std::coroutine_handle<> writer;
  bool closing = false;
  std::optional<Result<Message>> end;  // a message: the receiver's answer

  State(Context& c, StreamOptions o) : ctx(c), options(std::move(o)) {}

  struct Wait {
    State& state;
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> caller) noexcept { state.writer = caller; }
    void await_resume() const noexcept {}
    explicit Wait(State& s) noexcept : state(s) {}
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;
    ~Wait() { state.writer = {}; }
  };

  // Last, as the writer may let go of everything.
  void wake() {
    if (const auto waiting = std::exchange(writer, {})) waiting.resume();
  }

  [[nodiscard]] bool room(std::size_t size) const { return chunks.size() < options.items && bytes + size <= options.bytes; }

  void begin(Bytes content, bool last) {
    const auto number = written++;
    if (chunks.empty()) heard = ctx.now();  // only from now on something is waited for
    chunks.push_back(Message::build<StreamChunk>(
        [&](StreamChunk::Builder b) {
          b.setSequence(number);
          b.setContent(falaj::data(content));
          b.setLast(last);
        },
        content.size() / 8 + 8));
    sizes.push_back(content.size());
    bytes += content.size();
    listen();
    ctx.start(send(shared_from_this(), number));
  }

  // Asks until the chunk is taken in, whose credit may be that of a later one.
  static Task<> send(std::shared_ptr<State> s, std::uint64_t number) {
    auto delay = retry_delay();
    while (!s->end && number >= s->taken) {
      SendOptions options{.lane = Lane::bulk, .trace = s->options.trace};
      // There is a credit in each `silence`, and this one has others before it.
      options.timeout = s->options.silence * static_cast<int>(s->options.items + 1);
      auto asked = s->ctx.ask<StreamCredit>(s->inlet, s->chunks[number - s->taken], options);
      const auto credit = co_await asked;
      if (s->end) co_return;
      if (credit.has_value()) co_return s->credited((*credit)->getTaken());
      if (credit.error().code != ErrorCode::overloaded) {
        if (number >= s->taken) s->ended_by(credit.error());
        co_return;
      }
      co_await s->ctx.sleep(delay.next(s->ctx.random()));
    }
  }

  void credited(std::uint64_t upto) {
    if (upto > written) return end_by(error(ErrorCode::corrupt, "a credit for chunks of a stream that were not sent"));
    if (upto <= taken) return;  // a later one was faster
    heard = ctx.now();
    for (; taken < upto; ++taken) {
      bytes -= sizes.front();
      sizes.pop_front();
      chunks.pop_front();
    }
    wake();
  }

  static Task<> await_end(std::shared_ptr<State> s) {
    auto delay = retry_delay();
    while (!s->end) {
      const SendOptions options{.timeout = s->options.timeout, .trace = s->options.trace};
      auto asked = s->ctx.ask<StreamAnswer>(s->inlet, Message::build<AwaitStream>(), options);
      const auto answer = co_await asked;
      if (s->end) co_return;
      if (answer.has_value()) {
        co_return s->finish(message_from_bytes(TypeId((*answer)->getTypeId()), falaj::bytes((*answer)->getBody())));
      }
      if (answer.error().code != ErrorCode::overloaded) co_return s->ended_by(answer.error());
      co_await s->ctx.sleep(delay.next(s->ctx.random()));
    }
  }

  // While something is waited for, the receiver must show itself.
  void listen() {
    if (listening != 0 || end || (chunks.empty() && !closing)) return;
    listening = ctx.after(heard + options.silence - ctx.now(), [s = shared_from_this()](Context& later) {
      s->listening = 0;
      if (later.now() - s->heard < s->options.silence) return s->listen();
      if (!s->chunks.empty() || s->closing) s->end_by(silent("receiver", s->options.silence));
    });
  }

  // By this side: the other must be told.
  void end_by(const Error& why) {
    if (end) return;
    ctx.tell(inlet, with_reason<AbortStream>(why), {.trace = options.trace});
    finish(why);
  }
  // By an ask's end. Only of a deadline the other side need not know.
  void ended_by(const Error& why) { why.code == ErrorCode::deadline ? end_by(why) : finish(why); }

  void finish(Result<Message> how) {
    if (end) return;
    end.emplace(std::move(how));
    chunks.clear();
    sizes.clear();
    bytes = 0;
    if (listening != 0) ctx.cancel(std::exchange(listening, 0));
    wake();
  }

  static Task<Status> put(std::shared_ptr<State> s, Bytes content, bool last) {
    if (content.size() > s->options.bytes)
      co_return invalid(format("a chunk of {} bytes; this stream takes {} at once", content.size(), s->options.bytes));
    if (s->writer) co_return error(ErrorCode::conflict, "somebody else writes to this stream");
    if (s->closing) co_return invalid("the stream is closed");
    while (!s->end && !s->room(content.size())) {
      Wait wait(*s);
      co_await wait;
    }
    if (s->end && !s->end->has_value()) co_return s->end->error();
    if (s->end) co_return invalid("the stream is closed");
    if (last) s->closing = true;
    s->begin(std::move(content), last);
    co_return Status{};
  }

  static Task<Result<Message>> close(std::shared_ptr<State> s) {
    auto putting = put(s, {}, true);
    if (auto sent = co_await std::move(putting); !sent.has_value()) co_return sent.error();
    while (!s->end) {
      Wait wait(*s);
      co_await wait;
    }
    co_return *s->end;
  }
};

StreamOut::~StreamOut() {
  if (!state_) return;
  state_->writer = {};  // if there is one, it goes with us
  state_->end_by(error(ErrorCode::gone, "the stream's sender has left it before its end"));
}

Task<Status> StreamOut::write(Bytes chunk) { return State::put(state_, std::move(chunk), false); }
Task<Result<Message>> StreamOut::close() { return State::close(state_); }

void StreamOut::abort(const Error& why) { state_->end_by(why); }

std::size_t StreamOut::items_in_flight() const { return state_->chunks.size(); }
std::size_t StreamOut::bytes_in_flight() const { return state_->bytes; }

Task<Result<StreamOut>> open_stream(Context& ctx, ActorRef to, Message opening, StreamOptions options) {
  auto state = std::make_shared<StreamOut::State>(ctx, std::move(options));
  const SendOptions send{.timeout = state->options.silence, .scope = state->options.scope, .trace = state->options.trace};
  auto asked = ctx.ask<StreamOpened>(to, std::move(opening), send);
  const auto opened = co_await asked;
  if (!opened.has_value()) co_return opened.error();
  const auto inlet = (*opened)->getInlet();
  state->inlet = ctx.at({NodeId(inlet.getNode()), Incarnation(inlet.getIncarnation()), ActorId(inlet.getActor()), {}});
  state->options.items = std::min<std::size_t>(state->options.items, (*opened)->getItems());
  state->options.bytes = std::min({state->options.bytes, (*opened)->getBytes(), kChunkMax});
  if (state->options.items == 0) co_return invalid("the receiver gives no credit at all");
  ctx.start(StreamOut::State::await_end(state));
  co_return StreamOut(std::move(state));
}

}  // namespace falaj
