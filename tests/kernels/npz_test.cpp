// .npz files: stored and deflated entries, ZIP64, and what is damaged, hostile or unknown refused within bounds.
#include "kernels/npz.hpp"

#include <gtest/gtest.h>
#include <zlib.h>

#include <numeric>

#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

template <class T>
void put(Bytes& out, T value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out.push_back(static_cast<std::uint8_t>(static_cast<std::uint64_t>(value) >> (8 * i)));
}
void put_text(Bytes& out, std::string_view text) { out.insert(out.end(), text.begin(), text.end()); }

struct Part {
  std::string name;  // with .npy
  Bytes content;
  std::uint16_t method = 8;
  bool wide = false;              // sizes in the ZIP64 field
  std::uint64_t claimed = ~0ULL;  // instead of the true size
  std::uint32_t crc_off = 0;
  std::uint16_t flags = 0;
};

Bytes deflated(const Bytes& content) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 9, Z_DEFAULT_STRATEGY), Z_OK);
  Bytes out(deflateBound(&stream, content.size()) + 16);
  Bytes copy = content;
  stream.next_in = copy.data();
  stream.avail_in = static_cast<uInt>(copy.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

Bytes zip_of(const std::vector<Part>& parts, std::string_view comment = {}) {
  Bytes out;
  Bytes directory;
  for (const Part& part : parts) {
    const Bytes data = part.method == 8 ? deflated(part.content) : part.content;
    const std::uint64_t size = part.claimed == ~0ULL ? part.content.size() : part.claimed;
    const auto crc = static_cast<std::uint32_t>(crc32(0, part.content.data(), static_cast<uInt>(part.content.size()))) + part.crc_off;
    const auto at = static_cast<std::uint32_t>(out.size());
    Bytes extra;
    if (part.wide) {
      put<std::uint16_t>(extra, 1);
      put<std::uint16_t>(extra, 16);
      put<std::uint64_t>(extra, size);
      put<std::uint64_t>(extra, data.size());
    }
    const auto short_size = part.wide ? 0xFFFFFFFFU : static_cast<std::uint32_t>(size);
    const auto short_packed = part.wide ? 0xFFFFFFFFU : static_cast<std::uint32_t>(data.size());
    const auto common = [&](Bytes& to) {
      put<std::uint16_t>(to, 45);
      put<std::uint16_t>(to, part.flags);
      put<std::uint16_t>(to, part.method);
      put<std::uint32_t>(to, 0);
      put<std::uint32_t>(to, crc);
      put<std::uint32_t>(to, short_packed);
      put<std::uint32_t>(to, short_size);
      put<std::uint16_t>(to, static_cast<std::uint16_t>(part.name.size()));
      put<std::uint16_t>(to, static_cast<std::uint16_t>(extra.size()));
    };
    put<std::uint32_t>(out, 0x04034b50);
    common(out);
    put_text(out, part.name);
    out.insert(out.end(), extra.begin(), extra.end());
    out.insert(out.end(), data.begin(), data.end());
    put<std::uint32_t>(directory, 0x02014b50);
    put<std::uint16_t>(directory, 45);
    common(directory);
    put<std::uint16_t>(directory, 0);
    put<std::uint16_t>(directory, 0);
    put<std::uint16_t>(directory, 0);
    put<std::uint32_t>(directory, 0);
    put<std::uint32_t>(directory, at);
    put_text(directory, part.name);
    directory.insert(directory.end(), extra.begin(), extra.end());
  }
  const auto at = static_cast<std::uint32_t>(out.size());
  out.insert(out.end(), directory.begin(), directory.end());
  put<std::uint32_t>(out, 0x06054b50);
  put<std::uint32_t>(out, 0);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(parts.size()));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(parts.size()));
  put<std::uint32_t>(out, static_cast<std::uint32_t>(directory.size()));
  put<std::uint32_t>(out, at);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(comment.size()));
  put_text(out, comment);
  return out;
}

Tensor counting(std::int64_t n) {
  Tensor t(DType::i64, {n});
  std::iota(t.mutable_data<std::int64_t>().begin(), t.mutable_data<std::int64_t>().end(), 7);
  return t;
}
std::string error_of(const Bytes& file, std::string_view name, std::uint64_t bytes_max = kNpzBytesMax) {
  const auto read = read_npz(file, name, DType::undefined, bytes_max);
  return read ? std::string("none") : read.error().message;
}
bool says(const std::string& error, std::string_view part) { return error.find(part) != std::string::npos; }

TEST(Npz, StoredAndDeflatedArraysAreRead) {
  const Tensor a = counting(40'000);
  const Tensor b = Tensor::of<float>({2, 2}, {1, 2, 3, 4});
  const Bytes file = zip_of(
      {{"a.npy", *write_npy(a)}, {"deep/b.npy", *write_npy(b), 0}, {"notes.txt", to_bytes("x"), 0}, {"w.npy", *write_npy(b), 8, true}},
      "a comment PK\5\6 with a false end");
  EXPECT_EQ(npz_names(file).value(), (std::vector<std::string>{"a", "deep/b", "w"}));
  EXPECT_TRUE(equal_bits(read_npz(file, "a").value(), a));
  EXPECT_TRUE(equal_bits(read_npz(file, "deep/b", DType::f32).value(), b));
  EXPECT_TRUE(equal_bits(read_npz(file, "w").value(), b));
  EXPECT_TRUE(says(error_of(file, "c"), "no array 'c'; there are: a, deep/b, w"));
  const auto other = read_npz(file, "a", DType::f32);
  ASSERT_FALSE(other);
  EXPECT_TRUE(says(other.error().message, "array 'a': the values are int64; float32 is needed"));
  EXPECT_TRUE(npz_names(zip_of({})).value().empty());
}

TEST(Npz, WhatIsClaimedIsCheckedBeforeMemoryIsTaken) {
  const Bytes zeros = *write_npy(Tensor(DType::u8, {1 << 22}));
  const Bytes bomb = zip_of({{"z.npy", zeros}});
  ASSERT_LT(bomb.size(), zeros.size() / 500);
  EXPECT_EQ(error_of(bomb, "z"), "none");
  EXPECT_TRUE(says(error_of(bomb, "z", 1 << 20), "would take 4194432 bytes, at most 1048576"));
  // More than deflate can give; less and more than comes out; a sum that does not fit.
  const Bytes small = *write_npy(counting(3));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 8, false, 1U << 31}}), "s"), "more than"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 8, true, std::uint64_t{1} << 60}}), "s"), "at most"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 8, false, small.size() - 1}}), "s"), "does not unpack"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 8, false, small.size() + 1}}), "s"), "does not unpack"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 8, false, 0}}), "s"), "does not unpack"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 0, false, small.size() + 1}}), "s"), "two sizes"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 8, false, ~0ULL, 1}}), "s"), "checksum"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 12}}), "s"), "packed by method 12"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small, 0, false, ~0ULL, 0, 1}}), "s"), "encrypted"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", small}, {"s.npy", small}}), "s"), "two entries"));
  EXPECT_TRUE(says(error_of(zip_of({{"s.npy", to_bytes("hello, this is text")}}), "s"), "no .npy file"));
}

TEST(Npz, NoCutAndNoFlippedByteDoesHarm) {
  const Bytes file = zip_of({{"a.npy", *write_npy(counting(5))}, {"b.npy", *write_npy(counting(3)), 0, true}});
  for (std::size_t size = 0; size < file.size(); ++size)
    EXPECT_FALSE(read_npz(ByteView(file).first(size), "a")) << size << " of " << file.size() << " bytes";
  std::size_t refused = 0;
  for (std::size_t at = 0; at < file.size(); ++at) {
    for (const std::uint8_t flip : {0x01, 0x80, 0xFF}) {
      Bytes other = file;
      other[at] ^= flip;
      for (const char* name : {"a", "b"}) {
        const auto read = read_npz(other, name);
        if (!read) {
          ++refused;
        } else {
          EXPECT_TRUE(equal_bits(*read, counting(name[0] == 'a' ? 5 : 3))) << "byte " << at << " of array " << name;
        }
      }
    }
  }
  EXPECT_GT(refused, file.size());
}

}  // namespace
}  // namespace falaj::kernels
