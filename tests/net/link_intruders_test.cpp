// Who must not get in, and who misbehaves once in.
#include <cstring>
#include <fstream>

#include "runtime/base/random.hpp"
#include "tests/net/harness.hpp"

namespace falaj::net::testing {
namespace {

std::uint64_t failures(metrics::Registry& registry, const std::string& reason) {
  return registry.counter("falaj_link_handshake_failures_total", "", {{"reason", reason}}).value();
}

// Two good nodes that must go on whatever the test does to `a`.
struct Pair {
  explicit Pair(const std::function<void(LinkOptions&)>& change = {}) : a(cluster, "a", 1, change), b(cluster, "b") {
    b.links->connect(a.address());
    EXPECT_TRUE(a.seen.wait_up("b"));
    EXPECT_TRUE(b.seen.wait_up("a"));
  }
  void expect_unharmed() {
    const auto before = [&] {
      const std::scoped_lock lock(b.seen.mutex);
      EXPECT_EQ(b.seen.count("down"), 0U);
      return b.seen.messages.size();
    }();
    EXPECT_TRUE(a.send("b", Lane::NORMAL, "still here").has_value());
    EXPECT_TRUE(b.seen.wait_messages(before + 1));
  }
  bool wait_failures(const std::string& reason, std::uint64_t count = 1) {
    return a.seen.wait([&](const Recorder&) { return failures(a.registry, reason) >= count; });
  }
  TestCluster cluster;
  TestNode a;
  TestNode b;
};

TEST(Intruders, WithoutAGoodCertificateStayOut) {
  Pair pair;
  const TestCluster foreign("oasis");
  {
    RawPeer nobody(pair.a.port, Identity{});
    EXPECT_TRUE(nobody.closed_by_peer());
    RawPeer stranger(pair.a.port, foreign.node("b"));
    EXPECT_TRUE(stranger.closed_by_peer());
    RawPeer expired(pair.a.port, pair.cluster.identity(pair.cluster.id("c"), -60s));
    EXPECT_TRUE(expired.closed_by_peer());
  }
  EXPECT_TRUE(pair.wait_failures("no_certificate"));  // counted after the peer has learnt it
  EXPECT_TRUE(pair.wait_failures("untrusted"));
  EXPECT_TRUE(pair.wait_failures("expired"));
  pair.expect_unharmed();
}

TEST(Intruders, AreToldWhyTheyMayNotStay) {
  Pair pair;
  const auto refusal = [&](const Identity& identity, const std::function<void(messages::Hello::Builder)>& fill) {
    RawPeer peer(pair.a.port, identity);
    EXPECT_TRUE(peer.connected());
    peer.hello(fill);
    const auto hello = peer.read_hello();
    if (!hello) return std::string("no hello");
    const auto opened = hello.open<messages::Hello>();
    return std::string(text((*opened)->getRefusal().getMessage()));
  };
  using Hello = messages::Hello::Builder;
  const auto has = [](const std::string& message, std::string_view part) { EXPECT_NE(message.find(part), std::string::npos) << message; };
  const auto c = pair.cluster.node("c");
  has(refusal(c, [](Hello h) { h.setNode("d"); }), "certificate of 'c' used by 'd'");
  has(refusal(c, [](Hello h) { h.setNode("c#2"); }), "certificate of 'c'");
  has(refusal(c,
              [](Hello h) {
                h.setNode("c");
                h.setWireVersion(99);
              }),
      "update the older");
  has(refusal(c,
              [](Hello h) {
                h.setNode("c");
                h.setCluster("mirage");
              }),
      "'mirage'");
  has(refusal(c,
              [](Hello h) {
                h.setNode("c");
                h.setIncarnation(0);
              }),
      "incarnation 0");
  has(refusal(c,
              [](Hello h) {
                h.setNode("c");
                h.setLane(Lane::BULK);
              }),
      "no session");
  has(refusal(pair.cluster.node("a"), [](Hello h) { h.setNode("a"); }), "own name");
  has(refusal(pair.cluster.node("b"),
              [](Hello h) {
                h.setNode("b");
                h.setIncarnation(0);
              }),
      "incarnation 0");
  pair.expect_unharmed();
}

TEST(Intruders, ARevokedCertificateIsRefusedAndItsLinkCut) {
  const TempDir dir;
  const auto list = dir.path() / "revoked";
  const TestCluster cluster;
  const auto with_list = [&](LinkOptions& o) {
    o.identity = cluster.node("a");
    o.identity.revocations = list;
  };
  TestNode a(cluster, "a", 1, with_list);
  const auto identity = cluster.node("b");
  TestNode b(cluster, "b", 1, [&](LinkOptions& o) { o.identity = identity; });
  b.links->connect(a.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  RevocationList revocations(list);
  ASSERT_TRUE(revocations.add(parse_certificate(identity.certificate_pem)->serial, "test").has_value());
  ASSERT_TRUE(a.seen.wait_event("was revoked"));
  ASSERT_TRUE(b.seen.wait_event("was revoked; join again"));  // told when it dials again
  ASSERT_TRUE(b.links->reload_identity(cluster.node("b")).has_value());
  ASSERT_TRUE(a.seen.wait_up("b", 2));
}

TEST(Intruders, DiallersCheckWhoAnswers) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b");
  auto wrong = b.address();
  wrong.name = "c";
  a.links->connect(wrong);
  ASSERT_TRUE(a.seen.wait_event("expected 'c' there, found 'b'"));
  const TestCluster foreign("oasis");
  TestNode d(foreign, "d");
  a.links->connect(d.address());
  ASSERT_TRUE(a.seen.wait_event("dial d: "));
  TestNode e(cluster, "e", 1, [&](LinkOptions& o) { o.identity = cluster.identity(cluster.id("e"), -60s); });
  e.links->connect(a.address());
  ASSERT_TRUE(e.seen.wait_event("does not accept our certificate"));
  a.links->connect(PeerAddress{"f", "127.0.0.1", 1});
  ASSERT_TRUE(a.seen.wait_event("dial f: "));
  EXPECT_EQ(a.links->status().size(), 0U);
}

TEST(Intruders, GarbageAndSlownessEndAtTheBound) {
  Pair pair([](LinkOptions& o) { o.handshake_timeout = 400ms; });
  Random random(5);
  Bytes noise(100'000);
  for (auto& byte : noise) byte = static_cast<std::uint8_t>(random.next());
  {
    RawPeer garbage(pair.a.port);
    garbage.write_plain(noise);
    EXPECT_TRUE(garbage.closed_by_peer());
    RawPeer silent(pair.a.port);
    EXPECT_TRUE(silent.closed_by_peer());
    // A TLS record that never ends, one byte at a time.
    RawPeer slow(pair.a.port);
    const Bytes start{0x16, 0x03, 0x01, 0x3f, 0xff, 0x01};
    for (const auto byte : start) slow.write_plain(Bytes{byte});
    EXPECT_TRUE(slow.closed_by_peer());
    RawPeer mute(pair.a.port, pair.cluster.node("c"));  // a good certificate, and then no Hello
    EXPECT_TRUE(mute.closed_by_peer());
  }
  EXPECT_TRUE(pair.wait_failures("timeout", 3));
  pair.expect_unharmed();
}

TEST(Intruders, MalformedFramesCloseTheConnectionOnly) {
  Pair pair;
  const auto c = pair.cluster.node("c");
  const std::uint32_t huge[2] = {0, 0x7fffffff};
  {
    RawPeer peer(pair.a.port, c);
    peer.write(ByteView(reinterpret_cast<const std::uint8_t*>(huge), sizeof huge));  // instead of a Hello
    EXPECT_TRUE(peer.closed_by_peer());
  }
  // Three good lanes, then an envelope of two GiB on one of them.
  std::vector<std::unique_ptr<RawPeer>> lanes;
  for (const auto lane : {Lane::CONTROL, Lane::NORMAL, Lane::BULK}) {
    lanes.push_back(std::make_unique<RawPeer>(pair.a.port, c));
    lanes.back()->hello([&](messages::Hello::Builder h) {
      h.setNode("c");
      h.setLane(lane);
    });
    ASSERT_TRUE(lanes.back()->read_hello());
  }
  ASSERT_TRUE(pair.a.seen.wait_up("c"));
  lanes[1]->write(ByteView(reinterpret_cast<const std::uint8_t*>(huge), sizeof huge));
  ASSERT_TRUE(pair.a.seen.wait_event("down c/1"));
  for (const auto& lane : lanes) EXPECT_TRUE(lane->closed_by_peer());
  pair.expect_unharmed();
}

TEST(Intruders, ATruncatedBodyIsNotDeliveredAndTheSilentAreNoticed) {
  Pair pair([](LinkOptions& o) { o.silence_max = 5s; });
  std::vector<std::unique_ptr<RawPeer>> lanes;
  const auto c = pair.cluster.node("c");
  const auto join = [&] {
    lanes.clear();
    for (const auto lane : {Lane::CONTROL, Lane::NORMAL, Lane::BULK}) {
      lanes.push_back(std::make_unique<RawPeer>(pair.a.port, c));
      lanes.back()->hello([&](messages::Hello::Builder h) {
        h.setNode("c");
        h.setLane(lane);
      });
      EXPECT_TRUE(lanes.back()->read_hello());
    }
  };
  join();
  const auto body = text_message(std::string(100'000, 'x'));
  lanes[2]->write(envelope_for(body));
  lanes[2]->write(body.bytes().first(50'000));
  lanes[2]->reset();
  ASSERT_TRUE(pair.a.seen.wait_event("down c/1"));
  EXPECT_TRUE(pair.a.seen.messages.empty());
  join();
  ASSERT_TRUE(pair.a.seen.wait_up("c", 2));
  ASSERT_TRUE(pair.a.seen.wait_event("has been silent"));  // it sends no heartbeats
  pair.expect_unharmed();
}

}  // namespace
}  // namespace falaj::net::testing
