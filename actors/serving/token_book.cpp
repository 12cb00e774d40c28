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

namespace falaj::serving {

namespace {

std::optional<std::int64_t> parse_day(std::string_view text) {
  const auto number = [&](std::size_t from, std::size_t count) {
    int value = -1;
    const auto* end = text.data() + from + count;
    return std::from_chars(text.data() + from, end, value).ptr == end ? value : -1;
  };
  if (text.size() != 10 || text[4] != '-' || text[7] != '-') return std::nullopt;
  const std::chrono::year_month_day day(std::chrono::year(number(0, 4)), std::chrono::month(static_cast<unsigned>(number(5, 2))),
                                        std::chrono::day(static_cast<unsigned>(number(8, 2))));
  if (!day.ok() || number(0, 4) < 1970) return std::nullopt;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::sys_days(day).time_since_epoch()).count();
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
      const auto day = parse_day(text(token.getExpires()));
      if (!day) return invalid(format("{}: token {}: expires '{}' is no day; write YYYY-MM-DD", name, number, text(token.getExpires())));
      grant.expires_ns = *day;
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
