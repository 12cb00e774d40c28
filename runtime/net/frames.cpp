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

Result<std::optional<Message>> FrameReader::take(std::size_t bytes_max, TypeId type) {
  if (large_.has_value()) {
    if (large_->filled < large_->buffer.writable().size()) return std::optional<Message>();
    auto whole = std::move(large_->buffer).finish(type);
    large_.reset();
    if (!whole.has_value()) return std::move(whole).error();
    return std::optional<Message>(std::move(whole).value());
  }
  FALAJ_ASSIGN(const auto size, framed_size(waiting(), bytes_max));
  if (!size.has_value()) return std::optional<Message>();
  const std::size_t here = std::min(*size, end_ - begin_);
  if (here < *size && *size < kDirectMin) return std::optional<Message>();
  FALAJ_ASSIGN(auto buffer, MessageBuffer::allocate(*size));
  std::memcpy(buffer.writable().data(), staging_.get() + begin_, here);
  begin_ += here;
  if (here < *size) {
    large_.emplace(Large{std::move(buffer), here});
    return std::optional<Message>();
  }
  FALAJ_ASSIGN(auto whole, std::move(buffer).finish(type));
  return std::optional<Message>(std::move(whole));
}

Result<std::optional<Message>> FrameReader::next_hello() {
  return take(limits::kEnvelopeBytesMax, TypeId(capnp::typeId<messages::Hello>()));
}

Result<std::optional<Frame>> FrameReader::next() {
  if (!frame_.has_value()) {
    FALAJ_ASSIGN(auto envelope, take(limits::kEnvelopeBytesMax, TypeId(capnp::typeId<messages::Envelope>())));
    if (!envelope.has_value()) return std::optional<Frame>();
    Frame frame;
    {
      const auto view = envelope->open<messages::Envelope>();
      if (!view.has_value()) return view.error();
      frame.kind = (*view)->getKind();
      frame.correlation = (*view)->getCorrelation();
      body_type_ = TypeId((*view)->getTypeId());
    }
    frame.envelope = std::move(*envelope);
    if (frame.kind == messages::Kind::HEARTBEAT || frame.kind == messages::Kind::HEARTBEAT_REPLY)
      return std::optional<Frame>(std::move(frame));
    frame_ = std::move(frame);
  }
  FALAJ_ASSIGN(auto body, take(limits::kMessageBytesMax, body_type_));
  if (!body.has_value()) return std::optional<Frame>();
  frame_->body = std::move(*body);
  std::optional<Frame> whole(std::move(*frame_));
  frame_.reset();
  return whole;
}

Bytes heartbeat_envelope(messages::Kind kind, std::uint64_t correlation) {
  const auto message = Message::build<messages::Envelope>(
      [&](messages::Envelope::Builder envelope) {
        envelope.setKind(kind);
        envelope.setCorrelation(correlation);
      },
      24);
  const auto bytes = message.bytes();
  return {bytes.begin(), bytes.end()};
}

}  // namespace falaj::net
