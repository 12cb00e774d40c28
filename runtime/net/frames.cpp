#include "runtime/net/frames.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"

namespace falaj::net {
namespace {

std::uint32_t number_at(std::span<const std::uint8_t> bytes, std::size_t offset) {
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// The size of the message at the front with its table; nullopt: the table is not whole yet.
Result<std::optional<std::size_t>> framed_size(std::span<const std::uint8_t> bytes, std::size_t bytes_max) {
  if (bytes.size() < 8) return std::optional<std::size_t>();
  const std::uint32_t further = number_at(bytes, 0);
  if (further >= limits::kSegmentsMax) {
    return error(ErrorCode::corrupt,
                 format("a message of {} segments; at most {} are read", std::uint64_t{further} + 1, limits::kSegmentsMax));
  }
  const std::size_t segments = further + 1U;
  const std::size_t table = (segments / 2 + 1) * 8;
  if (bytes.size() < table) return std::optional<std::size_t>();
  std::uint64_t total = table;
  for (std::size_t i = 0; i < segments; ++i) total += std::uint64_t{number_at(bytes, 4 + 4 * i)} * 8;
  if (total > bytes_max)
    return error(ErrorCode::corrupt,
                 format("a message of {} bytes where at most {} are read; larger data goes in chunks", total, bytes_max));
  if (total == table) return error(ErrorCode::corrupt, "a message without content");
  return std::optional<std::size_t>(total);
}

}  // namespace

FrameReader::FrameReader() : staging_(std::make_unique_for_overwrite<std::uint8_t[]>(kStaging)) {}

std::span<std::uint8_t> FrameReader::space() {
  if (large_.has_value()) return large_->buffer.writable().subspan(large_->filled);
  if (begin_ == end_) begin_ = end_ = 0;
  if (kStaging - end_ < kDirectMin && begin_ > 0) {
    std::memmove(staging_.get(), staging_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  return {staging_.get() + end_, kStaging - end_};
}

void FrameReader::commit(std::size_t bytes) {
  if (large_.has_value()) {
    large_->filled += bytes;
  } else {
    end_ += bytes;
  }
}

Result<std::optional<Message>> FrameReader::next_hello() {
  FALAJ_ASSIGN(const auto size, framed_size(waiting(), limits::kEnvelopeBytesMax));
  if (!size.has_value() || waiting().size() < *size) return std::optional<Message>();
  FALAJ_ASSIGN(auto hello, message_from_bytes(TypeId(capnp::typeId<messages::Hello>()), waiting().first(*size)));
  begin_ += *size;
  return std::optional<Message>(std::move(hello));
}

Result<bool> FrameReader::next(Frame& frame) {
  if (large_.has_value()) {
    if (large_->filled < large_->buffer.writable().size()) return false;
    FALAJ_TRY(read_header(large_envelope_, frame.header));
    FALAJ_ASSIGN(frame.body, std::move(large_->buffer).finish(frame.header.type));
    large_.reset();
    return true;
  }
  const auto bytes = waiting();
  if (bytes.size() < wanted_) return false;
  FALAJ_ASSIGN(const auto envelope_size, framed_size(bytes, limits::kEnvelopeBytesMax));
  if (!envelope_size.has_value() || bytes.size() < *envelope_size) {
    wanted_ = envelope_size.value_or(bytes.size() + 1);
    return false;
  }
  const auto envelope = bytes.first(*envelope_size);
  FALAJ_TRY(read_header(envelope, frame.header));
  const auto kind = frame.header.kind;
  if (kind == messages::Kind::HEARTBEAT || kind == messages::Kind::HEARTBEAT_REPLY) {
    begin_ += *envelope_size;
    wanted_ = 0;
    frame.body = Message();
    return true;
  }
  const auto rest = bytes.subspan(*envelope_size);
  FALAJ_ASSIGN(const auto size, framed_size(rest, limits::kMessageBytesMax));
  const std::size_t here = std::min(size.value_or(0), rest.size());
  if (!size.has_value() || (here < *size && *size < kDirectMin)) {
    wanted_ = size.has_value() ? *envelope_size + *size : bytes.size() + 1;
    return false;
  }
  FALAJ_ASSIGN(auto buffer, MessageBuffer::allocate(*size));
  std::memcpy(buffer.writable().data(), rest.data(), here);
  begin_ += *envelope_size + here;
  wanted_ = 0;
  if (here < *size) {
    large_envelope_.assign(envelope.begin(), envelope.end());
    large_.emplace(Large{std::move(buffer), here});
    return false;
  }
  FALAJ_ASSIGN(frame.body, std::move(buffer).finish(frame.header.type));
  return true;
}

Bytes heartbeat_envelope(messages::Kind kind, std::uint64_t correlation) {
  Header header;
  header.kind = kind;
  header.correlation = correlation;
  HeaderBytes space;
  const auto bytes = write_header(header, space);
  return {bytes.begin(), bytes.end()};
}

}  // namespace falaj::net
