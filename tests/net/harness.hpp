// A cluster's authority, recorded link events, and a raw TLS peer that breaks rules. Waits end on a condition or a deadline.
#pragma once
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "messages/message.hpp"
//
#include "messages/envelope.capnp.h"
#include "runtime/base/clock.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/metrics.hpp"
#include "runtime/net/links.hpp"

namespace falaj::net::testing {

using namespace std::chrono_literals;
constexpr auto kPatience = 20s;  // sanitizers on a busy machine

class TempDir {
 public:
  TempDir();
  ~TempDir();
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Real time, and a wall clock that can be set wrong.
class TestClock final : public Clock {
 public:
  [[nodiscard]] Instant now() const override { return real_.now(); }
  [[nodiscard]] WallTime wall() const override { return WallTime{real_.wall().unix_ns + ahead_ns_.load()}; }
  void set_ahead(Duration by) { ahead_ns_ = by.count(); }

 private:
  SystemClock real_;
  std::atomic<std::int64_t> ahead_ns_{0};
};

struct TestCluster {
  explicit TestCluster(std::string cluster_name = "oasis");
  [[nodiscard]] Identity identity(const SpiffeId& who, Duration lifetime = std::chrono::hours(1)) const;
  [[nodiscard]] Identity node(std::string_view name) const { return identity(SpiffeId::node(name_, name).value()); }
  [[nodiscard]] SpiffeId id(std::string_view name) const { return SpiffeId::node(name_, name).value(); }

  std::string name_;
  SystemClock clock;
  CertificateAuthority authority;
};

class Recorder final : public LinkEvents {
 public:
  struct Event {
    std::string what;  // "up b/1", "down b/1: reason", "dial: reason"
    ErrorCode code = ErrorCode::failed;
  };
  struct Received {
    std::string from;
    Lane lane;
    std::string text;
  };
  void on_peer_up(const PeerInfo& peer) override;
  void on_message(const PeerInfo& peer, Lane lane, const Header& header, Message body) override;
  void on_peer_down(const PeerInfo& peer, const Error& reason) override;
  void on_dial_failed(const PeerAddress& peer, const Error& reason) override;
  bool waits_for(const PeerInfo& peer) override;

  bool wait(const std::function<bool(const Recorder&)>& condition, Duration patience = kPatience);
  bool wait_up(std::string_view name, std::size_t times = 1);
  bool wait_event(std::string_view part);
  bool wait_messages(std::size_t count);
  // With the lock held by wait(), or when nothing moves any more.
  [[nodiscard]] std::size_t count(std::string_view prefix) const;

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Event> events;
  std::vector<Received> messages;
  std::optional<std::set<std::string>> needed;                      // whose links may not rest; nothing: all
  std::function<void(const PeerInfo&, Lane, const Message&)> also;  // on the lane's IO thread, set before the links start
  std::size_t strays = 0;                                           // messages of a peer that was not up

 private:
  std::set<std::string> up_;
};

struct TestNode {
  TestNode(const TestCluster& cluster, const std::string& name, std::uint64_t incarnation = 1,
           const std::function<void(LinkOptions&)>& change = {});
  [[nodiscard]] PeerAddress address() const { return {name, "127.0.0.1", port}; }
  Status send(const std::string& to, Lane lane, std::string_view text) const;

  // TLS handshakes of its links so far.
  [[nodiscard]] std::uint64_t handshakes(bool resumed);

  std::string name;
  TestClock clock;
  metrics::Registry registry;
  Recorder seen;
  std::uint16_t port = 0;
  std::unique_ptr<Links> links;
};

Message text_message(std::string_view text);
Bytes envelope_for(const Message& body, messages::Kind kind = messages::Kind::TELL);
std::string text_of(const Message& message);

// A blocking TLS client with a certificate of its own choosing. Reads time out after kPatience.
class RawPeer {
 public:
  RawPeer(std::uint16_t port, const Identity& identity);  // TLS handshake included; connected() tells. Empty: no certificate
  explicit RawPeer(std::uint16_t port);                   // TCP only
  ~RawPeer();
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;
  [[nodiscard]] bool connected() const { return ssl_ != nullptr; }
  [[nodiscard]] std::string serial() const;  // of the certificate it was shown
  bool write(ByteView bytes);                // over TLS
  bool write_plain(ByteView bytes);          // under TLS
  bool hello(const std::function<void(messages::Hello::Builder)>& fill);
  [[nodiscard]] Message read_hello();    // empty when the connection closed
  [[nodiscard]] bool closed_by_peer();   // waits for it
  [[nodiscard]] std::string read_all();  // until the connection closes
  void reset();                          // closes with RST

 private:
  int fd_ = -1;
  void* context_ = nullptr;
  void* ssl_ = nullptr;
};

}  // namespace falaj::net::testing
