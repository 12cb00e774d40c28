#include "messages/message.hpp"

#include <cstdlib>
#include <new>
#include <stdexcept>

#include "messages/layout.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/pool.hpp"

namespace falaj {

namespace {
// Most messages are short: those of up to one of these sizes, what stands before the bytes included, are recycled.
constexpr std::size_t kShort = 64;
constexpr std::size_t kMedium = 192;
}  // namespace

Message::Rep* Message::Rep::make(std::size_t capacity) {
  const auto at = [](void* memory, std::size_t size) {
    auto* rep = new (memory) Rep;
    rep->capacity = size - sizeof(Rep);
    return rep;
  };
  const std::size_t size = sizeof(Rep) + capacity;
  if (size <= kShort) return at(BlockPool<kShort>::take(), kShort);
  if (size <= kMedium) return at(BlockPool<kMedium>::take(), kMedium);
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return at(memory, size);
}

void Message::release(Rep* rep) noexcept {
  if (rep == nullptr) return;
  // The only holder need not count down. Loads with acquire, no fence: ThreadSanitizer does not see fences.
  if (rep->references.load(std::memory_order_acquire) != 1) {
    if (rep->references.fetch_sub(1, std::memory_order_release) != 1) return;
    static_cast<void>(rep->references.load(std::memory_order_acquire));
  }
  const std::size_t size = sizeof(Rep) + rep->capacity;
  rep->~Rep();
  if (size == kShort) {
    BlockPool<kShort>::give(rep);
  } else if (size == kMedium) {
    BlockPool<kMedium>::give(rep);
  } else {
    std::free(rep);
  }
}

Message::Arena::Arena(std::size_t words) : first_(Rep::make((std::max<std::size_t>(words, 3) + 1) * 8)) {
  std::memset(first_->data(), 0, first_->capacity);
}

Message::Arena::~Arena() noexcept(false) { Message::release(first_); }

kj::ArrayPtr<capnp::word> Message::Arena::allocateSegment(unsigned minimum) {
  if (!handed_out_) {
    handed_out_ = true;
    const std::size_t room = first_->capacity / 8 - 1;
    if (room >= minimum) {
      total_ = room;
      return {reinterpret_cast<capnp::word*>(first_->data()) + 1, room};
    }
  }
  const std::size_t size = std::max<std::size_t>(minimum, total_);
  total_ += size;
  more_.push_back(std::make_unique<capnp::word[]>(size));  // zeroed
  return {more_.back().get(), size};
}

namespace {

void write_table(std::uint8_t* to, std::size_t words) {
  const std::uint32_t table[2] = {0, static_cast<std::uint32_t>(words)};  // little-endian hosts only, as all of Falaj
  std::memcpy(to, table, sizeof table);
}

}  // namespace

Message Message::Arena::finish(TypeId type) && {
  const auto segments = getSegmentsForOutput();
  if (segments.size() == 1 && more_.empty()) {
    auto* rep = std::exchange(first_, nullptr);
    rep->size = (segments[0].size() + 1) * 8;
    rep->type = type;
    rep->trusted.store(true, std::memory_order_relaxed);
    write_table(rep->data(), segments[0].size());
    return Message(rep);
  }
  std::size_t words = 0;
  for (const auto& segment : segments) words += segment.size();
  Arena flat(words + 1);
  flat.setRoot(getRoot<capnp::AnyPointer>().asReader());
  return std::move(flat).finish(type);
}

bool Message::fits(const Layout& layout) const noexcept {
  const auto* words = reinterpret_cast<const std::uint64_t*>(rep_->data());
  const std::size_t count = rep_->size / 8;
  if (count < 2 || words[0] != std::uint64_t{count - 1} << 32) return false;  // not one segment
  if (!layout.fits({words + 1, count - 1})) return false;
  rep_->trusted.store(true, std::memory_order_relaxed);
  return true;
}

Result<std::unique_ptr<capnp::FlatArrayMessageReader>> Message::checked(const capnp::StructSchema& schema) const {
  try {
    capnp::ReaderOptions options;
    options.nestingLimit = limits::kNestingMax;
    options.traversalLimitInWords = limits::kTraversalWordsMax;
    {
      capnp::FlatArrayMessageReader reader(words(), options);
      const auto root = reader.getRoot<capnp::AnyStruct>();
      layout_of(schema).walk(root);
      // Also what no field of ours reads must hold together: whoever puts a part of this message into another copies it along.
      capnp::MallocMessageBuilder(static_cast<unsigned>(root.totalSize().wordCount + 1)).setRoot(root);
    }
    options.traversalLimitInWords = ~0ULL;  // the walk above has shown what is reachable
    return std::make_unique<capnp::FlatArrayMessageReader>(words(), options);
  } catch (const kj::Exception& e) {
    return error(ErrorCode::corrupt, format("message {} is malformed: {}", schema.getShortDisplayName().cStr(), e.getDescription().cStr()));
  } catch (const std::length_error& e) {
    return error(ErrorCode::corrupt, format("message {}: {}", schema.getShortDisplayName().cStr(), e.what()));
  }
}

Message Message::from_words(TypeId type, const void* words, std::size_t count) {
  auto* rep = Rep::make((count + 1) * 8);
  rep->size = (count + 1) * 8;
  rep->type = type;
  rep->trusted.store(true, std::memory_order_relaxed);
  write_table(rep->data(), count);
  std::memcpy(rep->data() + 8, words, count * 8);
  return Message(rep);
}

Message Message::from_root(TypeId type, capnp::AnyPointer::Reader root) {
  Arena arena(root.targetSize().wordCount + 2);
  arena.setRoot(root);
  return std::move(arena).finish(type);
}

Result<DynamicView> Message::open_dynamic(const capnp::StructSchema& schema) const {
  if (rep_ == nullptr || type() != TypeId(schema.getProto().getId())) return error(ErrorCode::unimplemented, "message is of another type");
  FALAJ_ASSIGN(auto reader, checked(schema));
  return DynamicView(schema, std::move(reader), *this);
}

capnp::DynamicStruct::Reader DynamicView::root() const { return reader_->getRoot<capnp::DynamicStruct>(schema_); }

Result<MessageBuffer> MessageBuffer::allocate(std::size_t bytes) {
  if (bytes % 8 != 0 || bytes < 16 || bytes > limits::kMessageBytesMax) {
    return invalid(format("a message of {} bytes: must be a multiple of 8 between 16 and {}", bytes, limits::kMessageBytesMax));
  }
  auto* rep = Message::Rep::make(bytes);
  rep->size = bytes;
  return MessageBuffer(rep);
}

Result<Message> MessageBuffer::finish(TypeId type) && {
  std::uint32_t segments = 0;
  std::memcpy(&segments, rep_->data(), 4);
  ++segments;  // the table holds the count less one
  if (segments == 0 || segments > limits::kSegmentsMax)
    return error(ErrorCode::corrupt, format("a message of {} segments; at most {} are read", segments, limits::kSegmentsMax));
  std::size_t expected = (segments / 2 + 1) * 8ULL;
  if (expected > rep_->size) return error(ErrorCode::corrupt, "a message shorter than its segment table");
  for (std::uint32_t i = 0; i < segments; ++i) {
    std::uint32_t words = 0;
    std::memcpy(&words, rep_->data() + 4 + 4ULL * i, 4);
    expected += 8ULL * words;
  }
  if (expected != rep_->size)
    return error(ErrorCode::corrupt, format("a message of {} bytes whose segments add up to {}", rep_->size, expected));
  rep_->type = type;
  return Message(std::exchange(rep_, nullptr));
}

Result<Message> message_from_bytes(TypeId type, ByteView bytes) {
  FALAJ_ASSIGN(auto buffer, MessageBuffer::allocate(bytes.size()));
  std::memcpy(buffer.writable().data(), bytes.data(), bytes.size());
  return std::move(buffer).finish(type);
}

void throw_wrong_type(TypeId wanted, TypeId found) {
  throw std::logic_error(format("message of type {:x} read as {:x}", found.value(), wanted.value()));
}

}  // namespace falaj
