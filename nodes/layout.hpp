// Where things lie in a cluster's directory.
//
//   D/cluster.json                 what the local launcher runs now, or where the control node is that was started by hand
//   D/ca/{ca.crt,ca.key}           the authority; only on the machine that made the cluster
//   D/rights.toml                  who may do what
//   D/principals/<name>.{crt,key}  people and services
//   D/nodes/<name>/                one node: config.toml node.crt node.key ca.crt revoked.txt tokens.toml kek store/ artifacts/ audit/
//   workers/ log
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

#include "messages/config.capnp.h"
#include "messages/message.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::nodes {

namespace fs = std::filesystem;

struct NodeDir {
  fs::path root;
  [[nodiscard]] fs::path config() const { return root / "config.toml"; }
  [[nodiscard]] fs::path certificate() const { return root / "node.crt"; }
  [[nodiscard]] fs::path key() const { return root / "node.key"; }
  [[nodiscard]] fs::path authority() const { return root / "ca.crt"; }
  [[nodiscard]] fs::path revocations() const { return root / "revoked.txt"; }
  [[nodiscard]] fs::path rights() const { return root / "rights.toml"; }
  [[nodiscard]] fs::path tokens() const { return root / "tokens.toml"; }  // bearer tokens of its gateway
  [[nodiscard]] fs::path kek() const { return root / "kek"; }
  [[nodiscard]] fs::path store(std::string_view which) const { return root / "store" / which; }
  [[nodiscard]] fs::path artifacts() const { return root / "artifacts"; }
  [[nodiscard]] fs::path audit() const { return root / "audit"; }
  [[nodiscard]] fs::path workers() const { return root / "workers"; }
  [[nodiscard]] fs::path log() const { return root / "log"; }
};

struct ClusterDir {
  fs::path root;
  [[nodiscard]] fs::path file() const { return root / "cluster.json"; }
  [[nodiscard]] fs::path ca() const { return root / "ca"; }
  [[nodiscard]] fs::path rights() const { return root / "rights.toml"; }
  [[nodiscard]] fs::path principal(std::string_view name, std::string_view suffix) const {
    return root / "principals" / (std::string(name) + std::string(suffix));
  }
  [[nodiscard]] NodeDir node(std::string_view name) const { return {root / "nodes" / name}; }
  [[nodiscard]] bool exists() const { return fs::exists(ca() / "ca.crt"); }
};

// A message holding the struct, or an error that names the file.
Result<View<messages::NodeConfig>> read_config(const NodeDir& dir);
Result<View<messages::ClusterFile>> read_cluster_file(const ClusterDir& dir);
Status write_cluster_file(const ClusterDir& dir, messages::ClusterFile::Reader file);
Result<net::Identity> node_identity(const NodeDir& dir);

struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};
Result<HostPort> parse_host_port(std::string_view what, std::string_view text);

std::string role_name(messages::Role role);
Result<messages::Role> parse_role(std::string_view text);

}  // namespace falaj::nodes
