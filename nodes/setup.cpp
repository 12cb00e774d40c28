#include "nodes/setup.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "actors/governance/policy.hpp"
#include "actors/serving/token_book.hpp"
#include "runtime/base/format.hpp"
#include "runtime/config.hpp"
#include "storage/seal.hpp"

namespace falaj::nodes {
namespace {

constexpr auto kAuthorityLife = std::chrono::hours(24 * 3650);
constexpr auto kPrincipalLife = std::chrono::hours(24 * 365);

Status make_directory(const fs::path& path) {
  std::error_code code;
  fs::create_directories(path, code);
  if (code)
    return error(code == std::errc::no_space_on_device ? ErrorCode::no_space : ErrorCode::failed,
                 format("{}: cannot be made: {}", path.string(), code.message()));
  fs::permissions(path, fs::perms::owner_all, code);
  return {};
}

Status fill_cluster(const ClusterDir& dir, const std::string& cluster, const Clock& clock) {
  FALAJ_TRY(make_directory(dir.root));
  FALAJ_TRY(make_directory(dir.ca()));
  FALAJ_TRY(make_directory(dir.root / "principals"));
  FALAJ_TRY(make_directory(dir.root / "nodes"));
  FALAJ_ASSIGN(const auto authority, net::CertificateAuthority::create(cluster, net::Validity::from(clock.wall(), kAuthorityLife)));
  FALAJ_TRY(net::write_private_file(dir.rights(), governance::default_rights_toml()));
  FALAJ_TRY(authority.save(dir.ca()));  // last: it is what makes the directory a cluster
  return add_principal(dir, "person/admin", clock);
}

}  // namespace

Status init_cluster(const ClusterDir& dir, const std::string& cluster, const Clock& clock) {
  if (dir.exists())
    return error(ErrorCode::conflict,
                 format("{} holds a cluster already; choose another directory, or remove this one first", dir.root.string()));
  if (fs::exists(dir.root) && !fs::is_empty(dir.root))
    return error(ErrorCode::conflict, format("{} is not empty; choose a new directory", dir.root.string()));
  auto done = fill_cluster(dir, cluster, clock);
  if (done || done.error().code == ErrorCode::conflict) return done;  // a conflict: somebody else was quicker, and it is theirs
  // Half a cluster is in everybody's way. The first error is the one to tell.
  std::error_code none;
  for (const auto& made : {dir.ca(), dir.rights(), dir.root / "principals", dir.root / "nodes"}) fs::remove_all(made, none);
  return done;
}

Status add_principal(const ClusterDir& dir, std::string_view who, const Clock& clock) {
  FALAJ_ASSIGN(const auto authority, net::CertificateAuthority::load(dir.ca()));
  FALAJ_ASSIGN(const auto id, net::SpiffeId::parse(format("spiffe://{}/{}", authority.cluster(), who)));
  const bool renews = id.kind() == net::PrincipalKind::node;
  if (!renews && id.kind() != net::PrincipalKind::person && id.kind() != net::PrincipalKind::service)
    return invalid(format("'{}': give person/NAME or service/NAME, or node/NAME for a new certificate of a node", who));
  const auto node = dir.node(id.name());
  if (renews && !fs::exists(node.config()))
    return error(ErrorCode::not_found, format("'{}': no such node in {}; one that joined from elsewhere joins again with a new token", who,
                                              (dir.root / "nodes").string()));
  FALAJ_ASSIGN(const auto credentials, authority.issue(id, net::Validity::from(clock.wall(), kPrincipalLife)));
  FALAJ_TRY(net::write_private_file(renews ? node.certificate() : dir.principal(id.name(), ".crt"), credentials.certificate_pem));
  return net::write_private_file(renews ? node.key() : dir.principal(id.name(), ".key"), credentials.key_pem);
}

namespace {

bool has_gateway(const NodeDir& dir) {
  const auto config = read_config(dir);
  if (!config) return false;
  for (const auto role : (*config)->getRoles()) {
    if (role == messages::Role::GATEWAY) return true;
  }
  return false;
}

}  // namespace

Result<std::string> add_bearer_token(const fs::path& dir, std::string_view who, std::optional<Duration> ttl, const Clock& clock) {
  std::vector<NodeDir> gateways;
  if (const NodeDir node{dir}; fs::exists(node.config()) && has_gateway(node)) gateways.push_back(node);
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(dir / "nodes", none)) {
    if (const NodeDir node{entry.path()}; has_gateway(node)) gateways.push_back(node);
  }
  if (gateways.empty())
    return error(ErrorCode::not_found,
                 format("no gateway in {}: give the directory of a cluster or of a node that has this role", dir.string()));
  Bytes secret(32);
  storage::random_bytes(secret);
  const auto token = hex(secret);
  const auto expires = ttl ? std::optional(WallTime{clock.wall().unix_ns + ttl->count()}) : std::nullopt;
  for (const auto& node : gateways) FALAJ_TRY(serving::grant_token(node.tokens(), token, who, expires));
  return token;
}

Status write_node_files(const NodeDir& dir, const std::string& cluster, const NodePlan& plan, const net::Credentials& credentials,
                        std::string_view authority_pem, std::string_view rights) {
  if (fs::exists(dir.config())) return error(ErrorCode::conflict, format("{} is a node already", dir.root.string()));
  FALAJ_TRY(make_directory(dir.root));
  FALAJ_TRY(make_directory(dir.workers()));
  FALAJ_TRY(make_directory(dir.root / "store"));
  FALAJ_TRY(net::write_private_file(dir.certificate(), credentials.certificate_pem));
  FALAJ_TRY(net::write_private_file(dir.key(), credentials.key_pem));
  FALAJ_TRY(net::write_private_file(dir.authority(), authority_pem));
  FALAJ_TRY(net::write_private_file(dir.rights(), rights));
  if (!fs::exists(dir.kek())) FALAJ_TRY(storage::FileKeyProvider::create(dir.kek()));
  const auto message = Message::build<messages::NodeConfig>([&](messages::NodeConfig::Builder b) {
    b.setCluster(cluster);
    b.setName(plan.name);
    auto roles = b.initRoles(static_cast<unsigned>(plan.roles.size()));
    for (unsigned i = 0; i < plan.roles.size(); ++i) roles.set(i, plan.roles[i]);
    b.setListen(plan.listen);
    b.setControlNode(plan.control_node);
    b.setControlAddress(plan.control_address);
    b.setHttp(plan.http);
    b.setHttps(plan.https);
    b.setResidency(plan.residency);
  });
  return net::write_private_file(dir.config(), config::to_toml(*message.view<messages::NodeConfig>()));
}

Status add_node(const ClusterDir& dir, const NodePlan& plan, const Clock& clock) {
  FALAJ_ASSIGN(const auto authority, net::CertificateAuthority::load(dir.ca()));
  FALAJ_ASSIGN(const auto id, net::SpiffeId::node(authority.cluster(), plan.name));
  FALAJ_ASSIGN(const auto credentials, authority.issue(id, net::Validity::from(clock.wall(), kPrincipalLife)));
  FALAJ_ASSIGN(const auto rights, config::read_file(dir.rights()));
  return write_node_files(dir.node(plan.name), authority.cluster(), plan, credentials, authority.certificate_pem(), rights);
}

Result<std::vector<std::uint16_t>> free_ports(std::size_t count) {
  std::vector<int> sockets;  // all held until the end, so that no port is found twice
  std::vector<std::uint16_t> ports;
  Status status;
  while (ports.size() < count && status) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      status = failed(format("no free port on 127.0.0.1: {}", std::strerror(errno)));
    } else {
      ports.push_back(ntohs(address.sin_port));
    }
    sockets.push_back(fd);
  }
  for (const int fd : sockets) close(fd);
  if (!status) return status.error();
  return ports;
}

}  // namespace falaj::nodes
