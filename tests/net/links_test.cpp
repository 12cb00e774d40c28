#include "runtime/net/links.hpp"

#include <algorithm>
#include <latch>

#include "runtime/base/thread.hpp"
#include "tests/net/harness.hpp"

namespace falaj::net::testing {
namespace {

std::string numbered(int sender, int number) { return format("{}:{}", sender, number); }

TEST(Links, CarryMessagesInOrderOnEachLaneAndInBothDirections) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b");
  a.links->connect(b.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  ASSERT_TRUE(b.seen.wait_up("a"));
  constexpr int kCount = 2000;
  for (int i = 0; i < kCount; ++i) {
    const auto lane = static_cast<Lane>(i % 3);
    ASSERT_TRUE(a.send("b", lane, numbered(0, i)).has_value());
    ASSERT_TRUE(b.send("a", lane, numbered(1, i)).has_value());
  }
  for (auto* node : {&a, &b}) {
    ASSERT_TRUE(node->seen.wait_messages(kCount));
    std::array<int, 3> next{0, 1, 2};
    for (const auto& message : node->seen.messages) {
      auto& expected = next.at(static_cast<std::size_t>(message.lane));
      EXPECT_EQ(message.text, numbered(node == &a ? 1 : 0, expected));
      expected += 3;
    }
  }
  const auto status = a.links->status();
  ASSERT_EQ(status.size(), 1U);
  EXPECT_EQ(status[0].peer.name, "b");
  EXPECT_EQ(status[0].peer.address, format("127.0.0.1:{}", b.port));
  EXPECT_EQ(status[0].peer.principal.uri(), "spiffe://oasis/node/b");
  EXPECT_GE(status[0].lanes[1].sent_messages, 600U);
}

TEST(Links, CarryLargeBodiesAmongSmallOnes) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b");
  b.links->connect(a.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  std::vector<std::string> texts;
  for (const std::size_t size : {0UL, 1UL, 7000UL, 8190UL, 16384UL, 20000UL, 65536UL, 1UL << 20, 9UL << 20, 3UL, (15UL << 20) + 5, 100UL}) {
    texts.emplace_back(size, static_cast<char>('a' + texts.size()));
  }
  for (const auto& text : texts) ASSERT_TRUE(a.send("b", Lane::BULK, text).has_value());
  ASSERT_TRUE(b.seen.wait_messages(texts.size()));
  for (std::size_t i = 0; i < texts.size(); ++i) EXPECT_TRUE(b.seen.messages[i].text == texts[i]) << i;
  EXPECT_EQ(a.links->send(node_id("b"), Lane::BULK, Bytes(8), text_message("x")).error().code, ErrorCode::invalid);
  EXPECT_EQ(a.links->send(node_id("b"), Lane::BULK, envelope_for(text_message("x")), Message()).error().code, ErrorCode::invalid);
  EXPECT_EQ(a.send("nobody", Lane::BULK, "x").error().code, ErrorCode::unreachable);
}

TEST(Links, KeepTheOrderOfEachOfManySendingThreads) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b");
  a.links->connect(b.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  constexpr int kThreads = 4;
  constexpr int kEach = 3000;
  {
    std::vector<Thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back(format("sender-{}", t), [&, t] {
        for (int i = 0; i < kEach; ++i) EXPECT_TRUE(a.send("b", Lane::NORMAL, numbered(t, i)).has_value());
      });
    }
  }
  ASSERT_TRUE(b.seen.wait_messages(kThreads * kEach));
  std::array<int, kThreads> next{};
  for (const auto& message : b.seen.messages) {
    const int sender = message.text[0] - '0';
    EXPECT_EQ(message.text, numbered(sender, next.at(static_cast<std::size_t>(sender))++));
  }
}

TEST(Links, AnswerFromTheIoThread) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b", 1, [](LinkOptions& o) { o.io_threads = 2; });
  b.seen.also = [&](const PeerInfo& peer, Lane lane, const Message& body) {
    EXPECT_TRUE(b.links->send(peer.node, lane, envelope_for(body, messages::Kind::REPLY), body).has_value());
  };
  a.links->connect(b.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(a.send("b", Lane::NORMAL, numbered(0, i)).has_value());
    ASSERT_TRUE(a.seen.wait_messages(static_cast<std::size_t>(i) + 1));
  }
}

TEST(Links, RefuseWhenTheWindowIsFullAndLoseNothingThatWasTaken) {
  const TestCluster cluster;
  TestNode a(cluster, "a", 1, [](LinkOptions& o) { o.send_window = 1U << 20; });
  TestNode b(cluster, "b");
  std::latch go(1);
  b.seen.also = [&](const PeerInfo&, Lane, const Message&) { go.wait(); };  // a reader that stands still
  a.links->connect(b.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  const std::string block(100'000, 'x');
  int taken = 0;
  Status sent;
  while ((sent = a.send("b", Lane::BULK, format("{:06}{}", taken, block))).has_value()) ++taken;
  EXPECT_EQ(sent.error().code, ErrorCode::overloaded);
  EXPECT_GT(taken, 9);
  EXPECT_TRUE(a.send("b", Lane::CONTROL, "other lanes go on").has_value());
  go.count_down();
  ASSERT_TRUE(b.seen.wait_messages(static_cast<std::size_t>(taken) + 1));
  int next = 0;
  for (const auto& message : b.seen.messages) {
    if (message.lane != Lane::BULK) continue;
    EXPECT_EQ(message.text.substr(0, 6), format("{:06}", next++));
  }
  EXPECT_EQ(next, taken);
}

TEST(Links, TheControlLaneGoesOnWhileAnotherLaneIsHeld) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b");
  std::latch go(1);
  b.seen.also = [&](const PeerInfo&, Lane lane, const Message&) {
    if (lane != Lane::CONTROL) go.wait();
  };
  a.links->connect(b.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  ASSERT_TRUE(a.send("b", Lane::NORMAL, "held").has_value());
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(a.send("b", Lane::CONTROL, numbered(0, i)).has_value());
  EXPECT_TRUE(
      b.seen.wait([](const Recorder& r) { return std::ranges::count(r.messages, Lane::CONTROL, &Recorder::Received::lane) == 10; }));
  go.count_down();
  ASSERT_TRUE(b.seen.wait_messages(11));
  EXPECT_EQ(b.seen.count("down"), 0U);
}

// The recorder counts what comes of a peer that is not up.
TEST(Links, NothingOfASessionIsHandedOnAfterItsEnd) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b");
  a.links->connect(b.address());
  constexpr std::size_t kTimes = 10;
  for (std::size_t time = 1; time <= kTimes; ++time) {
    ASSERT_TRUE(a.seen.wait_up("b", time));
    ASSERT_TRUE(b.seen.wait_up("a", time));
    std::size_t before = 0;
    ASSERT_TRUE(b.seen.wait([&](const Recorder& r) {
      before = r.messages.size();
      return true;
    }));
    for (int i = 0; i < 3000; ++i) static_cast<void>(a.send("b", i % 2 == 0 ? Lane::NORMAL : Lane::BULK, numbered(0, i)));
    ASSERT_TRUE(b.seen.wait_messages(before + 1));
    b.links->disconnect(node_id("a"), error(ErrorCode::failed, "for the test"));
    ASSERT_TRUE(b.seen.wait([&](const Recorder& r) { return r.count("down a") >= time; }));
  }
  EXPECT_EQ(b.seen.strays, 0U);
}

TEST(Links, BothDiallingGivesOneSession) {
  const TestCluster cluster;
  for (int round = 0; round < 5; ++round) {
    TestNode a(cluster, "a");
    TestNode b(cluster, "b");
    a.links->connect(b.address());
    b.links->connect(a.address());
    ASSERT_TRUE(a.seen.wait_up("b"));
    ASSERT_TRUE(b.seen.wait_up("a"));
    ASSERT_TRUE(a.seen.wait([&](const Recorder&) { return a.send("b", Lane::NORMAL, "from a").has_value(); }));
    ASSERT_TRUE(b.seen.wait([&](const Recorder&) { return b.send("a", Lane::NORMAL, "from b").has_value(); }));
    ASSERT_TRUE(a.seen.wait_messages(1));
    ASSERT_TRUE(b.seen.wait_messages(1));
    EXPECT_EQ(a.links->status().size(), 1U);
  }
}

TEST(Links, AMeshOfManyComesUpAndStaysUp) {
  const TestCluster cluster;
  std::vector<std::unique_ptr<TestNode>> nodes;
  for (int i = 0; i < 6; ++i) nodes.push_back(std::make_unique<TestNode>(cluster, format("n{}", i)));
  for (const auto& from : nodes) {
    for (const auto& to : nodes) {
      if (from != to) from->links->connect(to->address());
    }
  }
  for (const auto& node : nodes)
    ASSERT_TRUE(node->seen.wait([&](const Recorder&) { return node->links->status().size() == nodes.size() - 1; }, 40s));
}

TEST(Links, ReportDeathAtOnceAndReconnectToTheNextIncarnation) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  auto b = std::make_unique<TestNode>(cluster, "b", 1);
  const auto port = b->port;
  a.links->connect(b->address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  b->links->stop();
  ASSERT_TRUE(a.seen.wait_event("down b/1"));
  EXPECT_EQ(a.send("b", Lane::NORMAL, "x").error().code, ErrorCode::unreachable);
  b.reset();
  TestNode again(cluster, "b", 2);
  if (again.port != port) a.links->connect(again.address());
  ASSERT_TRUE(a.seen.wait_event("up b/2"));
  ASSERT_TRUE(a.send("b", Lane::NORMAL, "x").has_value());
  ASSERT_TRUE(again.seen.wait_messages(1));
}

TEST(Links, ANewerIncarnationEndsTheOlderFirst) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode old(cluster, "b", 1);
  old.links->connect(a.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  TestNode fresh(cluster, "b", 2);
  fresh.links->connect(a.address());
  ASSERT_TRUE(a.seen.wait_event("up b/2"));
  {
    const std::scoped_lock lock(a.seen.mutex);
    ASSERT_GE(a.seen.events.size(), 3U);
    EXPECT_TRUE(a.seen.events[1].what.starts_with("down b/1")) << a.seen.events[1].what;
    EXPECT_EQ(a.seen.events[1].code, ErrorCode::gone);
  }
  ASSERT_TRUE(old.seen.wait_event("has run since as incarnation 2"));  // its redial is refused
}

TEST(Links, DisconnectAndForget) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b");
  a.links->connect(b.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  a.links->disconnect(node_id("b"), error(ErrorCode::gone, "for a test"));
  ASSERT_TRUE(a.seen.wait_event("for a test"));
  ASSERT_TRUE(a.seen.wait_up("b", 2));  // it is still wanted
  a.links->forget("b");
  a.links->disconnect(node_id("b"), error(ErrorCode::gone, "and away"));
  ASSERT_TRUE(a.seen.wait_event("and away"));
  EXPECT_FALSE(a.links->connected(node_id("b")));
}

TEST(Links, PeopleConnectWithoutListeningAndSeveralAtOnce) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  SystemClock clock;
  metrics::Registry registry;
  Recorder seen;
  std::vector<std::unique_ptr<Links>> people;
  for (const std::string suffix : {"1", "2"}) {
    LinkOptions options;
    options.cluster = "oasis";
    options.name = "person/aisha#" + suffix;
    options.incarnation = Incarnation(1);
    options.identity = cluster.identity(SpiffeId::person("oasis", "aisha").value());
    people.push_back(Links::create(std::move(options), clock, registry, seen).value());
    people.back()->connect(a.address());
  }
  ASSERT_TRUE(a.seen.wait_up("person/aisha#1"));
  ASSERT_TRUE(a.seen.wait_up("person/aisha#2"));
  for (const auto& one : people) one->stop();
  ASSERT_TRUE(a.seen.wait([](const Recorder& r) { return r.count("down person/aisha#") == 2; }));
}

TEST(Links, AProgramMayHaveOneConnectionForAllLanes) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  RawPeer program(a.port, cluster.identity(SpiffeId::service("oasis", "pricing").value()));
  program.hello([](messages::Hello::Builder h) {
    h.setNode("service/pricing");
    h.setSession(0);
  });
  ASSERT_TRUE(program.read_hello());
  ASSERT_TRUE(a.seen.wait_up("service/pricing"));
  const auto body = text_message("from it");
  auto pair = envelope_for(body);
  pair.insert(pair.end(), body.bytes().begin(), body.bytes().end());
  program.write(pair);
  ASSERT_TRUE(a.seen.wait_messages(1));
  EXPECT_EQ(a.seen.messages[0].lane, Lane::NORMAL) << "it cannot push past the cluster's own control messages";
  for (const auto lane : {Lane::CONTROL, Lane::NORMAL, Lane::BULK}) ASSERT_TRUE(a.send("service/pricing", lane, "to it").has_value());
  a.links->disconnect(node_id("service/pricing"), error(ErrorCode::gone, "enough"));
  const auto all = program.read_all();
  std::size_t found = 0;
  for (auto at = all.find("to it"); at != std::string::npos; at = all.find("to it", at + 1)) ++found;
  EXPECT_EQ(found, 3U);
  // A node keeps its three.
  RawPeer node(a.port, cluster.node("c"));
  node.hello([](messages::Hello::Builder h) {
    h.setNode("c");
    h.setLane(Lane::NORMAL);
    h.setSession(0);
  });
  const auto refused = node.read_hello();
  ASSERT_TRUE(refused);
  const auto hello = refused.open<messages::Hello>();
  EXPECT_NE(text((*hello)->getRefusal().getMessage()).find("no session of 'c'"), std::string_view::npos);
}

TEST(Links, AProgramThatOnlyAnswersHeartbeatsLivesAndAMuteOneDoesNot) {
  const TestCluster cluster;
  TestNode a(cluster, "a", 1, [](LinkOptions& o) { o.silence_max = 3s; });
  const auto join = [&](std::string_view name) {
    auto peer = std::make_unique<RawPeer>(a.port, cluster.identity(SpiffeId::service("oasis", name).value()));
    peer->hello([&](messages::Hello::Builder h) {
      h.setNode(format("service/{}", name));
      h.setSession(0);
    });
    EXPECT_TRUE(peer->read_hello());
    return peer;
  };
  const auto mute = join("mute");
  const auto answering = join("answering");
  ASSERT_TRUE(a.seen.wait_up("service/mute"));
  ASSERT_TRUE(a.seen.wait_up("service/answering"));
  // Until the mute one is given up, which takes as long as the other could be silent.
  const auto beat = Message::build<messages::Envelope>([](messages::Envelope::Builder b) { b.setKind(messages::Kind::HEARTBEAT_REPLY); });
  ASSERT_TRUE(a.seen.wait([&](const Recorder& r) { return answering->write(beat.bytes()) && r.count("down service/mute") == 1; }));
  ASSERT_TRUE(a.seen.wait([&](const Recorder&) {
    return answering->write(beat.bytes()) && a.registry.counter("falaj_link_peer_downs_total", "").value() == 1;
  }));
  ASSERT_TRUE(a.seen.wait([](const Recorder& r) { return r.count("down ") == 1; })) << "the answering one is down too";
}

// ---- rest -------------------------------------------------------------------------------------------------------------------------------

void need(TestNode& node, std::set<std::string> whom) {
  const std::scoped_lock lock(node.seen.mutex);
  node.seen.needed = std::move(whom);
}

LinkStatus link_to(const TestNode& node, std::string_view peer) {
  for (auto& status : node.links->status()) {
    if (status.peer.name == peer) return status;
  }
  return {};
}

bool wait_rest(TestNode& node, std::string_view peer, bool rests = true) {
  return node.seen.wait([&](const Recorder&) {
    const auto link = link_to(node, peer);
    return link.peer.name == peer && link.resting == rests;
  });
}

void tires_soon(LinkOptions& o) {
  o.heartbeat_every = 20ms;
  o.rest_after = 100ms;
}

TEST(Links, ThatNobodyNeedsRestAndWakeWhenSomebodySpeaks) {
  const TestCluster cluster;
  TestNode a(cluster, "a", 1, tires_soon);
  TestNode b(cluster, "b", 1, tires_soon);
  TestNode c(cluster, "c", 1, tires_soon);
  need(a, {"c"});
  need(b, {});
  need(c, {});
  a.links->connect(b.address());
  a.links->connect(c.address());
  ASSERT_TRUE(wait_rest(a, "b"));
  ASSERT_TRUE(wait_rest(b, "a"));
  ASSERT_TRUE(wait_rest(c, "a")) << "it need not ask by itself: it answers";
  const auto sent = [](const TestNode& node, std::string_view peer) { return link_to(node, peer).lanes[0].sent_messages; };
  const auto before_b = sent(a, "b");
  const auto before_c = sent(a, "c");
  ASSERT_TRUE(a.seen.wait([&](const Recorder&) { return sent(a, "c") > before_c + 20; }));
  EXPECT_EQ(sent(a, "b"), before_b) << "a heartbeat over a link that rests";
  EXPECT_FALSE(link_to(a, "c").resting);

  ASSERT_TRUE(a.send("b", Lane::NORMAL, "wake up").has_value());
  ASSERT_TRUE(b.seen.wait_messages(1));
  ASSERT_TRUE(a.seen.wait([&](const Recorder&) { return sent(a, "b") > before_b; }));
  ASSERT_TRUE(wait_rest(a, "b"));
  need(b, {"a"});
  ASSERT_TRUE(wait_rest(b, "a", false)) << "somebody there waits, and has said nothing";
  for (auto* node : {&a, &b, &c}) EXPECT_EQ(node->registry.counter("falaj_link_peer_downs_total", "").value(), 0U);
}

TEST(Links, APeerThatFellSilentWhileTheLinkRestedIsNoticedWhenItIsSpokenTo) {
  const TestCluster cluster;
  TestNode a(cluster, "a", 1, [](LinkOptions& o) {
    tires_soon(o);
    o.silence_max = 2s;
  });
  need(a, {});
  std::vector<std::unique_ptr<RawPeer>> lanes;  // that answer one heartbeat, and then no more
  for (const auto lane : {Lane::CONTROL, Lane::NORMAL, Lane::BULK}) {
    lanes.push_back(std::make_unique<RawPeer>(a.port, cluster.node("mute")));
    lanes.back()->hello([&](messages::Hello::Builder h) {
      h.setNode("mute");
      h.setLane(lane);
      h.setSession(77);
    });
    ASSERT_TRUE(lanes.back()->read_hello());
  }
  ASSERT_TRUE(a.seen.wait_up("mute"));
  const auto beat = Message::build<messages::Envelope>([](messages::Envelope::Builder b) { b.setKind(messages::Kind::HEARTBEAT_REPLY); });
  ASSERT_TRUE(lanes[0]->write(beat.bytes()));
  ASSERT_TRUE(wait_rest(a, "mute"));
  ASSERT_TRUE(a.send("mute", Lane::NORMAL, "hello?").has_value());
  ASSERT_TRUE(a.seen.wait_event("'mute' has been silent for"));
}

// What a node spends on heartbeats depends on whom it needs, not on how many there are.
TEST(Links, OfAMeshOnlyThoseThatAreNeededBeat) {
  const TestCluster cluster;
  for (const std::size_t n : {3UL, 9UL}) {
    std::vector<std::unique_ptr<TestNode>> nodes;
    for (std::size_t i = 0; i < n; ++i) nodes.push_back(std::make_unique<TestNode>(cluster, format("n{}", i), 1, tires_soon));
    for (std::size_t i = 0; i < n; ++i) {
      need(*nodes[i], {format("n{}", (i + 1) % n)});
      for (std::size_t j = 0; j < i; ++j) nodes[i]->links->connect(nodes[j]->address());
    }
    for (const auto& node : nodes) {
      ASSERT_TRUE(node->seen.wait([&](const Recorder&) {
        const auto all = node->links->status();
        return all.size() == n - 1 && std::ranges::count(all, false, &LinkStatus::resting) == 1;
      }));
    }
  }
}

TEST(Links, RefuseAnIdentityThatDoesNotFit) {
  const TestCluster cluster;
  SystemClock clock;
  metrics::Registry registry;
  Recorder seen;
  const auto create = [&](const std::string& name, Identity identity) {
    LinkOptions options;
    options.cluster = "oasis";
    options.name = name;
    options.incarnation = Incarnation(1);
    options.identity = std::move(identity);
    return Links::create(std::move(options), clock, registry, seen);
  };
  EXPECT_FALSE(create("a", cluster.node("b")).has_value());
  EXPECT_FALSE(create("a#1", cluster.node("a")).has_value());
  auto mixed = cluster.node("a");
  mixed.key_pem = cluster.node("a").key_pem;
  EXPECT_FALSE(create("a", mixed).has_value());
  auto foreign = cluster.node("a");
  foreign.authority_pem = TestCluster("oasis").authority.certificate_pem();
  EXPECT_FALSE(create("a", foreign).has_value());
  EXPECT_TRUE(create("a", cluster.node("a")).has_value());
}

TEST(Links, TakeAPortInUseForAnError) {
  const TestCluster cluster;
  TestNode a(cluster, "a");
  TestNode b(cluster, "b");
  const auto bound = b.links->listen("127.0.0.1", a.port);
  ASSERT_FALSE(bound.has_value());
  EXPECT_EQ(bound.error().code, ErrorCode::conflict);
  EXPECT_FALSE(b.links->listen("not an address", 0).has_value());
}

TEST(PeerAddress, Parses) {
  EXPECT_EQ(parse_peer_address("n", "[::1]:80")->host, "::1");
  EXPECT_EQ(parse_peer_address("n", "host.example:7400")->port, 7400);
  for (const auto* bad : {"", ":", "host", "host:", ":80", "host:0", "host:65536", "host:8x", "::1:80"})
    EXPECT_FALSE(parse_peer_address("n", bad).has_value()) << bad;
}

}  // namespace
}  // namespace falaj::net::testing
