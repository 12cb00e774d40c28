// A person with every right, at a machine of its own that never fails: how a workload speaks to the cluster. Each question ends exactly
// once, by its deadline; anything else is a violation.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "simulations/cluster.hpp"
#include "simulations/verdict.hpp"

namespace falaj::simulations {

class Client {
 public:
  Client(Cluster& cluster, Verdict& verdict);  // before the world runs
  ~Client() { *alive_ = false; }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  struct Question {
    std::string machine;
    std::string actor;
    std::string purpose;
    Duration timeout = std::chrono::seconds(5);
  };
  using Done = std::function<void(const Result<Message>&)>;
  void ask(const Question& to, Message message, Done done);
  // With the reply opened; a reply of another type is a violation.
  template <class T, class F>
  void ask_for(const Question& to, Message message, F done) {
    ask(to, std::move(message), [this, done = std::move(done), actor = to.actor](const Result<Message>& answer) {
      if (!answer.has_value()) return done(Result<View<T>>(answer.error()));
      auto view = answer->open<T>();
      if (!view.has_value()) verdict_.fail(actor + " answered something else: " + view.error().message);
      done(std::move(view));
    });
  }
  [[nodiscard]] std::uint64_t asked() const { return asked_; }
  [[nodiscard]] std::uint64_t answered() const { return answered_; }

 private:
  Cluster& cluster_;
  Verdict& verdict_;
  std::uint64_t asked_ = 0, answered_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // the world may end questions after this has gone
};

}  // namespace falaj::simulations
