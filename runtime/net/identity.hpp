// Who is who in a cluster: SPIFFE ids, the cluster's certificate authority, certificates, revocation.
//
// Every principal (node, worker, person, service) holds an EC P-256 key and a certificate with exactly one URI SAN, its
// SPIFFE id. Not here: TLS itself (links, http), signing of the audit log (storage).
//
// Ways to get hurt:
//  - Private keys are PEM text in memory here; never log a Credentials. On disk they exist only through write_private_file.
//  - A certificate is checked against a WallTime that the caller gives: pass the Clock's, not one remembered.
#pragma once
#include <array>
#include <compare>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/bytes.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"

namespace falaj::net {

enum class PrincipalKind : std::uint8_t { node, worker, person, service };
std::string_view to_string(PrincipalKind kind) noexcept;

// spiffe://<cluster>/node/<name> | /node/<name>/worker/<k> | /person/<name> | /service/<name>. A value, always well-formed.
// Names and the cluster are [a-z0-9-]{1,63}; people and services may also use '.' and '_' after the first character.
class SpiffeId {
 public:
  SpiffeId() = default;  // nobody: empty() holds
  static Result<SpiffeId> parse(std::string_view uri);
  static Result<SpiffeId> node(std::string_view cluster, std::string_view name);
  static Result<SpiffeId> worker(std::string_view cluster, std::string_view node, std::uint32_t index);
  static Result<SpiffeId> person(std::string_view cluster, std::string_view name);
  static Result<SpiffeId> service(std::string_view cluster, std::string_view name);

  [[nodiscard]] bool empty() const noexcept { return name_.empty(); }
  [[nodiscard]] const std::string& cluster() const noexcept { return cluster_; }
  [[nodiscard]] PrincipalKind kind() const noexcept { return kind_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }       // of a worker: its node's
  [[nodiscard]] std::uint32_t worker_index() const noexcept { return worker_; }  // 0 unless a worker
  [[nodiscard]] std::string path() const;                                        // "node/n1/worker/0"
  [[nodiscard]] std::string uri() const;                                         // "" for nobody
  // The name a link shows for it: "n1", "n1/worker/0", "person/alice", "service/billing". People and services may append
  // "#<suffix>" so that several of their processes can be connected at once.
  [[nodiscard]] std::string link_name() const;
  auto operator<=>(const SpiffeId&) const = default;

 private:
  std::string cluster_;
  PrincipalKind kind_ = PrincipalKind::node;
  std::string name_;
  std::uint32_t worker_ = 0;
};

struct Validity {
  WallTime not_before;
  WallTime not_after;
  static Validity from(WallTime now, Duration lifetime);  // begins five minutes early, for clocks that disagree
  [[nodiscard]] WallTime issued() const;                  // the `now` of from(), of a certificate to the second
};

// What a leaf certificate says.
struct CertificateInfo {
  SpiffeId principal;
  Validity validity;
  std::string serial;       // lower-case hex
  std::string fingerprint;  // SHA-256 of the DER, lower-case hex
};
Result<CertificateInfo> parse_certificate(std::string_view pem);    // `invalid` unless exactly one well-formed SPIFFE URI SAN
Result<std::string> certificate_fingerprint(std::string_view pem);  // any certificate, also the authority's

struct Credentials {
  std::string certificate_pem;
  std::string key_pem;
};

struct SigningRequest {
  std::string csr_pem;
  std::string key_pem;  // stays with who asked
};
Result<SigningRequest> make_signing_request(const SpiffeId& who);

// The cluster's authority. Directory: ca.crt, ca.key (mode 0600).
class CertificateAuthority {
 public:
  static Result<CertificateAuthority> create(std::string_view cluster, const Validity& validity);
  static Result<CertificateAuthority> load(const std::filesystem::path& directory);
  CertificateAuthority(CertificateAuthority&&) noexcept;
  CertificateAuthority& operator=(CertificateAuthority&&) noexcept;
  ~CertificateAuthority();

  [[nodiscard]] Status save(const std::filesystem::path& directory) const;  // `conflict` when one is there already
  // A key and a certificate made here.
  [[nodiscard]] Result<Credentials> issue(const SpiffeId& who, const Validity& validity) const;
  // For a request (PEM or DER) whose key stays with its owner. Only the key is taken from the request: who it is for is the caller's word.
  [[nodiscard]] Result<std::string> sign(std::string_view request, const SpiffeId& who, const Validity& validity) const;

  [[nodiscard]] const std::string& cluster() const noexcept;
  [[nodiscard]] const std::string& certificate_pem() const noexcept;
  [[nodiscard]] const std::string& fingerprint() const noexcept;  // SHA-256, lower-case hex

 private:
  struct State;
  explicit CertificateAuthority(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Certificates that count no more: a text file with an entry a line, '#' begins a comment. An entry is a serial in lower-case hex, or
// a principal and a second of Unix time: `node/n1 1763700000` takes back every certificate of node n1 and of its workers that was
// issued until the end of that second, so that none can be forgotten and a new one is good. A missing file is an empty list. Thread-safe.
class RevocationList {
 public:
  explicit RevocationList(std::filesystem::path file);
  ~RevocationList();
  RevocationList(const RevocationList&) = delete;
  RevocationList& operator=(const RevocationList&) = delete;

  static std::string entry(const SpiffeId& who, WallTime issued_until);
  Status add(std::string_view entry, std::string_view comment);  // written and synced before it returns; nothing to do when known
  Status reload_if_changed();                                    // looks at the file's time and size
  [[nodiscard]] bool revoked(const CertificateInfo& certificate) const;
  [[nodiscard]] std::uint64_t generation() const noexcept;  // grows when the content changed

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What a process needs to speak as somebody.
struct Identity {
  std::string certificate_pem;
  std::string key_pem;
  std::string authority_pem;          // the cluster's ca.crt
  std::filesystem::path revocations;  // empty: none are known
};
Result<Identity> load_identity(const std::filesystem::path& certificate, const std::filesystem::path& key,
                               const std::filesystem::path& authority);

// An identity that lies in files, and may be renewed there while the process that speaks by it runs. One thread at a time.
class IdentityFiles {
 public:
  IdentityFiles(std::filesystem::path certificate, std::filesystem::path key, std::filesystem::path authority);
  Result<Identity> load();
  // The identity, if a file has changed since the last call or load(). The two of a pair are not replaced at one instant: what comes
  // between them is an error of Links::reload_identity(), and the second file a change like the first.
  Result<std::optional<Identity>> load_if_changed();

 private:
  struct Stamp {
    std::int64_t modified_ns = -1;
    std::int64_t bytes = -1;
    std::uint64_t inode = 0;
    bool operator==(const Stamp&) const = default;
  };
  [[nodiscard]] std::array<Stamp, 3> look() const;

  std::array<std::filesystem::path, 3> files_;
  std::array<Stamp, 3> seen_;
};

Status write_private_file(const std::filesystem::path& file, std::string_view text);  // mode 0600, synced, replaces atomically
Result<std::string> read_text_file(const std::filesystem::path& file, std::size_t bytes_max = 1U << 20);

// --- random bytes and digests for tokens ---
Result<Bytes> random_bytes(std::size_t count);  // from OpenSSL's generator
std::array<std::uint8_t, 32> sha256(ByteView bytes);
std::array<std::uint8_t, 32> hmac_sha256(ByteView key, ByteView bytes);
bool equal_in_constant_time(ByteView a, ByteView b) noexcept;

// What `falaj token` prints and `falaj join` reads: falaj-join-v1.<base64url>. It says where the control node is and by which
// authority to know it, and carries a secret. That a secret works once is enforced by who holds the list of open tokens.
struct JoinToken {
  std::string cluster;
  std::string control;    // host:port of the control node's link listener
  std::string authority;  // fingerprint of ca.crt
  WallTime expires;
  Bytes secret;  // 32 random bytes

  static Result<JoinToken> make(std::string_view cluster, std::string_view control, std::string_view authority, WallTime expires);
  static Result<JoinToken> decode(std::string_view text);
  [[nodiscard]] std::string encode() const;
  [[nodiscard]] std::string id() const;  // SHA-256 of the secret in hex: what the list of open tokens keeps
  bool operator==(const JoinToken&) const = default;
};

}  // namespace falaj::net
