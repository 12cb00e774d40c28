// Bearer tokens of the HTTP gateway: tokens.toml beside rights.toml says whom a token stands for. The file holds SHA-256 sums of tokens,
// never tokens, so that reading it gives nobody a right.
//
//   [[token]]
//   sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
//   principal = "service/scoring"
//   expires = "2030-01-01"          # optional; UTC, a day or 2030-01-01T12:00:00Z: from then on it is refused
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "runtime/base/clock.hpp"
#include "runtime/base/guarded.hpp"
#include "storage/digest.hpp"

namespace falaj::serving {

class TokenBook {
 public:
  TokenBook() = default;  // knows none
  // `name`: of the file, for errors.
  static Result<TokenBook> parse(std::string_view toml, std::string_view name);
  // The principal's path ("service/scoring"); `denied` for a token that is unknown or has expired.
  [[nodiscard]] Result<std::string> principal_of(std::string_view token, WallTime now) const;
  [[nodiscard]] std::size_t size() const { return grants_.size(); }

 private:
  struct Grant {
    std::string principal;
    std::int64_t expires_ns = 0;  // since 1970; 0: never
  };
  std::unordered_map<storage::Digest, Grant> grants_;  // looked up by sum: the time it takes tells nothing about other tokens
};

// Adds a token to the file: its sum, whom it stands for, until when. Atomic, also against other writers; `invalid` leaves the file alone.
Status grant_token(const std::filesystem::path& file, std::string_view token, std::string_view principal, std::optional<WallTime> expires);

// The book in a file, read again when the file has changed. A file that is not there is an empty book; a bad one keeps the last good.
class TokenFile {
 public:
  explicit TokenFile(std::string path) : path_(std::move(path)) {}
  Status load();  // the error of the first reading is the caller's to act on
  [[nodiscard]] Result<std::string> principal_of(std::string_view token, WallTime now);

 private:
  struct Held {
    std::filesystem::file_time_type changed;
    std::shared_ptr<const TokenBook> book = std::make_shared<const TokenBook>();
  };
  std::string path_;
  Guarded<Held> held_;
};

}  // namespace falaj::serving
