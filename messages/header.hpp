// Header: an Envelope (envelope.capnp) as plain fields, for those that read and write one with every message: links and hosts.
//
// The bytes are the schema's, in standard stream framing; no memory is allocated on the way, but for envelopes that Cap'n Proto allows and
// hardly anybody writes. Byte by byte, as write_header() leaves them (words of 8 bytes, little-endian,
// https://capnproto.org/encoding.html):
//
//   word 0       segment table: 0, then the words that follow
//   word 1       pointer to the Envelope
//   Envelope     kind (2 bytes), sampled (1 bit), typeId, correlation, budgetUs, traceHigh, traceLow, span: a word each, as far as the
//                last that is not zero; then pointers to `to`, `from`, `scope`, as far as the last that is set
//   to, from     node, incarnation, actor, as far as the last that is not zero; then a pointer to the name, if there is one
//   scope        pointers to principal, tenant, purpose, residency, idempotencyKey, as far as the last that is not empty
//   texts        behind the struct that they belong to, each with its NUL, filled up to whole words
//
// A tell to an actor of a short name takes 96 bytes so, a reply 72.
//
// Ways to get hurt: the texts of a header that was read point into the bytes that it was read from.
#pragma once
#include <array>
#include <string_view>

#include "messages/message.hpp"
//
#include "messages/envelope.capnp.h"

namespace falaj {

struct Header {
  struct Address {
    std::uint64_t node = 0;
    std::uint64_t incarnation = 0;
    std::uint64_t actor = 0;
    std::string_view name;
  };
  struct Scope {
    std::string_view principal;
    std::string_view tenant;
    std::string_view purpose;
    std::string_view residency;
    std::string_view idempotency_key;
  };

  messages::Kind kind = messages::Kind::TELL;
  bool sampled = false;
  bool has_scope = false;
  TypeId type;
  std::uint64_t correlation = 0;
  std::uint64_t budget_us = 0;
  std::uint64_t trace_high = 0;
  std::uint64_t trace_low = 0;
  std::uint64_t span = 0;
  Address to;
  Address from;
  Scope scope;
  Message unusual;  // read_header's: what the texts of an envelope of several segments and the like point into
};

// `framed`: one whole Envelope, its segment table included. What cannot be read, or not to its end, is an error, as for Message::open.
Status read_header(ByteView framed, Header& header);

// Enough for any envelope that may be sent.
using HeaderBytes = std::array<std::uint64_t, 512>;

// The framed envelope, in `into`; empty if it does not fit.
[[nodiscard]] ByteView write_header(const Header& header, HeaderBytes& into) noexcept;

}  // namespace falaj
