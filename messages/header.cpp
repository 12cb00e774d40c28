#include "messages/header.hpp"

#include <algorithm>
#include <cstring>
#include <optional>

#include "runtime/base/limits.hpp"

namespace falaj {

static_assert(sizeof(HeaderBytes) == limits::kEnvelopeBytesMax);

namespace {

// Where the fields of an Envelope lie; tests/messages/header_test.cpp compares with what Cap'n Proto writes.
enum EnvelopeWord : unsigned { kKind, kType, kCorrelation, kBudget, kTraceHigh, kTraceLow, kSpan, kEnvelopeWords };
enum EnvelopePointer : unsigned { kTo, kFrom, kScope, kEnvelopePointers };
constexpr std::uint64_t kSampledBit = 1U << 16;
constexpr unsigned kAddressWords = 3;
constexpr unsigned kAddressPointers = 1;
constexpr unsigned kScopePointers = 5;

constexpr unsigned kStructPointer = 0;
constexpr unsigned kListPointer = 1;
constexpr unsigned kByteElements = 2;

// ---- in ----------------------------------------------------------------------------------------------------------------------------

// The only segment of a message. Each function says false (or nothing) for what is out of bounds and for what is merely unusual: then
// Cap'n Proto's own reader decides.
class Segment {
 public:
  struct Struct {
    std::size_t data = 0;
    std::size_t pointers = 0;
    unsigned data_words = 0;
    unsigned pointer_count = 0;
  };

  explicit Segment(ByteView bytes) noexcept : bytes_(bytes.data()), words_(bytes.size() / 8) {}

  [[nodiscard]] std::uint64_t word(std::size_t at) const noexcept {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes_ + at * 8, 8);
    return value;
  }
  [[nodiscard]] std::uint64_t field(const Struct& s, unsigned index) const noexcept {
    return index < s.data_words ? word(s.data + index) : 0;
  }
  [[nodiscard]] std::uint64_t pointer(const Struct& s, unsigned index) const noexcept {
    return index < s.pointer_count ? word(s.pointers + index) : 0;
  }

  // The struct that the pointer at `at` leads to. It may have more pointers than we know, of a newer peer, but only null ones.
  [[nodiscard]] bool follow(std::size_t at, unsigned known_pointers, Struct& out) const noexcept {
    const auto pointer = word(at);
    if ((pointer & 3) != kStructPointer) return false;
    out.data_words = static_cast<std::uint16_t>(pointer >> 32);
    out.pointer_count = static_cast<std::uint16_t>(pointer >> 48);
    const auto first = target(at, pointer, out.data_words + out.pointer_count);
    if (!first) return false;
    out.data = *first;
    out.pointers = *first + out.data_words;
    for (unsigned i = known_pointers; i < out.pointer_count; ++i) {
      if (word(out.pointers + i) != 0) return false;
    }
    return true;
  }

  [[nodiscard]] bool text(const Struct& s, unsigned index, std::string_view& out) const noexcept {
    out = {};
    if (pointer(s, index) == 0) return true;
    const std::size_t at = s.pointers + index;
    const auto pointer = word(at);
    if ((pointer & 3) != kListPointer || ((pointer >> 32) & 7) != kByteElements) return false;
    const std::size_t size = pointer >> 35;
    const auto first = target(at, pointer, (size + 7) / 8);
    if (!first || size == 0 || bytes_[*first * 8 + size - 1] != 0) return false;
    out = {reinterpret_cast<const char*>(bytes_ + *first * 8), size - 1};
    return true;
  }

 private:
  [[nodiscard]] std::optional<std::size_t> target(std::size_t at, std::uint64_t pointer, std::size_t count) const noexcept {
    const std::int64_t offset = static_cast<std::int32_t>(static_cast<std::uint32_t>(pointer)) >> 2;
    const std::int64_t first = static_cast<std::int64_t>(at) + 1 + offset;
    if (first < 0 || static_cast<std::uint64_t>(first) + count > words_) return std::nullopt;
    return static_cast<std::size_t>(first);
  }

  const std::uint8_t* bytes_;
  std::size_t words_;
};

bool read_address(const Segment& segment, const Segment::Struct& envelope, unsigned index, Header::Address& out) noexcept {
  out = {};
  if (segment.pointer(envelope, index) == 0) return true;
  Segment::Struct address;
  if (!segment.follow(envelope.pointers + index, kAddressPointers, address)) return false;
  out.node = segment.field(address, 0);
  out.incarnation = segment.field(address, 1);
  out.actor = segment.field(address, 2);
  return segment.text(address, 0, out.name);
}

bool read_scope(const Segment& segment, const Segment::Struct& envelope, Header& header) noexcept {
  header.has_scope = segment.pointer(envelope, kScope) != 0;
  header.scope = {};
  if (!header.has_scope) return true;
  Segment::Struct scope;
  auto& s = header.scope;
  return segment.follow(envelope.pointers + kScope, kScopePointers, scope) && segment.text(scope, 0, s.principal) &&
         segment.text(scope, 1, s.tenant) && segment.text(scope, 2, s.purpose) && segment.text(scope, 3, s.residency) &&
         segment.text(scope, 4, s.idempotency_key);
}

bool read_usual(ByteView framed, Header& header) noexcept {
  if (framed.size() < 16 || framed.size() % 8 != 0) return false;
  if (Segment(framed).word(0) != std::uint64_t{framed.size() / 8 - 1} << 32) return false;  // not one segment
  const Segment segment(framed.subspan(8));
  Segment::Struct envelope;
  if (segment.word(0) == 0 || !segment.follow(0, kEnvelopePointers, envelope)) return false;
  const auto first = segment.field(envelope, kKind);
  header.kind = static_cast<messages::Kind>(static_cast<std::uint16_t>(first));
  header.sampled = (first & kSampledBit) != 0;
  header.type = TypeId(segment.field(envelope, kType));
  header.correlation = segment.field(envelope, kCorrelation);
  header.budget_us = segment.field(envelope, kBudget);
  header.trace_high = segment.field(envelope, kTraceHigh);
  header.trace_low = segment.field(envelope, kTraceLow);
  header.span = segment.field(envelope, kSpan);
  return read_address(segment, envelope, kTo, header.to) && read_address(segment, envelope, kFrom, header.from) &&
         read_scope(segment, envelope, header);
}

Header::Address address_of(messages::Address::Reader from) {
  return {from.getNode(), from.getIncarnation(), from.getActor(), text(from.getName())};
}

}  // namespace

Status read_header(ByteView framed, Header& header) {
  if (header.unusual) header.unusual = Message();
  if (read_usual(framed, header)) return {};
  FALAJ_ASSIGN(header.unusual, message_from_bytes(TypeId(capnp::typeId<messages::Envelope>()), framed));
  FALAJ_ASSIGN(const auto view, header.unusual.open<messages::Envelope>());
  const auto& e = *view;
  header.kind = e.getKind();
  header.sampled = e.getSampled();
  header.type = TypeId(e.getTypeId());
  header.correlation = e.getCorrelation();
  header.budget_us = e.getBudgetUs();
  header.trace_high = e.getTraceHigh();
  header.trace_low = e.getTraceLow();
  header.span = e.getSpan();
  header.to = address_of(e.getTo());
  header.from = address_of(e.getFrom());
  header.has_scope = e.hasScope();
  const auto s = e.getScope();
  header.scope = {text(s.getPrincipal()), text(s.getTenant()), text(s.getPurpose()), text(s.getResidency()), text(s.getIdempotencyKey())};
  return {};
}

// ---- out ---------------------------------------------------------------------------------------------------------------------------

namespace {

class Writer {
 public:
  explicit Writer(HeaderBytes& into) noexcept : words_(into) {}

  // Room for so many words; zero and failed() if there is none.
  std::size_t take(std::size_t count) noexcept {
    if (count > words_.size() - end_) {
      failed_ = true;
      return 0;
    }
    return std::exchange(end_, end_ + count);
  }

  // A struct behind what was written, and the pointer at `from` to it. Data is given, pointers are null.
  std::size_t structure(std::size_t from, const std::uint64_t* data, unsigned data_words, unsigned pointers) noexcept {
    const auto first = take(std::size_t{data_words} + pointers);
    if (failed_) return 0;
    std::copy_n(data, data_words, words_.begin() + static_cast<std::ptrdiff_t>(first));
    std::fill_n(words_.begin() + static_cast<std::ptrdiff_t>(first + data_words), pointers, 0);
    words_[from] = std::uint64_t{pointers} << 48 | std::uint64_t{data_words} << 32 | offset(from, first) << 2 | kStructPointer;
    return first + data_words;
  }

  void text(std::size_t from, std::string_view value) noexcept {
    if (value.empty() || failed_) return;
    if (value.size() >= sizeof(HeaderBytes)) {
      failed_ = true;
      return;
    }
    const std::size_t size = value.size() + 1;
    const auto first = take((size + 7) / 8);
    if (failed_) return;
    words_[end_ - 1] = 0;
    std::memcpy(&words_[first], value.data(), value.size());
    words_[from] = std::uint64_t{size} << 35 | std::uint64_t{kByteElements} << 32 | offset(from, first) << 2 | kListPointer;
  }

  [[nodiscard]] bool failed() const noexcept { return failed_; }
  [[nodiscard]] std::size_t size() const noexcept { return end_; }

 private:
  static std::uint64_t offset(std::size_t from, std::size_t to) noexcept { return to - from - 1; }  // always ahead

  HeaderBytes& words_;
  std::size_t end_ = 0;
  bool failed_ = false;
};

unsigned used(const std::uint64_t* words, unsigned count) noexcept {
  while (count > 0 && words[count - 1] == 0) --count;
  return count;
}

bool is_set(const Header::Address& address) noexcept {
  return (address.node | address.incarnation | address.actor) != 0 || !address.name.empty();
}

void write_address(Writer& writer, std::size_t from, const Header::Address& address) noexcept {
  if (!is_set(address)) return;
  const std::uint64_t data[kAddressWords] = {address.node, address.incarnation, address.actor};
  const auto pointers = writer.structure(from, data, used(data, kAddressWords), address.name.empty() ? 0 : kAddressPointers);
  writer.text(pointers, address.name);
}

void write_scope(Writer& writer, std::size_t from, const Header::Scope& scope) noexcept {
  const std::string_view texts[kScopePointers] = {scope.principal, scope.tenant, scope.purpose, scope.residency, scope.idempotency_key};
  unsigned count = kScopePointers;
  while (count > 1 && texts[count - 1].empty()) --count;  // one at least: a pointer to nothing at all would be null
  const auto pointers = writer.structure(from, nullptr, 0, count);
  for (unsigned i = 0; i < count; ++i) writer.text(pointers + i, texts[i]);
}

}  // namespace

ByteView write_header(const Header& header, HeaderBytes& into) noexcept {
  Writer writer(into);
  writer.take(2);
  const std::uint64_t data[kEnvelopeWords] = {
      static_cast<std::uint16_t>(header.kind) | (header.sampled ? kSampledBit : 0),
      header.type.value(),
      header.correlation,
      header.budget_us,
      header.trace_high,
      header.trace_low,
      header.span,
  };
  const unsigned pointer_count = header.has_scope ? kScope + 1 : is_set(header.from) ? kFrom + 1 : is_set(header.to) ? kTo + 1 : 0;
  const auto pointers = writer.structure(1, data, std::max(used(data, kEnvelopeWords), 1U), pointer_count);
  write_address(writer, pointers + kTo, header.to);
  write_address(writer, pointers + kFrom, header.from);
  if (header.has_scope) write_scope(writer, pointers + kScope, header.scope);
  if (writer.failed()) return {};
  into[0] = std::uint64_t{writer.size() - 1} << 32;
  return {reinterpret_cast<const std::uint8_t*>(into.data()), writer.size() * 8};
}

}  // namespace falaj
