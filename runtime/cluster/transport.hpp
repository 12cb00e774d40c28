// Joins a Host to its net::Links: the one place where actors meet connections.
//
// Thread rules: events come on the links' IO thread and are handed to the host, which queues them, or runs an idle actor's handler on
// that thread (Host::Lent); listeners are called there too and must not block.
#pragma once
#include <functional>
#include <mutex>
#include <vector>

#include "runtime/host/host.hpp"
#include "runtime/net/links.hpp"

namespace falaj::cluster {

class LinkTransport final : public Transport, public net::LinkEvents {
 public:
  explicit LinkTransport(Host& host) : host_(host) {}
  void attach(net::Links& links) { links_ = &links; }  // before the first message
  // Called after the host knows. Registered before the links start.
  void on_up(std::function<void(const net::PeerInfo&)> call) { up_.push_back(std::move(call)); }
  void on_down(std::function<void(const net::PeerInfo&, const Error&)> call) { down_.push_back(std::move(call)); }
  void on_failed_dial(std::function<void(const net::PeerAddress&, const Error&)> call) { failed_.push_back(std::move(call)); }

  Status send(NodeId to, Lane lane, ByteView envelope, const Message& body) override;

  void on_peer_up(const net::PeerInfo& peer) override;
  void on_message(const net::PeerInfo& peer, messages::Lane lane, const Header& header, Message body) override;
  bool waits_for(const net::PeerInfo& peer) override { return host_.waits_for(peer.node); }
  void on_batch_begin() override { host_.lend_begin(); }
  void on_batch_end() override { host_.lend_end(); }
  void on_peer_down(const net::PeerInfo& peer, const Error& reason) override;
  void on_dial_failed(const net::PeerAddress& peer, const Error& reason) override;

 private:
  Host& host_;
  net::Links* links_ = nullptr;
  std::vector<std::function<void(const net::PeerInfo&)>> up_;
  std::vector<std::function<void(const net::PeerInfo&, const Error&)>> down_;
  std::vector<std::function<void(const net::PeerAddress&, const Error&)>> failed_;
};

}  // namespace falaj::cluster
