// Actors and helpers that the host's tests share.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "messages/envelope.capnp.h"
#include "runtime/base/clock.hpp"
#include "runtime/host/actor.hpp"
#include "runtime/host/host.hpp"
#include "tests/messages/host_sample.capnp.h"

namespace falaj::test {

using namespace std::chrono_literals;
using messages::Empty;
using sample::Add;
using sample::Do;
using sample::GetTotal;
using sample::Large;
using sample::Total;

inline Message do_this(std::string_view what, std::int64_t number = 0) {
  return Message::build<Do>([&](Do::Builder b) {
    b.setWhat(std::string(what));
    b.setNumber(number);
  });
}
inline Message total(std::int64_t value, std::uint64_t sequence = 0) {
  return Message::build<Total>([&](Total::Builder b) {
    b.setValue(value);
    b.setSequence(sequence);
  });
}
inline Message add(std::int64_t by, std::uint64_t sequence = 0) {
  return Message::build<Add>([&](Add::Builder b) {
    b.setBy(by);
    b.setSequence(sequence);
  });
}

// A log that any thread may write and wait upon.
class Journal {
 public:
  void write(std::string line) {
    {
      const std::scoped_lock lock(mutex_);
      lines_.push_back(std::move(line));
    }
    changed_.notify_all();
  }
  [[nodiscard]] std::vector<std::string> lines() const {
    const std::scoped_lock lock(mutex_);
    return lines_;
  }
  [[nodiscard]] std::size_t count(std::string_view line) const {
    const std::scoped_lock lock(mutex_);
    return static_cast<std::size_t>(std::count(lines_.begin(), lines_.end(), line));
  }
  // With a deadline, so that a test that waits in vain ends.
  bool wait_for(std::string_view line, std::size_t times = 1) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 10s, [&] { return static_cast<std::size_t>(std::count(lines_.begin(), lines_.end(), line)) >= times; });
  }
  void clear() {
    const std::scoped_lock lock(mutex_);
    lines_.clear();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<std::string> lines_;
};

class Gate {
 public:
  void open() {
    {
      const std::scoped_lock lock(mutex_);
      open_ = true;
    }
    changed_.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 10s, [this] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

// The answer to an ask from outside, on real threads.
class Answer {
 public:
  void set(Result<Message> result) {
    {
      const std::scoped_lock lock(mutex_);
      EXPECT_FALSE(result_.has_value()) << "answered twice";
      result_.emplace(std::move(result));
    }
    changed_.notify_all();
  }
  Result<Message> get() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, 10s, [this] { return result_.has_value(); })) return failed("the test waited 10 s in vain");
    return *result_;
  }
  [[nodiscard]] bool ready() const {
    const std::scoped_lock lock(mutex_);
    return result_.has_value();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Result<Message>> result_;
};

inline std::shared_ptr<Answer> ask_later(Host& host, const ActorRef& to, Message message, const SendOptions& options = {}) {
  auto answer = std::make_shared<Answer>();
  host.ask(to, std::move(message), options, [answer](Result<Message> result) { answer->set(std::move(result)); });
  return answer;
}
inline Result<Message> ask_now(Host& host, const ActorRef& to, Message message, const SendOptions& options = {}) {
  return ask_later(host, to, std::move(message), options)->get();
}
inline std::int64_t value_of(const Result<Message>& result) {
  if (!result.has_value()) {
    ADD_FAILURE() << to_string(result.error());
    return -1;
  }
  auto view = result->open<Total>();
  if (!view.has_value()) {
    ADD_FAILURE() << to_string(view.error());
    return -1;
  }
  return (*view)->getValue();
}
inline ErrorCode code_of(const Result<Message>& result) {
  if (!result.has_value()) return result.error().code;
  ADD_FAILURE() << "answered where a refusal was expected";
  return ErrorCode::failed;
}

// A node with a real clock.
struct Real {
  SystemClock clock;
  metrics::Registry metrics;
  std::unique_ptr<Host> host;
  explicit Real(std::string name = "test", std::size_t threads = 2, Authorizer* authorizer = nullptr) {
    HostOptions options;
    options.node_name = std::move(name);
    options.threads = threads;
    options.clock = &clock;
    options.metrics = &metrics;
    options.authorizer = authorizer;
    host = make_caf_host(options);
  }
};

template <class A, class... Args>
ChildSpec child(std::string id, Args... args) {
  ChildSpec spec;
  spec.id = id;
  spec.name = id;
  spec.make = [args...] { return std::make_unique<A>(args...); };
  return spec;
}

// Frames and objects that are alive: a test that ends with more than it began has a leak.
struct Counted {
  static inline std::atomic<int> alive{0};
  Counted() { ++alive; }
  Counted(const Counted&) { ++alive; }
  Counted& operator=(const Counted&) = default;
  ~Counted() { --alive; }
};

// Adds up; answers a GetTotal.
class Counter : public ActorOf<Counter> {
 public:
  static constexpr std::string_view kType = "test/counter";
  static void handlers(Handlers<Counter>& on) {
    on.message<Add>(&Counter::add);
    on.message<GetTotal>(&Counter::get);
  }
  void add(Context&, Msg<Add> m) {
    sum_ += m->getBy();
    if (m.wants_reply()) m.reply(total(sum_, m->getSequence()));
  }
  void get(Context&, Msg<GetTotal> m) { m.reply(total(sum_)); }

 private:
  std::int64_t sum_ = 0;
};

}  // namespace falaj::test
