// What is remembered of another node. For remote.cpp only.
#pragma once
#include "runtime/host/remote.hpp"

namespace falaj {

// Guarded by `mutex`, but for `incarnation`, which is written under it and read by anybody, and `program`.
struct Remote::Peer {
  static constexpr std::size_t kKnown = 64;  // pairs of a sender there and a receiver here that are remembered
  static constexpr std::size_t kSweepAsks = 1024;
  // Who waits for an answer. The correlation on the wire says where: index and generation, so that a late answer finds nobody.
  struct Ask {
    ActorRef asker;  // empty: free
    ActorId actor;   // of the asker, whom the answer must name
    CorrelationId token;
    Lane lane = Lane::normal;
    Instant deadline;
    Incarnation incarnation;
    std::uint32_t generation = 1;
  };
  struct Watch {
    ActorRef watcher;
    CorrelationId token;  // the watcher's
    ActorRef watched;     // the proxy
    Incarnation incarnation;
  };
  struct Watched {  // a local actor that the peer watches
    ActorRef actor;
    ActorRef watcher;  // a proxy
    Incarnation incarnation;
  };
  // What was found for a message, for the next one like it.
  struct Known {
    std::uint64_t to_actor = 0;
    std::string to_name;
    std::uint64_t from_actor = 0;
    Incarnation incarnation;
    std::uint64_t names = 0;
    Ends ends;
  };

  explicit Peer(NodeId id, bool is_closed) : node(id), closed(is_closed) {}

  std::uint64_t add_ask(Ask ask, Instant now);
  void sweep(Instant now);
  [[nodiscard]] std::size_t open_asks() const { return asks.size() - free_asks.size(); }
  std::optional<Ask> take_ask(std::uint64_t wire, ActorId actor);
  void free_ask(std::size_t index);

  const NodeId node;
  std::atomic<std::uint64_t> incarnation{0};  // the newest that we heard of; zero: none yet
  std::atomic<bool> program{false};           // no node: comes under another name next time
  std::recursive_mutex mutex;
  bool closed;  // nothing is remembered any more
  std::vector<Ask> asks;
  std::vector<std::uint32_t> free_asks;
  std::size_t sweep_at = kSweepAsks;
  std::map<std::uint64_t, Watch> watches;                                   // by our token on the wire
  std::map<std::pair<Target*, std::uint64_t>, std::uint64_t> watch_tokens;  // (watcher, its token) -> ours
  std::map<std::uint64_t, Watched> watched;                                 // by the peer's token
  std::unique_ptr<std::array<Known, kKnown>> known;                         // null until the first message
};

}  // namespace falaj
