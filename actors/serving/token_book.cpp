#include "actors/serving/token_book.hpp"

#include <capnp/message.h>

#include <charconv>
#include <chrono>
#include <optional>

#include "messages/message.hpp"
#include "messages/serving.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/config.hpp"
#include "runtime/net/identity.hpp"
#include "storage/files.hpp"

namespace falaj::serving {

namespace {

// YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ.
std::optional<std::int64_t> parse_instant(std::string_view text) {
  const auto number = [&](std::size_t from, std::size_t count) {
    int value = -1;
    const auto* end = text.data() + from + count;
    return std::from_chars(text.data() + from, end, value).ptr == end ? value : -1;
  };
  const bool day_only = text.size() == 10;
  if (!day_only && (text.size() != 20 || text[10] != 'T' || text[13] != ':' || text[16] != ':' || text[19] != 'Z')) return std::nullopt;
  if (text[4] != '-' || text[7] != '-') return std::nullopt;
  const std::chrono::year_month_day day(std::chrono::year(number(0, 4)), std::chrono::month(static_cast<unsigned>(number(5, 2))),
                                        std::chrono::day(static_cast<unsigned>(number(8, 2))));
  if (!day.ok() || number(0, 4) < 1970 || number(0, 4) > 2200) return std::nullopt;
  std::chrono::nanoseconds when = std::chrono::sys_days(day).time_since_epoch();
  if (!day_only) {
    const auto hour = number(11, 2);
    const auto minute = number(14, 2);
    const auto second = number(17, 2);
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59) return std::nullopt;
    when += std::chrono::hours(hour) + std::chrono::minutes(minute) + std::chrono::seconds(second);
  }
  return when.count();
}

std::string show_instant(WallTime when) {
  const auto time = std::chrono::sys_seconds(std::chrono::floor<std::chrono::seconds>(std::chrono::nanoseconds(when.unix_ns)));
  const auto day = std::chrono::floor<std::chrono::days>(time);
  const std::chrono::year_month_day date(day);
  const std::chrono::hh_mm_ss clock(time - day);
  return format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", static_cast<int>(date.year()), static_cast<unsigned>(date.month()),
                static_cast<unsigned>(date.day()), clock.hours().count(), clock.minutes().count(), clock.seconds().count());
}

}  // namespace

Result<TokenBook> TokenBook::parse(std::string_view toml, std::string_view name) {
  capnp::MallocMessageBuilder arena;
  auto file = arena.initRoot<messages::TokenFile>();
  FALAJ_TRY(config::parse_toml<messages::TokenFile>(toml, name, file));
  TokenBook book;
  std::size_t number = 0;
  for (const auto token : file.asReader().getToken()) {
    ++number;
    const auto sum = storage::Digest::from_hex(text(token.getSha256()));
    if (!sum) return invalid(format("{}: token {}: sha256 must be 64 hex digits (printf %s TOKEN | sha256sum)", name, number));
    const auto principal = text(token.getPrincipal());
    // A token must not make its bearer a member of the cluster: members have certificates.
    if (principal.empty() || principal.find("://") != principal.npos || principal.starts_with("node/"))
      return invalid(format("{}: token {}: principal must be a path such as person/admin or service/scoring", name, number));
    Grant grant{std::string(principal), 0};
    if (token.getExpires().size() != 0) {
      const auto when = parse_instant(text(token.getExpires()));
      if (!when)
        return invalid(format("{}: token {}: expires '{}' is no time; write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ", name, number,
                              text(token.getExpires())));
      grant.expires_ns = *when;
    }
    if (!book.grants_.emplace(*sum, std::move(grant)).second)
      return invalid(format("{}: token {}: its sha256 is there twice", name, number));
  }
  return book;
}

Result<std::string> TokenBook::principal_of(std::string_view token, WallTime now) const {
  const auto found = grants_.find(storage::sha256(token));
  if (found == grants_.end()) return error(ErrorCode::denied, "the bearer token is not known here");
  if (found->second.expires_ns != 0 && now.unix_ns >= found->second.expires_ns)
    return error(ErrorCode::denied, "the bearer token has expired");
  return found->second.principal;
}

Status grant_token(const std::filesystem::path& file, std::string_view token, std::string_view principal, std::optional<WallTime> expires) {
  FALAJ_ASSIGN(const auto id, net::SpiffeId::parse(format("spiffe://cluster/{}", principal)));  // nothing that TOML could take for more
  if (id.kind() != net::PrincipalKind::person && id.kind() != net::PrincipalKind::service)
    return invalid(format("'{}': a token stands for person/NAME or service/NAME", principal));
  const auto folder = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  // Two grants at once: the second reads what the first has written.
  FALAJ_ASSIGN(const auto lock,
               storage::DirLock::take(folder, "tokens.lock", storage::DirLock::Kind::exclusive, storage::DirLock::Wait::yes));
  std::string toml;
  if (std::filesystem::exists(file)) {
    FALAJ_ASSIGN(toml, config::read_file(file));
    if (!toml.empty() && !toml.ends_with('\n')) toml += '\n';
  }
  toml += format("[[token]]\nsha256 = \"{}\"\nprincipal = \"{}\"\n", storage::sha256(token).hex(), principal);
  if (expires) toml += format("expires = \"{}\"\n", show_instant(*expires));
  FALAJ_TRY(TokenBook::parse(toml, file.string()));
  return storage::replace_file(file, as_bytes(toml));
}

Status TokenFile::load() {
  return held_.with([this](Held& held) -> Status {
    std::error_code missing;
    const auto changed = std::filesystem::last_write_time(path_, missing);
    if (missing) {
      held = Held{};
      return {};
    }
    if (changed == held.changed) return {};
    held.changed = changed;  // a bad file is complained about once
    FALAJ_ASSIGN(const auto toml, config::read_file(path_));
    FALAJ_ASSIGN(auto book, TokenBook::parse(toml, path_));
    held.book = std::make_shared<const TokenBook>(std::move(book));
    return {};
  });
}

Result<std::string> TokenFile::principal_of(std::string_view token, WallTime now) {
  if (const auto read = load(); !read) log::error("serving", "tokens are as before", {{"reason", read.error().message}});
  const auto book = held_.with([](const Held& held) { return held.book; });
  return book->principal_of(token, now);
}

}  // namespace falaj::serving
