#include "nodes/actor_load.hpp"

#include <algorithm>
#include <condition_variable>
#include <mutex>

namespace falaj::nodes {
namespace {

class Load {
 public:
  Load(Client& client, const ActorLoadPlan& plan) : client_(client), plan_(plan), every_(std::max<std::uint64_t>(plan.requests / 100, 1)) {}

  LoadReport run() {
    const auto begin = client_.clock().now();
    for (unsigned i = 0; i < plan_.under_way && i < plan_.requests; ++i) next();
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [this] { return done_ == plan_.requests; });
    report_.seconds = static_cast<double>((client_.clock().now() - begin).count()) * 1e-9;
    std::ranges::sort(report_.latency_us);
    return std::move(report_);
  }

 private:
  void next() {
    std::uint64_t mine = 0;
    {
      const std::scoped_lock lock(mutex_);
      if (sent_ == plan_.requests) return;
      mine = sent_++;
    }
    const auto begin = client_.clock().now();
    client_.ask_async(plan_.actor, plan_.messages[mine % plan_.messages.size()], plan_.timeout,
                      [this, begin](const Result<Message>& answer) { answered(begin, answer); });
  }

  void answered(Instant begin, const Result<Message>& answer) {
    std::uint64_t count = 0;
    {
      const std::scoped_lock lock(mutex_);
      if (answer) {
        ++report_.answered;
        report_.latency_us.push_back(static_cast<double>((client_.clock().now() - begin).count()) * 1e-3);
      } else {
        ++report_.failed;
        if (report_.first_failure.empty()) report_.first_failure = answer.error().message;
      }
      count = report_.answered + report_.failed;
    }
    if (plan_.progress && count % every_ == 0) plan_.progress(count);
    next();
    // Last: when the count is full, run() returns and this object is gone.
    const std::scoped_lock lock(mutex_);
    if (++done_ == plan_.requests) finished_.notify_one();
  }

  Client& client_;
  const ActorLoadPlan& plan_;
  const std::uint64_t every_;
  std::mutex mutex_;
  std::condition_variable finished_;
  std::uint64_t sent_ = 0;
  std::uint64_t done_ = 0;
  LoadReport report_;
};

}  // namespace

LoadReport run_actor_load(Client& client, const ActorLoadPlan& plan) { return Load(client, plan).run(); }

}  // namespace falaj::nodes
