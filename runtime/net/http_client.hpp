// One HTTP request, answered while the caller waits: for the command line (joining, asking a gateway), never for actors.
// Over TLS the server must show a certificate of the cluster's authority: known by its certificate, or, before a node has
// that, by the fingerprint in its join token.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::net {

struct HttpTrust {
  std::string cluster;
  std::string authority_pem;          // either this
  std::string authority_fingerprint;  // or this: SHA-256, lower-case hex
  std::optional<Credentials> own;     // shown when the server asks for a certificate
};

struct HttpCall {
  std::string host;
  std::uint16_t port = 0;
  std::optional<HttpTrust> trust;  // given: TLS 1.3
  std::string method = "GET";
  std::string target = "/";
  std::string content_type = "application/json";  // sent with a body
  std::vector<std::pair<std::string, std::string>> headers;
  Bytes body;
  Duration timeout = std::chrono::seconds(10);
  std::size_t body_bytes_max = 64U << 20;
};

struct HttpAnswer {
  unsigned status = 0;
  std::vector<std::pair<std::string, std::string>> headers;
  Bytes body;
};

// unreachable, deadline, or denied when the server is not who it should be. Any status is an answer.
Result<HttpAnswer> http_call(const HttpCall& call, const Clock& clock);

}  // namespace falaj::net
