#include "runtime/net/links.hpp"

#include <algorithm>
#include <charconv>

#include "runtime/base/format.hpp"
#include "runtime/net/shard.hpp"

namespace falaj::net {

std::string_view to_string(Lane lane) noexcept {
  switch (lane) {
    case Lane::CONTROL:
      return "control";
    case Lane::NORMAL:
      return "normal";
    case Lane::BULK:
      return "bulk";
  }
  return "unknown";
}

Result<PeerAddress> parse_peer_address(std::string_view name, std::string_view host_port) {
  const auto bad = [&] { return invalid(format("'{}' is no address: want host:port, for IPv6 [host]:port", host_port.substr(0, 200))); };
  const auto colon = host_port.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return bad();
  auto host = host_port.substr(0, colon);
  const auto digits = host_port.substr(colon + 1);
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad();
  }
  std::uint16_t port = 0;
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (host.empty() || code != std::errc{} || end != digits.data() + digits.size() || port == 0) return bad();
  return PeerAddress{std::string(name), std::string(host), port};
}

LinkMetrics::LinkMetrics(metrics::Registry& r)
    : registry(r),
      bytes_in(r.counter("falaj_link_bytes_total", "Bytes over links, decrypted.", {{"direction", "in"}})),
      bytes_out(r.counter("falaj_link_bytes_total", "Bytes over links, decrypted.", {{"direction", "out"}})),
      writes(r.counter("falaj_link_writes_total", "System calls that wrote to links.")),
      handshakes(r.counter("falaj_link_handshakes_total", "TLS handshakes of links that succeeded.", {{"resumed", "no"}})),
      resumptions(r.counter("falaj_link_handshakes_total", "TLS handshakes of links that succeeded.", {{"resumed", "yes"}})),
      rtt(r.histogram("falaj_link_rtt_seconds", "Round trip of a heartbeat.")),
      peers(r.gauge("falaj_link_peers", "Peers that are up.")),
      peer_downs(r.counter("falaj_link_peer_downs_total", "Peers that went down.")) {
  for (std::size_t i = 0; i < kLanes; ++i) {
    const std::string lane(to_string(static_cast<Lane>(i)));
    messages_in[i] = &r.counter("falaj_link_messages_total", "Messages over links.", {{"direction", "in"}, {"lane", lane}});
    messages_out[i] = &r.counter("falaj_link_messages_total", "Messages over links.", {{"direction", "out"}, {"lane", lane}});
    window_full[i] = &r.counter("falaj_link_window_full_total", "Sends refused because the lane's window was full.", {{"lane", lane}});
  }
}

class Links::State {
 public:
  State(LinkOptions options, const Clock& clock, metrics::Registry& registry, LinkEvents& events)
      : common(std::move(options), clock, registry, events) {}
  LinkCommon common;
};

namespace {

Status check_identity(const LinkOptions& options, const Identity& identity) {
  FALAJ_ASSIGN(const auto own, parse_certificate(identity.certificate_pem));
  if (own.principal.cluster() != options.cluster)
    return invalid(format("certificate of '{}' does not belong to cluster '{}'", own.principal.uri(), options.cluster));
  const auto kind = own.principal.kind();
  const bool several = kind == PrincipalKind::person || kind == PrincipalKind::service;
  const auto name = options.name.substr(0, several ? options.name.find('#') : std::string::npos);
  if (name != own.principal.link_name())
    return invalid(format("certificate of '{}' cannot be used by '{}'", own.principal.uri(), options.name));
  return {};
}

}  // namespace

Links::Links(std::unique_ptr<State> state) : state_(std::move(state)) {}
Links::~Links() { stop(); }

Result<std::unique_ptr<Links>> Links::create(LinkOptions options, const Clock& clock, metrics::Registry& registry, LinkEvents& events) {
  FALAJ_TRY(check_identity(options, options.identity));
  if (options.incarnation.value() == 0) return invalid("links: incarnation 0 means nobody");
  FALAJ_ASSIGN(auto context, tls::make_context(options.identity, tls::PeerCertificate::required));
  auto state = std::make_unique<State>(std::move(options), clock, registry, events);
  auto& common = state->common;
  FALAJ_TRY(common.revocations.reload_if_changed());
  common.context.set(std::move(context));
  common.advertise.set(common.options.advertise);
  for (unsigned i = 0; i < std::max(1U, common.options.io_threads); ++i) common.shards.push_back(std::make_unique<Shard>(common, i));
  for (const auto& shard : common.shards) shard->start();
  return std::unique_ptr<Links>(new Links(std::move(state)));
}

Result<std::uint16_t> Links::listen(const std::string& host, std::uint16_t port) {
  FALAJ_ASSIGN(const auto bound, state_->common.shards.front()->listen(host, port));
  const bool everywhere = host == "0.0.0.0" || host == "::";
  if (state_->common.advertise.get().empty() && !everywhere) {
    state_->common.advertise.set(host.find(':') == std::string::npos ? format("{}:{}", host, bound) : format("[{}]:{}", host, bound));
  }
  return bound;
}

void Links::connect(const PeerAddress& peer) { state_->common.shard_of(peer.name).post_want(peer); }
void Links::forget(std::string_view name) { state_->common.shard_of(name).post_forget(std::string(name)); }

void Links::disconnect(NodeId peer, const Error& reason) {
  const auto session = state_->common.routes.find(peer);
  if (session) state_->common.shard_of(session->info.name).post_disconnect(session->info.name, reason);
}

Status Links::send(NodeId peer, Lane lane, ByteView envelope, const Message& body) {
  if (envelope.size() > limits::kEnvelopeBytesMax || envelope.size() < 16 || envelope.size() % 8 != 0) {
    return invalid(
        format("an envelope of {} bytes: one framed message of at most {} is needed", envelope.size(), limits::kEnvelopeBytesMax));
  }
  if (!body || body.bytes().size() > limits::kMessageBytesMax) {
    return invalid(
        format("a body of {} bytes: needs one, of at most {}; larger data goes in chunks", body.bytes().size(), limits::kMessageBytesMax));
  }
  const auto session = state_->common.routes.find(peer);
  if (!session) return error(ErrorCode::unreachable, format("node {:x} is not connected", peer.value()));
  FALAJ_TRY(session->lanes[static_cast<std::size_t>(lane)]->send(envelope, body));
  // One that comes to rest just now is woken by the look of the next second.
  if (session->resting.load(std::memory_order_relaxed)) state_->common.shard_of(session->info.name).post_wake(session);
  return {};
}

bool Links::connected(NodeId peer) const { return state_->common.routes.find(peer) != nullptr; }

std::vector<LinkStatus> Links::status() const {
  std::vector<LinkStatus> all;
  for (const auto& session : state_->common.routes.all()) {
    LinkStatus one;
    one.peer = session->info;
    one.rtt_p50_us = session->rtt.quantile_seconds(0.5) * 1e6;
    one.phi = session->phi.load(std::memory_order_relaxed);
    one.resting = session->resting.load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < kLanes; ++i) one.lanes[i] = session->lanes[i]->status();
    all.push_back(std::move(one));
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.peer.name < b.peer.name; });
  return all;
}

Status Links::reload_identity(const Identity& identity) {
  FALAJ_TRY(check_identity(state_->common.options, identity));
  FALAJ_ASSIGN(auto context, tls::make_context(identity, tls::PeerCertificate::required));
  state_->common.context.set(std::move(context));
  return {};
}

void Links::stop() {
  for (const auto& shard : state_->common.shards) shard->stop();
}

}  // namespace falaj::net
