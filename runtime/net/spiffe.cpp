// SpiffeId of identity.hpp.
#include <charconv>

#include "runtime/base/format.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::net {

std::string_view to_string(PrincipalKind kind) noexcept {
  switch (kind) {
    case PrincipalKind::node:
      return "node";
    case PrincipalKind::worker:
      return "worker";
    case PrincipalKind::person:
      return "person";
    case PrincipalKind::service:
      return "service";
  }
  return "node";
}

namespace {

constexpr std::size_t kNameMax = 63;
constexpr std::string_view kScheme = "spiffe://";

bool lower_or_digit(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

Status check_name(std::string_view what, std::string_view name, std::string_view also) {
  bool good = !name.empty() && name.size() <= kNameMax && (also.size() == 1 || lower_or_digit(name.front()));
  for (const char c : name) good = good && (lower_or_digit(c) || also.find(c) != std::string_view::npos);
  if (good) return {};
  return invalid(format("{} '{}': needs 1 to {} of [a-z0-9{}]", what, name.substr(0, 80), kNameMax, also));
}

}  // namespace

Result<SpiffeId> SpiffeId::node(std::string_view cluster, std::string_view name) {
  FALAJ_TRY(check_name("cluster", cluster, "-"));
  FALAJ_TRY(check_name("node", name, "-"));
  SpiffeId id;
  id.cluster_ = cluster;
  id.name_ = name;
  return id;
}

Result<SpiffeId> SpiffeId::worker(std::string_view cluster, std::string_view node_name, std::uint32_t index) {
  FALAJ_ASSIGN(auto id, node(cluster, node_name));
  id.kind_ = PrincipalKind::worker;
  id.worker_ = index;
  return id;
}

Result<SpiffeId> SpiffeId::person(std::string_view cluster, std::string_view name) {
  FALAJ_TRY(check_name("cluster", cluster, "-"));
  FALAJ_TRY(check_name("person", name, "-._"));
  SpiffeId id;
  id.cluster_ = cluster;
  id.kind_ = PrincipalKind::person;
  id.name_ = name;
  return id;
}

Result<SpiffeId> SpiffeId::service(std::string_view cluster, std::string_view name) {
  FALAJ_TRY(check_name("cluster", cluster, "-"));
  FALAJ_TRY(check_name("service", name, "-._"));
  SpiffeId id;
  id.cluster_ = cluster;
  id.kind_ = PrincipalKind::service;
  id.name_ = name;
  return id;
}

Result<SpiffeId> SpiffeId::parse(std::string_view uri) {
  const auto bad = [&] {
    return invalid(
        format("'{}' is no SPIFFE id of a cluster: want spiffe://<cluster>/node/<name>, /node/<name>/worker/<k>, /person/<name> or "
               "/service/<name>",
               uri.substr(0, 200)));
  };
  if (!uri.starts_with(kScheme)) return bad();
  std::vector<std::string_view> parts;
  for (std::string_view rest = uri.substr(kScheme.size());;) {
    const auto slash = rest.find('/');
    parts.push_back(rest.substr(0, slash));
    if (slash == std::string_view::npos || parts.size() > 6) break;
    rest.remove_prefix(slash + 1);
  }
  if (parts.size() == 3 && parts[1] == "node") return node(parts[0], parts[2]);
  if (parts.size() == 3 && parts[1] == "person") return person(parts[0], parts[2]);
  if (parts.size() == 3 && parts[1] == "service") return service(parts[0], parts[2]);
  if (parts.size() != 5 || parts[1] != "node" || parts[3] != "worker") return bad();
  const auto text = parts[4];
  std::uint32_t index = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), index);
  // One way to write each number, so that ids compare as text.
  if (code != std::errc{} || end != text.data() + text.size() || (text.size() > 1 && text[0] == '0')) return bad();
  return worker(parts[0], parts[2], index);
}

std::string SpiffeId::path() const {
  if (empty()) return {};
  if (kind_ == PrincipalKind::worker) return format("node/{}/worker/{}", name_, worker_);
  return format("{}/{}", to_string(kind_), name_);
}

std::string SpiffeId::uri() const { return empty() ? std::string() : format("{}{}/{}", kScheme, cluster_, path()); }

std::string SpiffeId::link_name() const {
  const auto whole = path();
  return kind_ == PrincipalKind::node || kind_ == PrincipalKind::worker ? whole.substr(whole.empty() ? 0 : 5) : whole;
}

}  // namespace falaj::net
