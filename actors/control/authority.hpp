// `control/authority`: the cluster's certificate authority at work. Signs certificates for worker processes of nodes, makes join tokens,
// and admits a node that shows one: once, before it expires, under the name the token names. The token's secret is never stored, only its
// digest. Every token made, used or refused is audited. Takes certificates back (key revoked/<principal>; each node keeps the list).
#pragma once
#include <memory>

#include "messages/control.capnp.h"
#include "runtime/host/actor.hpp"
#include "runtime/net/identity.hpp"
#include "storage/control_store.hpp"

namespace falaj::control {

struct AuthorityOptions {
  std::shared_ptr<const net::CertificateAuthority> authority;
  storage::ControlStore* store = nullptr;
  std::string control_node;
  std::string control_address;  // of the links, told to who joins
  std::string join_address;     // host:port of the gateway's HTTPS, put into tokens
  std::string rights;           // rights.toml, handed to who joins
  Duration node_lifetime = std::chrono::hours(24 * 90);
  Duration worker_lifetime = std::chrono::hours(24 * 7);
};

ChildSpec authority(AuthorityOptions options);

}  // namespace falaj::control
