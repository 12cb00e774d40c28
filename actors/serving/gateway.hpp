// The HTTP door of a gateway node: Open Inference Protocol v2, predictions by entity, messages to any actor as JSON
// (POST /v1/actors/NAME/MESSAGE), metrics, joining. Not an actor: requests come on the server's IO threads, become asks, most of them to
// `serving/router`, and are answered from the host's threads.
//
// Who asks: the principal of a client certificate, of a bearer token, or, in clear on loopback only, spiffe://<cluster>/anonymous. Over
// TLS nobody is anonymous, but for joining (the join token is the right) and for the question whether the gateway lives. What the
// principal may do is decided by the host's Authorizer, from the verb of the message that the request becomes. Headers: Falaj-Tenant,
// Falaj-Purpose, Falaj-Node, Falaj-Timeout-Ms, Idempotency-Key, traceparent (answered with this request's own), X-Request-Id (echoed).
#pragma once
#include <memory>
#include <string>

#include "messages/control.capnp.h"
#include "runtime/cluster/view.hpp"
#include "runtime/host/host.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::serving {

struct GatewayOptions {
  std::string cluster;
  std::string http;   // host:port in clear, loopback only; empty: none
  std::string https;  // host:port with TLS; empty: none
  net::Identity identity;
  std::string tokens;  // path of tokens.toml (token_book.hpp); empty, or no such file: no bearer token is known
  std::string version = "0.1.0";
  Host* host = nullptr;                              // outlives the gateway
  const cluster::ClusterViewHolder* view = nullptr;  // outlives the gateway
};

class Gateway {
 public:
  static Result<std::unique_ptr<Gateway>> start(GatewayOptions options);
  ~Gateway();
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;
  void stop();                                               // no request is taken any more; those in progress are answered
  Status reload_identity(const net::Identity& identity);     // shown to new connections
  void fill_stats(messages::NodeStats::Builder into) const;  // requests by deployment
  [[nodiscard]] std::uint16_t http_port() const;             // 0: none

 private:
  struct State;
  struct Exchange;
  explicit Gateway(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace falaj::serving
