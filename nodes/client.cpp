#include "nodes/client.hpp"

#include <unistd.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>

#include "messages/control.capnp.h"
#include "nodes/linked_host.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {

struct Client::State {
  ClientOptions options;
  View<messages::ClusterFile> cluster;
  SystemClock clock;
  std::string control_node;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, bool> up;           // by link name
  std::map<std::string, Error> last_error;  // of the last dial
  ScopeRef scope;
  std::unique_ptr<LinkedHost> side;  // last: its events come here

  explicit State(ClientOptions o, View<messages::ClusterFile> c) : options(std::move(o)), cluster(std::move(c)) {}

  void note(const std::string& name, bool is_up, const Error* why) {
    {
      const std::scoped_lock lock(mutex);
      up[name] = is_up;
      if (why != nullptr) last_error[name] = *why;
    }
    changed.notify_all();
  }

  Status wait_up(const std::string& name) {
    std::unique_lock lock(mutex);
    // Who is refused for what they are need not try again; a node that is away may come.
    const auto refused = [&] {
      const auto why = last_error.find(name);
      return why != last_error.end() && why->second.code == ErrorCode::denied;
    };
    changed.wait_for(lock, options.connect_timeout, [&] { return up[name] || refused(); });
    if (up[name]) return {};
    const auto why = last_error.find(name);
    if (refused()) return error(ErrorCode::denied, why->second.message);
    return error(ErrorCode::unreachable,
                 format("cannot reach node {}: {}", name, why == last_error.end() ? "no answer" : why->second.message));
  }

  void make_scope() {
    auto fresh = std::make_shared<Scope>();
    fresh->principal = options.principal;  // the peer puts what the certificate says
    fresh->tenant = options.tenant;
    fresh->purpose = options.purpose;
    fresh->idempotency_key = options.idempotency_key;
    scope = std::move(fresh);
  }

  // Empty: no node of this machine.
  Result<std::string> reach_local(std::string_view node) {
    if (node.empty() || node == control_node) return control_node;
    const std::string name(node);
    {
      const std::scoped_lock lock(mutex);
      if (up[name]) return name;
    }
    for (const auto local : cluster->getNodes()) {
      if (text(local.getName()) != node) continue;
      FALAJ_ASSIGN(const auto peer, net::parse_peer_address(name, text(local.getListen())));
      side->links().connect(peer);
      FALAJ_TRY(wait_up(name));
      return name;
    }
    return std::string();
  }
};

Client::Client(std::unique_ptr<State> state) : state_(std::move(state)) {}

Client::~Client() = default;

Result<std::unique_ptr<Client>> Client::connect(const ClientOptions& options) {
  FALAJ_ASSIGN(auto cluster, read_cluster_file(options.dir));
  std::unique_ptr<Client> client(new Client(std::make_unique<State>(options, std::move(cluster))));
  auto& s = *client->state_;
  FALAJ_ASSIGN(auto identity, net::load_identity(options.dir.principal(options.principal, ".crt"),
                                                 options.dir.principal(options.principal, ".key"), options.dir.ca() / "ca.crt"));
  FALAJ_ASSIGN(const auto certificate, net::parse_certificate(identity.certificate_pem));
  HostOptions host_options;
  host_options.node_name = format("{}#{}", certificate.principal.link_name(), getpid());
  host_options.threads = 1;
  host_options.blocking_threads = 1;
  FALAJ_ASSIGN(s.side, LinkedHost::make(std::string(text(s.cluster->getCluster())), std::move(identity), host_options, s.clock));
  auto& transport = s.side->transport();
  transport.on_up([&s](const net::PeerInfo& peer) { s.note(peer.name, true, nullptr); });
  transport.on_down([&s](const net::PeerInfo& peer, const Error& why) { s.note(peer.name, false, &why); });
  transport.on_failed_dial([&s](const net::PeerAddress& peer, const Error& why) { s.note(peer.name, false, &why); });
  s.make_scope();
  s.control_node = text(s.cluster->getControlNode());
  FALAJ_ASSIGN(const auto control, net::parse_peer_address(s.control_node, text(s.cluster->getControlAddress())));
  s.side->links().connect(control);
  FALAJ_TRY(s.wait_up(s.control_node));
  return client;
}

// A node of another machine is where control says.
Result<std::string> Client::reach(std::string_view node) {
  FALAJ_ASSIGN(auto name, state_->reach_local(node));
  if (!name.empty()) return name;
  FALAJ_ASSIGN(const auto status, ask<messages::ClusterStatus>("control/membership", Message::build<messages::GetStatus>()));
  for (const auto known : status->getView().getNodes()) {
    if (text(known.getName()) != node) continue;
    if (!known.getUp()) return error(ErrorCode::unreachable, format("node '{}' is down", node));
    FALAJ_ASSIGN(const auto peer, net::parse_peer_address(node, text(known.getAddress())));
    state_->side->links().connect(peer);
    FALAJ_TRY(state_->wait_up(peer.name));
    return peer.name;
  }
  return error(ErrorCode::not_found, format("no node '{}' in the cluster", node));
}

Result<Message> Client::ask_any(std::string_view actor, const Message& message, Duration timeout, std::string_view node) {
  FALAJ_ASSIGN(const auto name, reach(node));
  struct Waiting {
    std::mutex mutex;
    std::condition_variable done;
    std::optional<Result<Message>> result;
  };
  const auto waiting = std::make_shared<Waiting>();
  SendOptions options;
  options.timeout = timeout;
  options.scope = state_->scope;
  state_->side->host().ask(state_->side->host().at(ActorAddress{node_id(name), {}, {}, std::string(actor)}), message, options,
                           [waiting](Result<Message> result) {
                             {
                               const std::scoped_lock lock(waiting->mutex);
                               waiting->result.emplace(std::move(result));
                             }
                             waiting->done.notify_one();
                           });
  std::unique_lock lock(waiting->mutex);
  waiting->done.wait(lock, [&] { return waiting->result.has_value(); });
  return std::move(*waiting->result);
}

void Client::ask_async(std::string_view actor, const Message& message, Duration timeout,
                       std::move_only_function<void(Result<Message>)> done) {
  SendOptions options;
  options.timeout = timeout;
  options.scope = state_->scope;
  state_->side->host().ask(state_->side->host().at(ActorAddress{node_id(state_->control_node), {}, {}, std::string(actor)}), message,
                           options, std::move(done));
}

void Client::set_purpose(std::string purpose) {
  state_->options.purpose = std::move(purpose);
  state_->make_scope();
}

void Client::set_idempotency_key(std::string key) {
  state_->options.idempotency_key = std::move(key);
  state_->make_scope();
}

messages::ClusterFile::Reader Client::cluster() const { return *state_->cluster; }
const Clock& Client::clock() const { return state_->clock; }

void Client::pause(Duration duration) {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait_for(lock, duration, [] { return false; });
}

}  // namespace falaj::nodes
