// Cuts the bytes of a connection into messages. Pure: no socket, no clock; tests/fuzz/frame_reader.cpp feeds it anything.
//
// Small messages are collected in one staging buffer, where their envelopes are read as they lie and from where their bodies are copied
// out; a large body gets its Message memory as soon as its segment table is known, and space() then is that memory: what TLS decrypts
// lands where it stays.
//
// Bounded: the staging buffer, one envelope, and one message of at most the limit of what is expected next.
#pragma once
#include <memory>
#include <optional>
#include <span>

#include "messages/header.hpp"

namespace falaj::net {

struct Frame {
  Header header;
  Message body;  // empty for heartbeats
};

class FrameReader {
 public:
  FrameReader();

  // Where to put the next bytes; never empty. Then commit() how many there were.
  [[nodiscard]] std::span<std::uint8_t> space();
  void commit(std::size_t bytes);

  // nullopt: more bytes are needed. An error is final: the stream cannot be read any further.
  Result<std::optional<Message>> next_hello();
  // False: more bytes are needed. The texts of the header are there until the next call of next() or space().
  Result<bool> next(Frame& frame);

 private:
  static constexpr std::size_t kStaging = 64U << 10;
  static constexpr std::size_t kDirectMin = 8U << 10;  // smaller messages wait in staging until they are whole
  struct Large {
    MessageBuffer buffer;
    std::size_t filled;
  };

  [[nodiscard]] std::span<const std::uint8_t> waiting() const { return {staging_.get() + begin_, end_ - begin_}; }

  std::unique_ptr<std::uint8_t[]> staging_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::size_t wanted_ = 0;      // bytes that must wait before it is worth looking again
  std::optional<Large> large_;  // a body under way
  Bytes large_envelope_;        // of that body
};

// A framed envelope of a heartbeat or of its reply.
Bytes heartbeat_envelope(messages::Kind kind, std::uint64_t correlation);

}  // namespace falaj::net
