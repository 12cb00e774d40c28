// The two processes of `falaj bench links|lanes|overload`, under TLS 1.3 with certificates made on the spot: this one is node a, the one
// that it starts is node b, with the actors named below.
#pragma once
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "messages/bench.capnp.h"
#include "nodes/bench.hpp"
#include "nodes/linked_host.hpp"
#include "nodes/setup.hpp"
#include "runtime/base/process.hpp"
#include "runtime/net/bare_tls.hpp"

namespace falaj::nodes {

// Actors of node b. Each takes Parcels.
constexpr std::string_view kEcho = "echo";        // counts them; gives one back that wants to be, else the count
constexpr std::string_view kSink = "sink";        // the same, for floods: an actor of its own
constexpr std::string_view kPulse = "pulse";      // the same, for questions that should be answered at once
constexpr std::string_view kService = "service";  // computes for kServiceTime, then answers
constexpr Duration kServiceTime = std::chrono::microseconds(200);

constexpr std::size_t kSmall = 100;  // bytes of a parcel
constexpr std::size_t kLarge = 1U << 20;
Message parcel(std::size_t bytes, bool echo);

// What an actor of this process sends to one of node b.
struct Drive {
  std::string_view to = kEcho;
  std::size_t width = 1;    // coroutines at once
  std::uint64_t burst = 1;  // messages of each before one of them is waited for
  Lane lane = Lane::normal;
  bool echo = true;  // the payload comes back; otherwise its count
  std::size_t bytes = kSmall;
  std::vector<double>* us = nullptr;               // of each wait
  const std::atomic<bool>* stop = nullptr;         // set: ends before all is sent
  std::atomic<std::uint64_t>* messages = nullptr;  // that were sent and counted
};

class BenchPair {
 public:
  explicit BenchPair(const BenchPlan& plan) : plan_(plan) {}
  ~BenchPair();
  BenchPair(const BenchPair&) = delete;
  BenchPair& operator=(const BenchPair&) = delete;

  Status start();
  [[nodiscard]] const fs::path& dir() const { return dir_.root; }
  [[nodiscard]] Host& host() { return side_->host(); }
  [[nodiscard]] net::BareTlsClient& bare() { return *bare_; }
  [[nodiscard]] std::uint64_t other_resident_bytes() const { return resident_bytes(other_); }
  [[nodiscard]] static ActorAddress at(std::string_view actor) { return {node_id("b"), {}, {}, std::string(actor)}; }
  void spawn(const std::string& name, std::function<std::unique_ptr<Actor>()> make);
  void spawn(const std::string& name, const Drive& plan);

  // Tells the actor `driver` of this process how many units to do. It answers when they are done.
  class Run {
   public:
    [[nodiscard]] bool ended_within(Duration time) { return ended_.wait(time); }
    [[nodiscard]] const Status& how() const { return how_; }  // once it has ended

   private:
    friend class BenchPair;
    Gate ended_;
    Status how_;
  };
  std::shared_ptr<Run> begin(std::string_view driver, std::uint64_t units);
  Status drive(std::string_view driver, std::uint64_t units);  // and waits for the end

 private:
  struct Ports {
    std::uint16_t links = 0;
    std::uint16_t bare = 0;
  };
  Result<Ports> wait_ports();

  const BenchPlan& plan_;
  ClusterDir dir_;
  ProcessTable processes_;
  pid_t other_ = 0;
  Gate ended_;
  std::unique_ptr<LinkedHost> side_;
  std::unique_ptr<net::BareTlsClient> bare_;
};

}  // namespace falaj::nodes
