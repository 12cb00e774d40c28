// Certificates that are renewed while links live, and sessions that are resumed.
#include <latch>

#include "runtime/base/thread.hpp"
#include "tests/net/harness.hpp"

namespace falaj::net::testing {
namespace {

struct Files {
  explicit Files(const Identity& identity) {
    write_certificate(identity);
    write_key(identity);
    EXPECT_TRUE(write_private_file(path("ca"), identity.authority_pem).has_value());
  }
  void write_certificate(const Identity& i) const { EXPECT_TRUE(write_private_file(path("crt"), i.certificate_pem).has_value()); }
  void write_key(const Identity& i) const { EXPECT_TRUE(write_private_file(path("key"), i.key_pem).has_value()); }
  [[nodiscard]] std::filesystem::path path(std::string_view what) const { return dir.path() / what; }
  [[nodiscard]] IdentityFiles identity() const { return {path("crt"), path("key"), path("ca")}; }

  TempDir dir;
};

std::string serial_of(const Identity& identity) { return parse_certificate(identity.certificate_pem).value().serial; }

TEST(Renewal, NewPeersSeeTheNewCertificateWhileMessagesFlow) {
  const TestCluster cluster;
  const auto first = cluster.node("b");
  const auto second = cluster.node("b");
  const Files disk(first);
  auto files = disk.identity();
  TestNode a(cluster, "a");
  TestNode b(cluster, "b", 1, [&](LinkOptions& o) { o.identity = files.load().value(); });
  a.links->connect(b.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  ASSERT_TRUE(b.seen.wait_up("a"));
  const auto shown = [&] { return RawPeer(b.port, cluster.node("c")).serial(); };
  EXPECT_EQ(shown(), serial_of(first));

  constexpr int kCount = 4000;
  std::latch flowing(1);
  {
    const Thread sender("sender", [&] {
      for (int i = 0; i < kCount; ++i) {
        EXPECT_TRUE(a.send("b", Lane::NORMAL, format("{}", i)).has_value());
        EXPECT_TRUE(b.send("a", Lane::NORMAL, format("{}", i)).has_value());
        if (i == kCount / 4) flowing.count_down();
      }
    });
    flowing.wait();
    EXPECT_FALSE(files.load_if_changed().value().has_value());
    disk.write_certificate(second);  // the pair does not fit yet
    const auto half = files.load_if_changed().value();
    ASSERT_TRUE(half.has_value());
    EXPECT_EQ(b.links->reload_identity(*half).error().code, ErrorCode::invalid);
    EXPECT_EQ(shown(), serial_of(first));
    disk.write_key(second);
    const auto whole = files.load_if_changed().value();
    ASSERT_TRUE(whole.has_value());
    ASSERT_TRUE(b.links->reload_identity(*whole).has_value());
    EXPECT_EQ(shown(), serial_of(second));
    EXPECT_FALSE(files.load_if_changed().value().has_value());
  }
  for (auto* node : {&a, &b}) {
    ASSERT_TRUE(node->seen.wait_messages(kCount));
    const std::scoped_lock lock(node->seen.mutex);
    EXPECT_EQ(node->seen.count("down "), 0U);
    EXPECT_EQ(node->seen.count("up "), 1U);
    for (int i = 0; i < kCount; ++i) ASSERT_EQ(node->seen.messages[static_cast<std::size_t>(i)].text, format("{}", i));
  }
  TestNode d(cluster, "d");
  d.links->connect(b.address());
  EXPECT_TRUE(d.seen.wait_up("b"));
}

TEST(Renewal, AFileThatIsGoneIsSaidOnce) {
  const TestCluster cluster;
  const Files disk(cluster.node("b"));
  auto files = disk.identity();
  ASSERT_TRUE(files.load().has_value());
  std::filesystem::remove(disk.path("key"));
  EXPECT_FALSE(files.load_if_changed().has_value());
  EXPECT_FALSE(files.load_if_changed().value().has_value());
  disk.write_key(cluster.node("b"));
  EXPECT_TRUE(files.load_if_changed().value().has_value());
}

void patient(LinkOptions& o) { o.handshake_timeout = kPatience; }

TEST(Resumption, SparesAReconnectTheWholeHandshakeUntilAnIdentityIsNew) {
  const TestCluster cluster;
  TestNode a(cluster, "a", 1, patient);
  TestNode b(cluster, "b", 1, patient);
  a.links->connect(b.address());
  std::size_t ups = 0;
  const auto expect = [&](std::uint64_t whole, std::uint64_t resumed) {
    ASSERT_TRUE(a.seen.wait_up("b", ++ups));
    for (auto* node : {&a, &b}) {
      EXPECT_EQ(node->handshakes(false), whole) << node->name;
      EXPECT_EQ(node->handshakes(true), resumed) << node->name;
    }
  };
  const auto again = [&] { a.links->disconnect(node_id("b"), error(ErrorCode::gone, "for a test")); };
  expect(1, 2);  // one lane makes the others' way short
  again();
  expect(1, 5);
  ASSERT_TRUE(b.links->reload_identity(cluster.node("b")).has_value());  // it does not know its old tickets any more
  again();
  expect(2, 7);
  ASSERT_TRUE(a.links->reload_identity(cluster.node("a")).has_value());  // they would say who it was
  again();
  expect(3, 9);
  ASSERT_TRUE(a.send("b", Lane::NORMAL, "x").has_value());
  ASSERT_TRUE(b.seen.wait_messages(1));
}

TEST(Resumption, LetsNoExpiredCertificateIn) {
  const TestCluster cluster;
  TestNode a(cluster, "a", 1, patient);
  TestNode b(cluster, "b", 1, patient);
  a.links->connect(b.address());
  ASSERT_TRUE(a.seen.wait_up("b"));
  const auto before = b.handshakes(true);
  b.clock.set_ahead(2h);  // the certificates are good for one
  a.links->disconnect(node_id("b"), error(ErrorCode::gone, "for a test"));
  ASSERT_TRUE(a.seen.wait_event("has expired; renew it"));  // said by b, who has understood the ticket
  EXPECT_GT(b.handshakes(true), before);
  ASSERT_TRUE(a.seen.wait_event("does not accept our certificate"));  // and then for a whole handshake
  EXPECT_TRUE(b.seen.wait([&](const Recorder&) { return b.links->status().empty(); }));
}

}  // namespace
}  // namespace falaj::net::testing
