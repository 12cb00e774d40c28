#include "runtime/cluster/transport.hpp"

namespace falaj::cluster {

Status LinkTransport::send(NodeId to, Lane lane, ByteView envelope, const Message& body) {
  if (links_ == nullptr) return error(ErrorCode::unreachable, "this process has no links");
  return links_->send(to, static_cast<messages::Lane>(lane), envelope, body);
}

void LinkTransport::on_peer_up(const net::PeerInfo& peer) {
  for (const auto& call : up_) call(peer);
}

void LinkTransport::on_message(const net::PeerInfo& peer, messages::Lane lane, const Header& header, Message body) {
  const auto kind = peer.principal.kind();
  const bool is_node = kind == net::PrincipalKind::node || kind == net::PrincipalKind::worker;
  host_.on_message(Host::Peer{peer.node, peer.incarnation, peer.uri, is_node}, static_cast<Lane>(lane), header, std::move(body));
}

void LinkTransport::on_peer_down(const net::PeerInfo& peer, const Error& reason) {
  host_.on_peer_down(peer.node, peer.incarnation, reason);
  for (const auto& call : down_) call(peer, reason);
}

void LinkTransport::on_dial_failed(const net::PeerAddress& peer, const Error& reason) {
  for (const auto& call : failed_) call(peer, reason);
}

}  // namespace falaj::cluster
