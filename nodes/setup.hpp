// Making a cluster and its nodes on disk: `falaj init`, the nodes of `falaj up`, and what `falaj join` writes.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "nodes/layout.hpp"
#include "runtime/base/clock.hpp"

namespace falaj::nodes {

struct NodePlan {
  std::string name;
  std::vector<messages::Role> roles;
  std::string listen = "127.0.0.1:0";
  std::string http;
  std::string https;
  std::string control_node = "control";
  std::string control_address;
  std::string residency;
};

// The authority, the first person (`admin`), rights.toml. `conflict`: the directory holds a cluster, or is not empty.
Status init_cluster(const ClusterDir& dir, const std::string& cluster, const Clock& clock);
// Certificate, keys and config.toml of one node of this machine.
Status add_node(const ClusterDir& dir, const NodePlan& plan, const Clock& clock);
// A certificate for a person or a service: D/principals/<name>.{crt,key}. `who`: "person/alice", "service/billing". "node/n1": a new one
// for that node, in its own directory.
Status add_principal(const ClusterDir& dir, std::string_view who, const Clock& clock);
// A bearer token for HTTP that stands for a person or a service: known from now on to each gateway whose directory lies here (`dir` is a
// cluster's or one node's). The token itself is only in what this returns. No `ttl`: it does not expire.
Result<std::string> add_bearer_token(const fs::path& dir, std::string_view who, std::optional<Duration> ttl, const Clock& clock);
// What add_node writes besides the certificate; for a node whose certificate came from elsewhere.
Status write_node_files(const NodeDir& dir, const std::string& cluster, const NodePlan& plan, const net::Credentials& credentials,
                        std::string_view authority_pem, std::string_view rights);

// Free ports on 127.0.0.1, all different.
Result<std::vector<std::uint16_t>> free_ports(std::size_t count);

}  // namespace falaj::nodes
