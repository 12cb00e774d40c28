// A principal's connection to a cluster: what the CLI and the demo use. Asks are blocking here, and only here.
//
// Thread rules: ask() may be called from any thread but a host thread; ask_async()'s callback runs on a host thread and must not block.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "nodes/layout.hpp"
#include "runtime/host/host.hpp"

namespace falaj::nodes {

struct ClientOptions {
  ClusterDir dir;                   // its cluster.json says where control is
  std::string principal = "admin";  // D/principals/<principal>.{crt,key}
  std::string tenant;
  std::string purpose;
  std::string idempotency_key;  // of commands
  Duration connect_timeout = std::chrono::seconds(10);
};

class Client {
 public:
  static Result<std::unique_ptr<Client>> connect(const ClientOptions& options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // To an actor of the control node, or of `node` (its link is made when it is first needed).
  template <class Reply>
  Result<View<Reply>> ask(std::string_view actor, const Message& message, Duration timeout = std::chrono::seconds(10),
                          std::string_view node = {}) {
    auto answer = ask_any(actor, message, timeout, node);
    if (!answer.has_value()) return std::move(answer).error();
    return answer->template open<Reply>();
  }
  Result<Message> ask_any(std::string_view actor, const Message& message, Duration timeout, std::string_view node = {});
  void ask_async(std::string_view actor, const Message& message, Duration timeout, std::move_only_function<void(Result<Message>)> done);

  void set_purpose(std::string purpose);
  void set_idempotency_key(std::string key);
  [[nodiscard]] messages::ClusterFile::Reader cluster() const;
  [[nodiscard]] const Clock& clock() const;
  // Waits on the client's own timers; for progress loops.
  void pause(Duration duration);

 private:
  struct State;
  Result<std::string> reach(std::string_view node);  // its link's name, connected
  explicit Client(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace falaj::nodes
