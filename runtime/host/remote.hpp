// Actors of other nodes. A Proxy stands for one; what it is given leaves as an Envelope and a body through the Transport. What
// comes in finds its local actor, and answers find those who wait for them only if they were asked: nobody can answer unasked.
#pragma once
#include <array>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "runtime/host/node.hpp"

namespace falaj {

class Proxy;

class Remote {
 public:
  struct Peer;  // what is remembered of another node, with a lock of its own

  static constexpr std::size_t kForgetPeers = 1024;  // so many are kept without a look at which of them are gone

  explicit Remote(Node& node) : node_(node) {}
  void set_transport(Transport* transport);
  ActorRef proxy(const ActorAddress& address);
  void on_message(const Host::Peer& sender, Lane lane, const Header& header, Message body);
  void on_message(const Host::Peer& sender, Lane lane, ByteView envelope, Message body);
  void on_peer_down(NodeId peer, Incarnation incarnation, const Error& why);
  bool waits_for(NodeId node);

  // Around messages that this thread brings, mostly of one peer, which is not looked up for each then.
  void batch_begin() noexcept;
  void batch_end() noexcept;

  void close();  // at the host's end: who still waits is refused, and nothing is held any more

  // By Proxy.
  void send(Proxy& proxy, std::unique_ptr<Delivery> delivery);
  void forget(Proxy& proxy) noexcept;

 private:
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

  struct Ends {  // of a message that came in
    ActorRef to;
    ActorRef from;
  };

  std::shared_ptr<Peer> peer(NodeId node);
  void forget_programs();  // with peers_mutex_
  std::shared_ptr<Peer> sending_peer(NodeId node);
  void inbound_request(Peer& peer, const Host::Peer& sender, Lane lane, const Header& header, Message body);
  void inbound_answer(Peer& peer, const Header& header, Message body);
  static void inbound_down(Peer& peer, const Header& header, Message body);
  [[nodiscard]] std::optional<Error> misdirected(const Host::Peer& sender, const Header& header) const;
  ActorRef sender_of(const Host::Peer& sender, const Header& header);
  Ends ends_of(Peer& peer, const Host::Peer& sender, const Header& header);
  static void note_watched(Peer& peer, const Host::Peer& sender, const Delivery& delivery, const ActorRef& to);
  bool heard_of(Peer& peer, Incarnation incarnation);
  static void fail_peer(Peer& peer, Incarnation incarnation, const Error& why);
  Result<std::uint64_t> note(Peer& peer, Proxy& proxy, const Delivery& delivery, ActorId from);
  static void forget_note(Peer& peer, const Delivery& delivery, std::uint64_t wire);
  Status post(Transport& transport, const Proxy& proxy, const Delivery& delivery, const ActorAddress& from, std::uint64_t wire) const;

  Node& node_;
  std::atomic<Transport*> transport_{nullptr};
  // Locks are taken in this order: a Peer's, mutex_, peers_mutex_. The first two are recursive: letting go of a ref under them may end a
  // proxy, which then leaves the cache.
  std::recursive_mutex mutex_;
  std::unordered_map<ProxyKey, Proxy*, ProxyHash> proxies_;
  // The last ones made live on: else the sender of each message would be made, and thrown away, anew.
  std::array<ActorRef, 64> recent_;
  std::size_t next_recent_ = 0;
  std::shared_mutex peers_mutex_;
  std::map<NodeId, std::shared_ptr<Peer>> peers_;
  std::size_t forget_at_ = kForgetPeers;  // under peers_mutex_, as the next
  bool closed_ = false;
  std::atomic<std::uint64_t> next_watch_{1};
};

class Proxy final : public Target {
 public:
  Proxy(std::shared_ptr<Node> node, ActorAddress address, std::shared_ptr<Remote::Peer> peer)
      : node_(std::move(node)), address_(std::move(address)), peer_(std::move(peer)) {}
  void deliver(std::unique_ptr<Delivery> delivery) override { node_->remote().send(*this, std::move(delivery)); }
  [[nodiscard]] ActorAddress address() const override { return address_; }
  [[nodiscard]] const ActorAddress& where() const noexcept { return address_; }
  [[nodiscard]] Remote::Peer& peer() const noexcept { return *peer_; }

 private:
  void dispose() noexcept override {
    node_->remote().forget(*this);
    delete this;
  }
  std::shared_ptr<Node> node_;
  ActorAddress address_;
  std::shared_ptr<Remote::Peer> peer_;
};

}  // namespace falaj
