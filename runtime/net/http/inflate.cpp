#include "runtime/net/http/inflate.hpp"

#include <zlib.h>

#include <algorithm>
#include <memory>

#include "runtime/base/format.hpp"

namespace falaj::net {
namespace {

bool same(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) { return (x | 0x20) == (y | 0x20); });
}

constexpr int kAnyHeader = 15 + 32;  // zlib or gzip, told by the first bytes
constexpr int kRaw = -15;            // some clients call raw deflate "deflate"

Result<Bytes> inflate_all(const Bytes& body, int window, std::size_t bytes_max) {
  z_stream stream{};
  if (inflateInit2(&stream, window) != Z_OK) return failed("zlib: no memory");
  const auto end = [](z_stream* s) { inflateEnd(s); };
  const std::unique_ptr<z_stream, decltype(end)> guard(&stream, end);
  stream.next_in = const_cast<Bytef*>(body.data());
  stream.avail_in = static_cast<uInt>(body.size());
  Bytes out(std::min(bytes_max, std::max<std::size_t>(body.size() * 4, 4096)));
  std::size_t filled = 0;
  for (;;) {
    stream.next_out = out.data() + filled;
    stream.avail_out = static_cast<uInt>(out.size() - filled);
    const int code = inflate(&stream, Z_NO_FLUSH);
    filled = out.size() - stream.avail_out;
    if (code == Z_STREAM_END) break;
    if (code != Z_OK && code != Z_BUF_ERROR)
      return invalid(format("body: broken compression: {}", stream.msg != nullptr ? stream.msg : "no detail"));
    if (stream.avail_out != 0) return invalid("body: compressed data ends too early");
    if (out.size() == bytes_max) return error(ErrorCode::overloaded, format("body: more than {} bytes when inflated", bytes_max));
    out.resize(std::min(bytes_max, out.size() * 2));
  }
  if (stream.avail_in != 0) return invalid("body: bytes after the compressed data");
  out.resize(filled);
  return out;
}

}  // namespace

Result<Bytes> decode_content(std::string_view encoding, Bytes body, std::size_t bytes_max) {
  if (encoding.empty() || same(encoding, "identity")) return body;
  if (body.size() >= (1ULL << 32) || bytes_max >= (1ULL << 32)) return error(ErrorCode::overloaded, "body: too large to inflate");
  if (same(encoding, "gzip") || same(encoding, "x-gzip")) return inflate_all(body, kAnyHeader, bytes_max);
  if (same(encoding, "deflate")) {
    auto wrapped = inflate_all(body, kAnyHeader, bytes_max);
    if (wrapped.has_value() || wrapped.error().code != ErrorCode::invalid) return wrapped;
    return inflate_all(body, kRaw, bytes_max);
  }
  return error(ErrorCode::unimplemented, format("Content-Encoding '{}': gzip and deflate are understood", encoding.substr(0, 40)));
}

}  // namespace falaj::net
