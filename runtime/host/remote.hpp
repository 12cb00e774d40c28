// Actors of other nodes. A Proxy stands for one; what it is given leaves as an Envelope and a body through the Transport. What
// comes in finds its local actor, and answers find those who wait for them only if they were asked: nobody can answer unasked.
#pragma once
#include <array>
#include <map>
#include <mutex>
#include <unordered_map>

#include "runtime/host/node.hpp"

namespace falaj {

class Proxy;

class Remote {
 public:
  explicit Remote(Node& node) : node_(node) {}
  void set_transport(Transport* transport);
  ActorRef proxy(const ActorAddress& address);
  void on_message(const Host::Peer& sender, Lane lane, const Message& envelope, Message body);
  void on_peer_down(NodeId peer, Incarnation incarnation, const Error& why);

  void close();  // at the host's end: who still waits is refused, and nothing is held any more

  // By Proxy.
  void send(Proxy& proxy, std::unique_ptr<Delivery> delivery);
  void forget(Proxy& proxy) noexcept;

 private:
  struct AskKey {
    std::uint64_t actor;
    std::uint64_t correlation;
    bool operator==(const AskKey&) const = default;
  };
  struct AskKeyHash {
    std::size_t operator()(const AskKey& key) const noexcept { return key.actor * 0x9E3779B97F4A7C15ULL ^ key.correlation; }
  };
  struct Waiting {
    ActorRef asker;
    Lane lane;
    Instant deadline;
    Incarnation incarnation;
  };
  struct Watch {
    ActorRef watcher;
    CorrelationId token;  // the watcher's
    ActorRef watched;     // the proxy
    Incarnation incarnation;
  };
  struct Watched {  // a local actor that the peer watches
    ActorRef actor;
    ActorRef watcher;  // a proxy
    Incarnation incarnation;
  };
  struct Peer {
    Incarnation incarnation;  // the newest that we heard of; zero: none yet
    std::unordered_map<AskKey, Waiting, AskKeyHash> asks;
    std::size_t sweep_at = 1024;
    std::map<std::uint64_t, Watch> watches;                                   // by our token on the wire
    std::map<std::pair<Target*, std::uint64_t>, std::uint64_t> watch_tokens;  // (watcher, its token) -> ours
    std::map<std::uint64_t, Watched> watched;                                 // by the peer's token
  };
  struct ProxyKey {
    NodeId node;
    Incarnation incarnation;
    ActorId actor;
    std::string name;
    bool operator==(const ProxyKey&) const = default;
  };

  struct ProxyHash {
    std::size_t operator()(const ProxyKey& key) const noexcept {
      const auto actor = key.actor.value() != 0 ? key.actor.value() : std::hash<std::string>{}(key.name);
      return (key.node.value() ^ key.incarnation.value()) * 0x9E3779B97F4A7C15ULL ^ actor;
    }
  };

  struct Parsed;
  void inbound_request(const Host::Peer& sender, Lane lane, const Parsed& parsed, Message body);
  Result<ActorRef> receiver(const Host::Peer& sender, const Parsed& parsed);
  void inbound_answer(const Host::Peer& sender, const Parsed& parsed, const Message& body);
  void note_watched(const Host::Peer& sender, const Delivery& delivery, const ActorRef& to);
  void inbound_down(const Host::Peer& sender, const Parsed& parsed, Message body);
  bool heard_of(NodeId peer, Incarnation incarnation);
  void fail_peer(NodeId peer, Incarnation incarnation, const Error& why);
  std::uint64_t note(Proxy& proxy, const Delivery& delivery);
  void forget_note(Proxy& proxy, const Delivery& delivery, std::uint64_t wire);
  [[nodiscard]] Message envelope(const Proxy& proxy, const Delivery& delivery, std::uint64_t wire) const;

  Node& node_;
  std::atomic<Transport*> transport_{nullptr};
  // Recursive: letting go of a ref under it may end a proxy, which then leaves the cache.
  std::recursive_mutex mutex_;
  std::unordered_map<ProxyKey, Proxy*, ProxyHash> proxies_;
  // The last ones made live on: else the sender of each message would be made, and thrown away, anew.
  std::array<ActorRef, 64> recent_;
  std::size_t next_recent_ = 0;
  std::map<NodeId, Peer> peers_;
  std::uint64_t next_watch_ = 1;
};

class Proxy final : public Target {
 public:
  Proxy(std::shared_ptr<Node> node, ActorAddress address) : node_(std::move(node)), address_(std::move(address)) {}
  void deliver(std::unique_ptr<Delivery> delivery) override { node_->remote().send(*this, std::move(delivery)); }
  [[nodiscard]] ActorAddress address() const override { return address_; }
  [[nodiscard]] const ActorAddress& where() const noexcept { return address_; }

 private:
  void dispose() noexcept override {
    node_->remote().forget(*this);
    delete this;
  }
  std::shared_ptr<Node> node_;
  ActorAddress address_;
};

}  // namespace falaj
