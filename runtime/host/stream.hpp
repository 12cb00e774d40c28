// Streams: bulk data from one actor to another, no faster than the other takes it.
//
//   // The sender, in a coroutine. `to` is any actor of any node that answers PutFile with a stream.
//   auto opening = open_stream(ctx, to, Message::build<PutFile>(...));
//   auto out = co_await std::move(opening);
//   if (!out) ...                                      // refused
//   for (...) {
//     auto writing = out->write(std::move(piece));     // waits while the credits are used up
//     if (const auto sent = co_await std::move(writing); !sent) ...
//   }
//   auto closing = out->close();
//   auto answer = co_await std::move(closing);         // what the receiver made of it
//
//   // The receiver: a handler of the opening message, of whatever type and verb.
//   Task<> put(Context& ctx, Msg<PutFile> m) {
//     StreamIn in(ctx, m);                             // answers the opening
//     for (;;) {
//       auto next = in.next();
//       auto piece = co_await std::move(next);         // gives credit for it
//       if (!piece) co_return;                         // it has ended, and this is why
//       if (!piece->has_value()) break;                // closed: that was all
//       use((*piece)->bytes());
//     }
//     in.finish(Message::build<Empty>());              // answers close()
//   }
//
// It is asks all the way down (messages/stream.capnp): a chunk is an ask on the bulk lane, its reply is the credit, and one ask stays open
// whose answer is the end. Chunks are numbered: they arrive once and in order, or the stream ends. At most as many chunks and bytes are on
// their way, or wait to be taken, as the smaller of both sides' StreamOptions says.
//
// A stream ends once. What the other side then gets, from each call from then on:
//   m.refuse(e) in place of StreamIn        open_stream: e
//   in.cancel(e), out.abort(e)              e
//   StreamIn or StreamOut is destroyed, or its actor ends, before finish() or close()
//                                           gone
//   the node or the link is lost            unreachable, at both ends
//   nothing is heard for `silence`          deadline, at both ends
//   a chunk twice, or without a credit      corrupt or invalid, at both ends
//
// Ways to get hurt:
//  - A stream has one writer and one reader: a second coroutine that waits on it is refused with `conflict`.
//  - Each open stream may hold StreamOptions::bytes at the receiver: an actor that accepts streams counts them, and refuses the opening.
//  - An answer that is lost on its way leaves open whether the receiver was done: make what finish() reports safe to do again.
#pragma once
#include <memory>
#include <optional>

#include "messages/stream.capnp.h"
#include "runtime/base/limits.hpp"
#include "runtime/host/actor.hpp"

namespace falaj {

constexpr std::size_t kStreamItems = 16;
constexpr std::size_t kStreamBytes = 8 * limits::kChunkBytes;
static_assert(kStreamItems <= limits::kMailboxBulk && kStreamBytes <= limits::kMailboxBulkBytes);  // what has a credit has room
static_assert(4 * kStreamBytes <= limits::kSendWindowBytes);  // a few streams to one peer do not fill its link

struct StreamOptions {
  std::size_t items = kStreamItems;             // chunks without a credit at most
  std::size_t bytes = kStreamBytes;             // their content at most; a larger chunk is refused
  Duration silence = std::chrono::seconds(30);  // without a sign of the other side, while one is waited for
  Duration timeout = std::chrono::hours(1);     // of the whole stream
  ScopeRef scope;                               // of the opening: whoever may open a stream may write to it
  TraceContext trace;                           // of the sender's messages
};

// The sender's end. Destroyed before close() has answered, it ends the stream.
class StreamOut {
 public:
  StreamOut(StreamOut&&) noexcept = default;
  StreamOut& operator=(StreamOut&&) = delete;
  ~StreamOut();

  // Done when it is on its way; an error is the end of the stream, except `invalid` for a chunk larger than the window.
  [[nodiscard]] Task<Status> write(Bytes chunk);
  [[nodiscard]] Task<Result<Message>> close();
  void abort(const Error& why);
  // Without a credit yet.
  [[nodiscard]] std::size_t items_in_flight() const;
  [[nodiscard]] std::size_t bytes_in_flight() const;

 private:
  struct State;
  friend Task<Result<StreamOut>> open_stream(Context& ctx, ActorRef to, Message opening, StreamOptions options);
  explicit StreamOut(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

[[nodiscard]] Task<Result<StreamOut>> open_stream(Context& ctx, ActorRef to, Message opening, StreamOptions options = {});

class StreamPiece {
 public:
  explicit StreamPiece(View<messages::StreamChunk> chunk) : chunk_(std::move(chunk)) {}
  [[nodiscard]] ByteView bytes() const { return falaj::bytes(chunk_->getContent()); }  // as long as the piece lives

 private:
  View<messages::StreamChunk> chunk_;
};

// The receiver's end. Destroyed before finish(), it ends the stream.
class StreamIn {
 public:
  template <class T>
  StreamIn(Context& ctx, Msg<T>& opening, const StreamOptions& options = {}) : StreamIn(ctx, opening.from(), options) {
    opening.reply(opened());
  }
  StreamIn(const StreamIn&) = delete;
  StreamIn& operator=(const StreamIn&) = delete;
  ~StreamIn();

  // The next piece; nothing: it was closed, and all of it was here.
  [[nodiscard]] Task<Result<std::optional<StreamPiece>>> next();
  // After the last piece: the answer to close().
  void finish(const Message& answer);
  void cancel(const Error& why);

 private:
  StreamIn(Context& ctx, const ActorRef& sender, const StreamOptions& options);
  [[nodiscard]] Message opened() const;

  Context& ctx_;
  StreamOptions options_;
  ActorRef inlet_;
  std::optional<Error> end_;
  bool taking_ = false;
  bool closed_ = false;    // the sender's close has come
  bool finished_ = false;  // and was answered
};

}  // namespace falaj
