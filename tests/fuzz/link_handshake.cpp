// A peer that does the steps of joining in any order, on several connections at once: greets twice or not at all, as somebody else, for
// lanes that are taken, with frames before its greeting, and leaves at any point. The other peers never notice, no peer is up twice or
// speaks while it is not, and in the end it is gone.
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>

#include "tests/net/harness.hpp"

namespace {

using namespace falaj;
using namespace falaj::net;
using namespace falaj::net::testing;

constexpr std::size_t kConnections = 4;
constexpr std::size_t kStepsMax = 24;

[[noreturn]] void wrong(std::string_view what) {
  std::cerr << "link_handshake: " << what << '\n';
  std::abort();
}

// Takes the input byte by byte; zeros after its end.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}
  [[nodiscard]] bool empty() const { return rest_.empty(); }
  std::uint8_t byte() {
    if (rest_.empty()) return 0;
    const auto first = rest_.front();
    rest_ = rest_.subspan(1);
    return first;
  }
  ByteView bytes(std::size_t count) {
    const auto some = rest_.first(std::min(count, rest_.size()));
    rest_ = rest_.subspan(some.size());
    return some;
  }

 private:
  ByteView rest_;
};

struct World {
  TestCluster cluster;
  TestNode a{cluster, "a", 1, [](LinkOptions& o) {
               o.handshake_timeout = 2s;
               o.io_threads = 1;
             }};
  TestNode b{cluster, "b"};
  std::array<Identity, 4> identities{cluster.node("c"), cluster.node("d"), cluster.node("a"),
                                     cluster.identity(SpiffeId::person("oasis", "eve").value())};
  std::set<std::string> up;  // of a's peers
  std::uint64_t rounds = 0;

  World() {
    b.links->connect(a.address());
    if (!a.seen.wait_up("b") || !b.seen.wait_up("a")) wrong("the good peers do not come up");
  }

  void step(Input& in, std::array<std::unique_ptr<RawPeer>, kConnections>& peers) {
    const auto what = in.byte();
    auto& peer = peers.at(what / 16 % kConnections);
    switch (what % 8) {
      case 0:
        peer = std::make_unique<RawPeer>(a.port, identities.at(in.byte() % identities.size()));
        return;
      case 1:
        if (peer) peer->reset();
        peer.reset();
        return;
      case 2:
        if (peer) peer->write(in.bytes(in.byte()));
        return;
      case 3:
        if (peer) send(*peer, in);
        return;
      default:
        if (peer) greet(*peer, in);
    }
  }

  static void greet(RawPeer& peer, Input& in) {
    constexpr std::array<const char*, 6> kNames{"c", "c", "d", "a", "eve#1", ""};
    const auto odd = in.byte();
    peer.hello([&](messages::Hello::Builder h) {
      h.setNode(kNames.at(in.byte() % kNames.size()));
      h.setLane(static_cast<Lane>(in.byte() % 4));  // the last is none
      h.setIncarnation(in.byte() % 4);
      h.setSession(in.byte() % 3);
      if ((odd & 1U) != 0) h.setWireVersion(in.byte());
      if ((odd & 2U) != 0) h.setCluster("mirage");
      if ((odd & 4U) != 0) h.setListen("127.0.0.1:1");
      if ((odd & 8U) != 0) h.initRefusal().setMessage("no");
    });
  }

  static void send(RawPeer& peer, Input& in) {
    const auto how = in.byte();
    const auto body = text_message(std::string(in.byte(), 'x'));
    auto envelope = envelope_for(body, static_cast<messages::Kind>(how % 12));
    if ((how & 128U) != 0) envelope.resize(envelope.size() / 2);
    peer.write(envelope);
    if ((how & 64U) == 0) peer.write(body.bytes());
  }

  // What a has been told since the last time must be a story that can be true.
  void check() {
    const std::scoped_lock lock(a.seen.mutex);
    for (const auto& event : a.seen.events) {
      const auto word = event.what.substr(0, event.what.find(' '));
      if (word != "up" && word != "down") continue;
      const auto who = event.what.substr(word.size() + 1, event.what.find_first_of("/:", word.size() + 1) - word.size() - 1);
      if (word == "up" ? !up.insert(who).second : up.erase(who) == 0) wrong("twice in a row: " + event.what);
    }
    a.seen.events.clear();
    a.seen.messages.clear();
    if (a.seen.strays != 0) wrong("a message of a peer that is not up");
  }

  void run(Input in) {
    {
      std::array<std::unique_ptr<RawPeer>, kConnections> peers;
      for (std::size_t steps = 0; steps < kStepsMax && !in.empty(); ++steps) step(in, peers);
    }
    const auto said = "round " + std::to_string(++rounds);
    if (!b.send("a", Lane::NORMAL, said).has_value()) wrong("the good peer cannot send");
    const bool came = a.seen.wait(
        [&](const Recorder& r) { return std::ranges::any_of(r.messages, [&](const auto& m) { return m.from == "b" && m.text == said; }); });
    if (!came) wrong("what the good peer sends does not come");
    const bool gone = a.seen.wait([&](const Recorder&) { return a.links->status().size() == 1; });
    if (!gone) wrong("a peer whose connections are closed is still there");
    check();
    if (up.size() != 1 && !a.seen.wait_event("down")) wrong("a peer is gone and nobody was told");
    check();
    const std::scoped_lock lock(b.seen.mutex);
    if (b.seen.count("down") != 0) wrong("the good peer was cut off");
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const bool quiet = [] { return std::signal(SIGPIPE, SIG_IGN) != SIG_ERR; }();
  static_cast<void>(quiet);
  static auto& world = *new World;  // its threads end with the process
  world.run(Input(data, size));
  return 0;
}
