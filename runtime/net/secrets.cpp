// Files, digests, revocation and join tokens of identity.hpp.
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#include "runtime/base/format.hpp"
#include "runtime/net/descriptor.hpp"
#include "runtime/net/tls.hpp"

namespace falaj::net {
namespace {

Error system_error(const std::filesystem::path& file, std::string_view what) {
  const int code = errno;
  return error(code == ENOENT                     ? ErrorCode::not_found
               : code == ENOSPC || code == EDQUOT ? ErrorCode::no_space
                                                  : ErrorCode::failed,
               format("{}: {}: {}", file.string(), what, std::strerror(code)));
}

Status write_all(int fd, std::string_view text, const std::filesystem::path& file) {
  while (!text.empty()) {
    const auto written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return system_error(file, "cannot write");
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  if (::fsync(fd) != 0) return system_error(file, "cannot sync");
  return {};
}

}  // namespace

Status write_private_file(const std::filesystem::path& file, std::string_view text) {
  const std::filesystem::path next = file.string() + ".new";
  ::unlink(next.c_str());
  {
    const Descriptor out(::open(next.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (out.get() < 0) return system_error(next, "cannot create");
    if (auto written = write_all(out.get(), text, next); !written.has_value()) {
      ::unlink(next.c_str());  // part of a secret is of no use, and in the way
      return written;
    }
  }
  if (::rename(next.c_str(), file.c_str()) != 0) {
    auto why = system_error(file, "cannot replace");
    ::unlink(next.c_str());
    return why;
  }
  const auto parent = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  const Descriptor directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) ::fsync(directory.get());
  return {};
}

Result<std::string> read_text_file(const std::filesystem::path& file, std::size_t bytes_max) {
  const Descriptor in(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (in.get() < 0) return system_error(file, "cannot open");
  std::string text;
  char buffer[16384];
  for (;;) {
    const auto count = ::read(in.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error(file, "cannot read");
    if (count == 0) return text;
    text.append(buffer, static_cast<std::size_t>(count));
    if (text.size() > bytes_max) return invalid(format("{}: larger than {} bytes", file.string(), bytes_max));
  }
}

Result<Bytes> random_bytes(std::size_t count) {
  Bytes bytes(count);
  if (RAND_bytes(bytes.data(), static_cast<int>(count)) != 1) return tls::error_of(ErrorCode::failed, "no random bytes");
  return bytes;
}

std::array<std::uint8_t, 32> sha256(ByteView bytes) {
  std::array<std::uint8_t, 32> digest{};
  EVP_Digest(bytes.data(), bytes.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  return digest;
}

std::array<std::uint8_t, 32> hmac_sha256(ByteView key, ByteView bytes) {
  std::array<std::uint8_t, 32> digest{};
  unsigned size = digest.size();
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), bytes.data(), bytes.size(), digest.data(), &size);
  return digest;
}

bool equal_in_constant_time(ByteView a, ByteView b) noexcept {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

struct Revocations {
  std::set<std::string, std::less<>> serials;
  std::map<std::string, std::int64_t, std::less<>> until;  // path of a principal -> second of issue that is still revoked
  bool operator==(const Revocations&) const = default;

  // false: no entry.
  bool take(std::string_view entry) {
    const auto space = entry.find(' ');
    if (space == std::string_view::npos) {
      const auto serial = from_hex(entry);
      if (entry.empty() || !serial.has_value()) return false;
      serials.insert(hex(serial.value()));
      return true;
    }
    const auto path = entry.substr(0, space);
    const auto number = entry.substr(space + 1);
    std::int64_t second = 0;
    const auto [end, code] = std::from_chars(number.data(), number.data() + number.size(), second);
    if (code != std::errc() || end != number.data() + number.size() || !SpiffeId::parse(format("spiffe://x/{}", path)).has_value())
      return false;
    auto& known = until[std::string(path)];
    known = std::max(known, second);
    return true;
  }

  [[nodiscard]] bool covers(const std::string& path, WallTime issued) const {
    const auto found = until.find(path);
    return found != until.end() && issued.unix_ns / kSecond <= found->second;
  }
};

}  // namespace

struct RevocationList::State {
  std::filesystem::path file;
  mutable std::mutex mutex;
  Revocations all;
  std::int64_t seen_ns = -1;
  std::int64_t seen_bytes = -1;
  std::atomic<std::uint64_t> generation{0};
};

RevocationList::RevocationList(std::filesystem::path file) : state_(std::make_unique<State>()) { state_->file = std::move(file); }
RevocationList::~RevocationList() = default;

std::string RevocationList::entry(const SpiffeId& who, WallTime issued_until) {
  return format("{} {}", who.path(), issued_until.unix_ns / kSecond);
}

Status RevocationList::reload_if_changed() {
  const std::scoped_lock lock(state_->mutex);
  struct stat now{};
  if (state_->file.empty() || ::stat(state_->file.c_str(), &now) != 0) return {};
  const std::int64_t when = now.st_mtim.tv_sec * kSecond + now.st_mtim.tv_nsec;
  if (when == state_->seen_ns && now.st_size == state_->seen_bytes) return {};
  FALAJ_ASSIGN(const auto text, read_text_file(state_->file, 16U << 20));
  Revocations read;
  std::istringstream lines(text);
  std::size_t number = 0;
  std::size_t bad = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    line.resize(std::min(line.find('#'), line.size()));
    line.resize(line.find_last_not_of(" \t\r") + 1);
    if (!line.empty() && !read.take(line) && bad == 0) bad = number;
  }
  state_->seen_ns = when;
  state_->seen_bytes = now.st_size;
  if (read != state_->all) {
    state_->all = std::move(read);
    ++state_->generation;
  }
  // The other lines are heeded all the same: a slip of the hand must not let anybody in.
  if (bad != 0) {
    return invalid(
        format("{}:{}: no revocation: a serial number in hex, or a principal and a second of Unix time", state_->file.string(), bad));
  }
  return {};
}

Status RevocationList::add(std::string_view entry, std::string_view comment) {
  Revocations one;
  if (!one.take(entry)) {
    return invalid(
        format("'{}' is no revocation: give a serial number in hex, or a principal and a second of Unix time, as in "
               "'node/n1 1763700000'",
               entry.substr(0, 200)));
  }
  if (state_->file.empty()) return invalid("this process was given no revocation list");
  FALAJ_TRY(reload_if_changed());
  {
    const std::scoped_lock lock(state_->mutex);
    auto with = state_->all;
    with.take(entry);
    if (with == state_->all) return {};
    const Descriptor out(::open(state_->file.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
    if (out.get() < 0) return system_error(state_->file, "cannot open");
    std::string note(comment);
    for (char& c : note) c = c == '\n' || c == '\r' ? ' ' : c;
    FALAJ_TRY(write_all(out.get(), format("{} # {}\n", entry, note), state_->file));
  }
  return reload_if_changed();
}

bool RevocationList::revoked(const CertificateInfo& certificate) const {
  const auto& who = certificate.principal;
  const auto issued = certificate.validity.issued();
  const std::scoped_lock lock(state_->mutex);
  if (state_->all.serials.contains(certificate.serial) || state_->all.covers(who.path(), issued)) return true;
  return who.kind() == PrincipalKind::worker && state_->all.covers(format("node/{}", who.name()), issued);
}

std::uint64_t RevocationList::generation() const noexcept { return state_->generation.load(); }

namespace {

constexpr std::string_view kTokenPrefix = "falaj-join-v1.";
constexpr std::size_t kSecretBytes = 32;

// The token's content: the four texts and numbers one a line, then the secret. Lines because people print and mail tokens,
// and a format without numbers of bytes cannot be made to claim a wrong one.
Error bad_token(std::string_view why) { return invalid(format("join token: {}; make a new one with `falaj token`", why)); }

}  // namespace

Result<JoinToken> JoinToken::make(std::string_view cluster, std::string_view control, std::string_view authority, WallTime expires) {
  JoinToken token{std::string(cluster), std::string(control), std::string(authority), expires, {}};
  for (const auto text : {cluster, control, authority}) {
    if (text.empty() || text.size() > 300 || text.find('\n') != std::string_view::npos)
      return invalid("join token: an empty or overlong field");
  }
  FALAJ_ASSIGN(token.secret, random_bytes(kSecretBytes));
  return token;
}

std::string JoinToken::encode() const {
  const auto content = format("{}\n{}\n{}\n{}\n{}", cluster, control, authority, expires.unix_ns, hex(secret));
  const auto check = hex(sha256(as_bytes(content))).substr(0, 8);  // tells a mangled token from a foreign one
  return std::string(kTokenPrefix) + base64url(as_bytes(content + "\n" + check));
}

Result<JoinToken> JoinToken::decode(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.remove_suffix(1);
  if (text.size() > 4096) return bad_token("too long");
  if (text.starts_with("falaj-join-") && !text.starts_with(kTokenPrefix))
    return error(ErrorCode::unimplemented, "join token: of a newer Falaj; update this one");
  if (!text.starts_with(kTokenPrefix)) return bad_token("does not begin with falaj-join-v1.");
  const auto decoded = from_base64url(text.substr(kTokenPrefix.size()));
  if (!decoded.has_value()) return bad_token("not base64url");
  std::vector<std::string> lines;
  std::istringstream stream{std::string(as_text(decoded.value()))};
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  if (lines.size() != 6) return bad_token("mangled");
  const auto content = format("{}\n{}\n{}\n{}\n{}", lines[0], lines[1], lines[2], lines[3], lines[4]);
  if (hex(sha256(as_bytes(content))).substr(0, 8) != lines[5]) return bad_token("mangled");
  JoinToken token{lines[0], lines[1], lines[2], {}, {}};
  std::istringstream number(lines[3]);
  if (!(number >> token.expires.unix_ns)) return bad_token("mangled");
  auto secret = from_hex(lines[4]);
  if (!secret.has_value() || secret.value().size() != kSecretBytes) return bad_token("mangled");
  token.secret = std::move(secret).value();
  return token;
}

std::string JoinToken::id() const { return hex(sha256(secret)); }

}  // namespace falaj::net
