// A bare blocking TLS 1.3 connection with both sides authenticated, and nothing else: no frames, no lanes, no heartbeats. It is what
// `falaj bench links` holds links against; no cluster traffic goes over it.
//
// Ways to get hurt: every call blocks, the server serves one connection at a time.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::net {

class BareTlsServer {
 public:
  // On a free port of 127.0.0.1, with a thread of its own.
  static Result<std::unique_ptr<BareTlsServer>> start(const Identity& identity, const Clock& clock);
  ~BareTlsServer();
  BareTlsServer(const BareTlsServer&) = delete;
  BareTlsServer& operator=(const BareTlsServer&) = delete;
  [[nodiscard]] std::uint16_t port() const;

 private:
  struct State;
  explicit BareTlsServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class BareTlsClient {
 public:
  static Result<std::unique_ptr<BareTlsClient>> connect(std::uint16_t port, const Identity& identity, const Clock& clock);
  ~BareTlsClient();
  BareTlsClient(const BareTlsClient&) = delete;
  BareTlsClient& operator=(const BareTlsClient&) = delete;
  // Sends so many bytes and waits for them to come back, `count` times; adds the microseconds of each to `us`.
  Status echo(std::size_t bytes, std::uint64_t count, std::vector<double>& us);
  // Sends so many bytes `count` times, then waits until the server has read all of them.
  Status haul(std::size_t bytes, std::uint64_t count);

 private:
  struct State;
  explicit BareTlsClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace falaj::net
