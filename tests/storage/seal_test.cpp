#include <algorithm>

#include "storage/digest.hpp"
#include "storage/lmdb_kv.hpp"
#include "storage/memory_kv.hpp"
#include "storage/sealed_kv.hpp"
#include "tests/storage/support.hpp"

namespace falaj::storage {
namespace {
using namespace test;

TEST(Digest, KnownAnswers) {
  EXPECT_EQ(sha256("abc").hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256("").hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  // RFC 4231, cases 2 and 6 (a key longer than a block).
  EXPECT_EQ(hmac_sha256(as_bytes("Jefe"), as_bytes("what do ya want for nothing?")).hex(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(hmac_sha256(Bytes(131, 0xaa), as_bytes("Test Using Larger Than Block-Size Key - Hash Key First")).hex(),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  Sha256 sha;
  sha.update("a").update("b");
  EXPECT_EQ(sha.peek(), sha256("ab"));
  sha.update("c");
  EXPECT_EQ(sha.finish(), sha256("abc"));
  EXPECT_EQ(sha.finish(), sha256(""));
  EXPECT_EQ(*Digest::from_hex(sha256("abc").hex()), sha256("abc"));
  EXPECT_TRUE(equal_in_constant_time(as_bytes("abc"), as_bytes("abc")));
  EXPECT_FALSE(equal_in_constant_time(as_bytes("abc"), as_bytes("abd")));
  EXPECT_FALSE(equal_in_constant_time(as_bytes("abc"), as_bytes("ab")));
}

TEST(Seal, OpensOnlyWithTheSameKeyAadAndBytes) {
  const auto key = Secret::random();
  const auto sealed = aes_seal(key.view(), as_bytes("place"), as_bytes("content"));
  EXPECT_EQ(as_text(must(aes_open(key.view(), as_bytes("place"), sealed))), "content");
  EXPECT_EQ(code_of(aes_open(Secret::random().view(), as_bytes("place"), sealed)), ErrorCode::corrupt);
  EXPECT_EQ(code_of(aes_open(key.view(), as_bytes("other"), sealed)), ErrorCode::corrupt);
  for (std::size_t i = 0; i < sealed.size(); ++i) {
    auto bad = sealed;
    bad[i] ^= 1;
    EXPECT_FALSE(aes_open(key.view(), as_bytes("place"), bad).has_value());
    EXPECT_FALSE(aes_open(key.view(), as_bytes("place"), ByteView(sealed).first(i)).has_value());
  }
  EXPECT_NE(aes_seal(key.view(), {}, as_bytes("x")), aes_seal(key.view(), {}, as_bytes("x")));  // fresh nonce
  EXPECT_TRUE(must(aes_open(key.view(), {}, aes_seal(key.view(), {}, {}))).empty());
}

TEST(FileKeyProvider, GuardsItsFile) {
  Scratch dir;
  EXPECT_EQ(code_of(FileKeyProvider::open(dir / "kek")), ErrorCode::not_found);
  must(FileKeyProvider::create(dir / "kek"));
  EXPECT_EQ(fs::status(dir / "kek").permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(fs::file_size(dir / "kek"), kKeyBytes);
  EXPECT_EQ(code_of(FileKeyProvider::create(dir / "kek")), ErrorCode::conflict);
  fs::permissions(dir / "kek", fs::perms::group_read, fs::perm_options::add);
  const auto open = FileKeyProvider::open(dir / "kek");
  EXPECT_EQ(code_of(open), ErrorCode::denied);
  EXPECT_NE(message_of(open).find("chmod 600"), std::string::npos);
}

TEST(Keyring, RotatesRewrapsAndErases) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  auto ring = must(Keyring::create("s", *provider));
  const auto old = must(ring->seal(as_bytes("p"), as_bytes("old")));
  must(ring->rotate());
  const auto fresh = must(ring->seal(as_bytes("p"), as_bytes("new")));
  EXPECT_EQ(ring->current(), 2U);
  EXPECT_EQ(as_text(must(ring->open(as_bytes("p"), old))), "old");
  const auto before = ring->bytes();

  must(FileKeyProvider::rotate(dir / "kek"));
  EXPECT_EQ(code_of(FileKeyProvider::rotate(dir / "kek")), ErrorCode::conflict);
  auto rotated = must(FileKeyProvider::open(dir / "kek"));
  auto loaded = must(Keyring::load("s", *rotated, before));
  must(loaded->rewrap());
  must(FileKeyProvider::forget_previous(dir / "kek"));
  auto only_new = must(FileKeyProvider::open(dir / "kek"));
  EXPECT_EQ(code_of(Keyring::load("s", *only_new, before)), ErrorCode::denied);
  auto again = must(Keyring::load("s", *only_new, loaded->bytes()));
  EXPECT_EQ(as_text(must(again->open(as_bytes("p"), old))), "old");
  EXPECT_EQ(code_of(Keyring::load("other store", *only_new, loaded->bytes())), ErrorCode::corrupt);

  must(again->erase(1));
  EXPECT_EQ(code_of(again->open(as_bytes("p"), old)), ErrorCode::not_found);
  EXPECT_EQ(as_text(must(again->open(as_bytes("p"), fresh))), "new");
  auto bytes = again->bytes();
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= 4;
    EXPECT_FALSE(Keyring::load("s", *only_new, bytes).has_value()) << i;
    bytes[i] ^= 4;
  }
}

TEST(Keyring, RetiresAKeyLongBeforeTheNonceBound) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  auto ring = must(Keyring::create("s", *provider));
  must(ring->reserve(kMessagesPerKeyMax - 1));
  EXPECT_EQ(ring->current(), 1U);
  must(ring->reserve(2));
  EXPECT_EQ(ring->current(), 2U);
}

SealedOptions hashed(std::size_t clear, bool subjects) {
  SealedOptions out;
  out.other.clear_prefix = clear;
  if (subjects)
    out.other.subject_of = [clear](ByteView key) {
      return Bytes(key.begin() + static_cast<std::ptrdiff_t>(std::min(clear, key.size())), key.end());
    };
  out.tables["plain"] = {.hash_keys = false, .clear_prefix = 0, .subject_of = nullptr};
  return out;
}

void put(Kv& kv, std::string_view table, std::string_view key, std::string_view value) {
  auto txn = must(kv.write());
  must(txn->put(table, as_bytes(key), as_bytes(value), 5));
  must(txn->commit());
}
std::string get(Kv& kv, std::string_view table, std::string_view key) {
  const auto value = must(must(kv.read())->get(table, as_bytes(key)));
  return value ? std::string(as_text(value->bytes)) : "-";
}

TEST(SealedKv, ReadsWritesScansAndErases) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  MemoryKv below;
  auto kv = must(SealedKv::open(below, "s", *provider, hashed(2, false)));
  put(*kv, "t", "aaone", "1");
  put(*kv, "t", "aatwo", "2");
  put(*kv, "t", "bbone", "3");
  put(*kv, "t", "b", "short");
  put(*kv, "plain", "k1", "p1");
  put(*kv, "plain", "k2", "p2");
  const auto scan = [&](std::string_view table, std::string_view prefix) {
    std::vector<std::string> out;
    must(must(kv->read())->scan(table, as_bytes(prefix), [&](const Item& item) {
      out.push_back(std::string(as_text(item.key)) + "=" + std::string(as_text(item.value)));
      EXPECT_EQ(item.version, 5);
      return true;
    }));
    std::ranges::sort(out);
    return out;
  };
  using Lines = std::vector<std::string>;
  EXPECT_EQ(scan("t", "aa"), (Lines{"aaone=1", "aatwo=2"}));
  EXPECT_EQ(scan("t", "aat"), (Lines{"aatwo=2"}));
  EXPECT_EQ(scan("t", "b"), (Lines{"b=short", "bbone=3"}));
  EXPECT_EQ(scan("plain", "k2"), (Lines{"k2=p2"}));
  EXPECT_EQ(get(*kv, "t", "aatwo"), "2");
  EXPECT_EQ(must(must(kv->read())->count("t", as_bytes("aa"))), 2U);
  EXPECT_EQ(must(must(kv->read())->tables()), (Lines{"plain", "t"}));
  auto txn = must(kv->write());
  EXPECT_TRUE(must(txn->erase("t", as_bytes("aatwo"))));
  EXPECT_FALSE(must(txn->get("t", as_bytes("aatwo"))).has_value());
  EXPECT_EQ(code_of(txn->put("keys", as_bytes("ring"), {}, 0)), ErrorCode::invalid);
  must(txn->commit());
  EXPECT_EQ(get(*kv, "t", "aatwo"), "-");
  EXPECT_EQ(code_of(must(kv->read())->scan("t", {}, as_bytes("aaxx"), [](const Item&) { return true; })), ErrorCode::invalid);
  EXPECT_EQ(code_of(SealedKv::open(below, "another", *provider)), ErrorCode::invalid);
}

TEST(SealedKv, NothingIsInClearOnDisk) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  const std::string marker = "MARKER-4711-PERSONAL";
  for (const bool subjects : {false, true}) {
    const auto where = dir / (subjects ? "subjects" : "store");
    {
      auto below = must(open_lmdb_kv(where));
      auto kv = must(SealedKv::open(*below, "s", *provider, hashed(2, subjects)));
      for (int i = 0; i < 50; ++i) put(*kv, "t", "aa" + marker + std::to_string(i), "value " + marker);
      EXPECT_EQ(get(*kv, "t", "aa" + marker + "7"), "value " + marker);
      EXPECT_TRUE(must(must(kv->write())->erase("t", as_bytes("aa" + marker + "7"))));
    }
    EXPECT_TRUE(files_with(where, marker).empty());
    auto below = must(open_lmdb_kv(where));
    auto kv = must(SealedKv::open(*below, "s", *provider, hashed(2, subjects)));
    EXPECT_EQ(get(*kv, "t", "aa" + marker + "49"), "value " + marker);
  }
}

TEST(SealedKv, MovedOrChangedValuesAreCorrupt) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  MemoryKv below;
  auto kv = must(SealedKv::open(below, "s", *provider, hashed(0, false)));
  put(*kv, "plain", "a", "1");
  put(*kv, "plain", "b", "2");
  // Whoever can write the file can give a moved value a good checksum; the seal still knows its place.
  auto txn = must(below.write());
  const auto a = must(txn->get("plain", as_bytes("a")));
  must(txn->put("plain", as_bytes("b"), a->bytes, a->version));
  must(txn->put("plain", as_bytes("c"), a->bytes, a->version));
  must(txn->commit());
  for (const auto* key : {"b", "c"}) {
    const auto got = must(kv->read())->get("plain", as_bytes(key));
    EXPECT_EQ(code_of(got), ErrorCode::corrupt);
    EXPECT_NE(message_of(got).find(std::string("table plain, key ") + key), std::string::npos);
  }
  EXPECT_EQ(get(*kv, "plain", "a"), "1");
}

TEST(SealedKv, AnErasedSubjectIsGoneEvenFromACopy) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  MemoryKv below;
  auto kv = must(SealedKv::open(below, "s", *provider, hashed(2, true)));
  put(*kv, "t", "aasara", "1");
  put(*kv, "u", "bbsara", "2");
  put(*kv, "t", "aaomar", "3");
  auto old_snapshot = must(kv->read());
  EXPECT_TRUE(must(kv->erase_subject(as_bytes("sara"))));
  EXPECT_FALSE(must(kv->erase_subject(as_bytes("sara"))));
  EXPECT_EQ(get(*kv, "t", "aasara"), "-");
  EXPECT_EQ(get(*kv, "u", "bbsara"), "-");
  EXPECT_EQ(get(*kv, "t", "aaomar"), "3");
  // A reader from before the erasure may still see it, but must not put the key back for others.
  (void)must(old_snapshot->get("t", as_bytes("aasara")));
  old_snapshot = nullptr;
  EXPECT_EQ(get(*kv, "t", "aasara"), "-");
  EXPECT_GT(kv->erased_met(), 0U);
  put(*kv, "t", "aasara", "new life");
  EXPECT_EQ(get(*kv, "t", "aasara"), "new life");
  EXPECT_EQ(get(*kv, "u", "bbsara"), "-");  // sealed under the old key
  auto reopened = must(SealedKv::open(below, "s", *provider, hashed(2, true)));
  EXPECT_EQ(get(*reopened, "t", "aasara"), "new life");
  EXPECT_EQ(get(*reopened, "u", "bbsara"), "-");
}

TEST(SealedKv, SurvivesRotationFailedCommitsAndReopening) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  MemoryKv below;
  auto kv = must(SealedKv::open(below, "s", *provider, hashed(2, true)));
  put(*kv, "t", "aaone", "1");
  put(*kv, "plain", "k", "1");
  below.fail_next_commit(failed("injected"));
  EXPECT_FALSE(kv->rotate_key().has_value());
  put(*kv, "t", "aatwo", "2");  // under a key that the failed commit did not store
  put(*kv, "plain", "k2", "2");
  must(kv->rotate_key());
  below.fail_next_commit(failed("injected"));
  {
    auto txn = must(kv->write());
    must(txn->put("t", as_bytes("aathree"), as_bytes("x"), 0));
    EXPECT_FALSE(txn->commit().has_value());
  }
  put(*kv, "t", "aathree", "3");  // the subject key made above was never stored
  must(FileKeyProvider::rotate(dir / "kek"));
  auto both = must(FileKeyProvider::open(dir / "kek"));
  must(must(SealedKv::open(below, "s", *both, hashed(2, true)))->rewrap());
  must(FileKeyProvider::forget_previous(dir / "kek"));
  auto only_new = must(FileKeyProvider::open(dir / "kek"));
  auto again = must(SealedKv::open(below, "s", *only_new, hashed(2, true)));
  EXPECT_EQ(get(*again, "t", "aaone") + get(*again, "t", "aatwo") + get(*again, "t", "aathree"), "123");
  EXPECT_EQ(get(*again, "plain", "k") + get(*again, "plain", "k2"), "12");
  EXPECT_EQ(code_of(SealedKv::open(below, "s", *provider)), ErrorCode::denied);
}

}  // namespace
}  // namespace falaj::storage
