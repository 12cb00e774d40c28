#include "nodes/layout.hpp"

#include <charconv>

#include "messages/json.hpp"
#include "runtime/base/format.hpp"
#include "runtime/config.hpp"

namespace falaj::nodes {

Result<View<messages::NodeConfig>> read_config(const NodeDir& dir) {
  FALAJ_ASSIGN(const auto text, config::read_file(dir.config()));
  Status status;
  const auto message = Message::build<messages::NodeConfig>(
      [&](messages::NodeConfig::Builder b) { status = config::parse_toml<messages::NodeConfig>(text, dir.config().string(), b); });
  if (!status) return status.error();
  return message.view<messages::NodeConfig>();
}

Result<View<messages::ClusterFile>> read_cluster_file(const ClusterDir& dir) {
  if (!fs::exists(dir.file()))
    return error(ErrorCode::not_found, format("{}: no cluster runs from this directory; start one with `falaj up --dir {}`",
                                              dir.file().string(), dir.root.string()));
  FALAJ_ASSIGN(const auto text, config::read_file(dir.file()));
  Status status;
  const auto message = Message::build<messages::ClusterFile>(
      [&](messages::ClusterFile::Builder b) { status = from_json<messages::ClusterFile>(text, b); }, 256);
  if (!status) return within(dir.file().string(), status.error());
  return message.view<messages::ClusterFile>();
}

Status write_cluster_file(const ClusterDir& dir, messages::ClusterFile::Reader file) {
  return net::write_private_file(dir.file(), to_json(file, JsonStyle::pretty) + "\n");
}

Result<net::Identity> node_identity(const NodeDir& dir) {
  FALAJ_ASSIGN(auto identity, net::load_identity(dir.certificate(), dir.key(), dir.authority()));
  identity.revocations = dir.revocations();
  return identity;
}

Result<HostPort> parse_host_port(std::string_view what, std::string_view text) {
  const auto colon = text.rfind(':');
  unsigned port = 0;
  const auto* end = text.data() + text.size();
  if (colon == std::string_view::npos || colon == 0 || std::from_chars(text.data() + colon + 1, end, port).ptr != end ||
      colon + 1 == text.size() || port > 65535) {
    return invalid(format("{} '{}': must be host:port, e.g. 127.0.0.1:7400", what, text));
  }
  auto host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return HostPort{std::string(host), static_cast<std::uint16_t>(port)};
}

std::string role_name(messages::Role role) {
  const auto ordinal = static_cast<std::uint16_t>(role);
  for (const auto e : capnp::Schema::from<messages::Role>().getEnumerants()) {
    if (e.getOrdinal() == ordinal) return e.getProto().getName().cStr();
  }
  return "unknown";
}

Result<messages::Role> parse_role(std::string_view text) {
  std::string known;
  for (const auto e : capnp::Schema::from<messages::Role>().getEnumerants()) {
    const std::string_view name = e.getProto().getName().cStr();
    if (name == text) return static_cast<messages::Role>(e.getOrdinal());
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  return invalid(format("no role '{}'; there are {}", text, known));
}

}  // namespace falaj::nodes
