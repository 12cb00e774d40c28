#include "runtime/net/identity.hpp"

#include <sys/stat.h>

#include <fstream>

#include "tests/net/harness.hpp"

namespace falaj::net::testing {
namespace {

TEST(SpiffeId, ParsesTheFourKindsAndNothingElse) {
  for (const std::string good : {"spiffe://oasis/node/n1", "spiffe://oasis/node/n1/worker/0", "spiffe://oasis/node/n1/worker/17",
                                 "spiffe://oasis/person/aisha.b", "spiffe://oasis/service/billing_2"}) {
    const auto id = SpiffeId::parse(good);
    ASSERT_TRUE(id.has_value()) << good << ": " << id.error().message;
    EXPECT_EQ(id->uri(), good);
  }
  EXPECT_EQ(SpiffeId::parse("spiffe://oasis/node/n1/worker/3")->link_name(), "n1/worker/3");
  EXPECT_EQ(SpiffeId::parse("spiffe://oasis/person/aisha")->link_name(), "person/aisha");
  const std::string long_name(64, 'a');
  for (const std::string& bad : {std::string(),
                                 std::string("spiffe://"),
                                 std::string("http://oasis/node/n1"),
                                 std::string("spiffe://oasis"),
                                 std::string("spiffe://oasis/"),
                                 std::string("spiffe://oasis/node"),
                                 std::string("spiffe://oasis/node/"),
                                 std::string("spiffe://oasis/node/n1/"),
                                 std::string("spiffe://oasis/node/N1"),
                                 std::string("spiffe://OASIS/node/n1"),
                                 std::string("spiffe://oasis/node/n1?x"),
                                 std::string("spiffe://oasis/node/n1#x"),
                                 std::string("spiffe://oasis//node/n1"),
                                 std::string("spiffe://oasis/node/n1/worker"),
                                 std::string("spiffe://oasis/node/n1/worker/"),
                                 std::string("spiffe://oasis/node/n1/worker/-1"),
                                 std::string("spiffe://oasis/node/n1/worker/01"),
                                 std::string("spiffe://oasis/node/n1/worker/99999999999"),
                                 std::string("spiffe://oasis/node/n1/worker/1/x"),
                                 std::string("spiffe://oasis/person/.."),
                                 std::string("spiffe://oasis/person/a b"),
                                 std::string("spiffe://oasis/robot/r"),
                                 std::string("spiffe://u@oasis/node/n1"),
                                 std::string("spiffe://oasis:80/node/n1"),
                                 std::string("spiffe://oasis/node/n%31"),
                                 "spiffe://oasis/node/" + long_name,
                                 std::string("spiffe://oasis/node/n\0x", 22)}) {
    EXPECT_FALSE(SpiffeId::parse(bad).has_value()) << bad;
  }
}

TEST(Authority, IssuesWhatItIsAskedFor) {
  const TestCluster cluster;
  const auto now = cluster.clock.wall();
  const auto made = cluster.authority.issue(cluster.id("n1"), Validity::from(now, std::chrono::hours(2))).value();
  const auto info = parse_certificate(made.certificate_pem).value();
  EXPECT_EQ(info.principal.uri(), "spiffe://oasis/node/n1");
  EXPECT_LT(info.validity.not_before, now);
  EXPECT_NEAR(static_cast<double>(info.validity.not_after.unix_ns - now.unix_ns), 7200e9, 2e9);
  EXPECT_EQ(info.serial.size(), 32U);
  const auto other = cluster.authority.issue(cluster.id("n1"), Validity::from(now, std::chrono::hours(2))).value();
  EXPECT_NE(parse_certificate(other.certificate_pem)->serial, info.serial);
  EXPECT_NE(other.key_pem, made.key_pem);
  EXPECT_FALSE(cluster.authority.issue(SpiffeId::node("elsewhere", "n1").value(), Validity::from(now, 1h)).has_value());
  EXPECT_FALSE(cluster.authority.issue(cluster.id("n1"), Validity{now, now}).has_value());
  EXPECT_FALSE(parse_certificate(cluster.authority.certificate_pem()).has_value());  // no principal's
  EXPECT_EQ(certificate_fingerprint(cluster.authority.certificate_pem()).value(), cluster.authority.fingerprint());
  EXPECT_FALSE(parse_certificate("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").has_value());
}

TEST(Authority, SignsRequestsForWhomTheCallerSays) {
  const TestCluster cluster;
  const auto request = make_signing_request(cluster.id("liar")).value();
  const auto pem = cluster.authority.sign(request.csr_pem, cluster.id("n2"), Validity::from(cluster.clock.wall(), 1h)).value();
  EXPECT_EQ(parse_certificate(pem)->principal.name(), "n2");
  auto broken = request.csr_pem;
  broken[broken.size() / 2] = broken[broken.size() / 2] == 'A' ? 'B' : 'A';
  EXPECT_FALSE(cluster.authority.sign(broken, cluster.id("n2"), Validity::from(cluster.clock.wall(), 1h)).has_value());
  EXPECT_FALSE(cluster.authority.sign("", cluster.id("n2"), Validity::from(cluster.clock.wall(), 1h)).has_value());
}

TEST(Authority, IsSavedPrivatelyAndOnlyOnce) {
  const TestCluster cluster;
  const TempDir dir;
  const auto ca = dir.path() / "ca";
  ASSERT_TRUE(cluster.authority.save(ca).has_value());
  struct stat file{};
  ASSERT_EQ(::stat((ca / "ca.key").c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777U, 0600U);
  const auto loaded = CertificateAuthority::load(ca);
  ASSERT_TRUE(loaded.has_value()) << loaded.error().message;
  EXPECT_EQ(loaded->cluster(), "oasis");
  EXPECT_EQ(loaded->fingerprint(), cluster.authority.fingerprint());
  EXPECT_EQ(cluster.authority.save(ca).error().code, ErrorCode::conflict);
  EXPECT_EQ(CertificateAuthority::load(dir.path() / "none").error().code, ErrorCode::not_found);
  const TestCluster other("other");
  ASSERT_TRUE(other.authority.save(dir.path() / "other").has_value());
  std::filesystem::copy_file(dir.path() / "other" / "ca.key", ca / "ca.key", std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(CertificateAuthority::load(ca).error().code, ErrorCode::invalid);
}

TEST(Revocation, IsReadAgainWhenTheFileChanges) {
  const TempDir dir;
  RevocationList list(dir.path() / "revoked");
  RevocationList reader(dir.path() / "revoked");
  EXPECT_TRUE(reader.reload_if_changed().has_value());
  CertificateInfo lost;
  lost.serial = "4a";
  EXPECT_FALSE(reader.revoked(lost));
  ASSERT_TRUE(list.add("4A", "laptop lost\nreally").has_value());
  EXPECT_TRUE(list.revoked(lost));
  EXPECT_FALSE(reader.revoked(lost));
  ASSERT_TRUE(reader.reload_if_changed().has_value());
  EXPECT_TRUE(reader.revoked(lost));
  EXPECT_EQ(reader.generation(), 1U);
  ASSERT_TRUE(list.add("4a", "again").has_value());
  ASSERT_TRUE(reader.reload_if_changed().has_value());
  EXPECT_EQ(reader.generation(), 1U);
  EXPECT_FALSE(list.add("not hex", "").has_value());
}

TEST(Revocation, OfAPrincipalTakesBackWhatWasIssuedUntilThen) {
  const TempDir dir;
  const TestCluster cluster;
  const auto at = [&](const SpiffeId& who, std::int64_t second) {
    const auto made = cluster.authority.issue(who, Validity::from(WallTime{second * 1'000'000'000 + 7}, std::chrono::hours(1))).value();
    return parse_certificate(made.certificate_pem).value();
  };
  const auto n1 = cluster.id("n1");
  const auto n10 = cluster.id("n10");
  const auto worker = SpiffeId::worker("oasis", "n1", 3).value();
  RevocationList list(dir.path() / "revoked");
  const std::int64_t now = 1'800'000'000;
  EXPECT_FALSE(list.revoked(at(n1, now)));
  ASSERT_TRUE(list.add(RevocationList::entry(n1, WallTime{now * 1'000'000'000 + 999'999'999}), "stolen").has_value());
  EXPECT_TRUE(list.revoked(at(n1, now - 86400)));
  EXPECT_TRUE(list.revoked(at(n1, now)));
  EXPECT_TRUE(list.revoked(at(worker, now)));
  EXPECT_FALSE(list.revoked(at(n1, now + 1)));
  EXPECT_FALSE(list.revoked(at(worker, now + 1)));
  EXPECT_FALSE(list.revoked(at(n10, now)));
  ASSERT_TRUE(list.add(RevocationList::entry(n1, WallTime{(now - 50) * 1'000'000'000}), "an older one").has_value());
  EXPECT_TRUE(list.revoked(at(n1, now)));
  for (const auto* bad : {"node/n1", "node/n1 soon", "node/n1 1x", "n1 1", "", "node/../n1 1"})
    EXPECT_FALSE(list.add(bad, "").has_value()) << bad;
}

TEST(Revocation, ALineThatCannotBeReadIsNamedAndHidesNoOther) {
  const TempDir dir;
  const auto file = dir.path() / "revoked";
  ASSERT_TRUE(write_private_file(file, "# lost\n4a # laptop\nnot hex\n4b\n").has_value());
  RevocationList list(file);
  const auto read = list.reload_if_changed();
  ASSERT_FALSE(read.has_value());
  EXPECT_NE(read.error().message.find("revoked:3:"), std::string::npos) << read.error().message;
  for (const auto* serial : {"4a", "4b"}) {
    CertificateInfo lost;
    lost.serial = serial;
    EXPECT_TRUE(list.revoked(lost));
  }
}

TEST(JoinToken, SurvivesPrintingAndRefusesMangling) {
  const auto token = JoinToken::make("oasis", "10.0.0.1:7400", std::string(64, 'a'), WallTime{1'800'000'000'000'000'000}).value();
  const auto text = token.encode();
  EXPECT_TRUE(text.starts_with("falaj-join-v1."));
  EXPECT_EQ(JoinToken::decode(text + "\n").value(), token);
  EXPECT_EQ(token.secret.size(), 32U);
  EXPECT_NE(JoinToken::make("oasis", "x:1", "f", WallTime{1})->secret, JoinToken::make("oasis", "x:1", "f", WallTime{1})->secret);
  EXPECT_EQ(JoinToken::decode("falaj-join-v2.AAAA").error().code, ErrorCode::unimplemented);
  for (std::size_t i = 0; i < text.size(); i += 3) {
    auto mangled = text;
    mangled[i] = mangled[i] == 'x' ? 'y' : 'x';
    EXPECT_FALSE(JoinToken::decode(mangled).has_value()) << i;
    EXPECT_FALSE(JoinToken::decode(text.substr(0, i)).has_value()) << i;
  }
}

TEST(Digests, AgreeWithTheStandards) {
  EXPECT_EQ(hex(sha256(as_bytes("abc"))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex(hmac_sha256(as_bytes("Jefe"), as_bytes("what do ya want for nothing?"))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_TRUE(equal_in_constant_time(as_bytes("ab"), as_bytes("ab")));
  EXPECT_FALSE(equal_in_constant_time(as_bytes("ab"), as_bytes("abc")));
}

}  // namespace
}  // namespace falaj::net::testing
