#include "messages/layout.hpp"

#include <capnp/list.h>

#include <array>
#include <cstring>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>

#include "messages/envelope.capnp.h"
#include "runtime/base/limits.hpp"

namespace falaj {

using Which = capnp::schema::Type::Which;

class Layouts {
 public:
  const Layout& get(const capnp::StructSchema& schema) {
    const auto id = schema.getProto().getId();
    {
      const std::shared_lock lock(mutex_);
      const auto known = map_.find(id);
      if (known != map_.end()) return *known->second;
    }
    const std::unique_lock lock(mutex_);
    return make(schema);
  }

 private:
  const Layout& make(const capnp::StructSchema& schema) {
    auto& layout = map_[schema.getProto().getId()];
    if (layout) return *layout;
    layout = std::make_unique<Layout>();  // known before it is filled: schemas refer to themselves
    auto& made = *layout;
    add_fields(made, schema, {});
    return made;
  }

  void add_fields(Layout& to, const capnp::StructSchema& schema, const std::vector<Layout::Condition>& outer) {
    const auto discriminant = schema.getProto().getStruct().getDiscriminantOffset();
    for (const auto field : schema.getFields()) {
      const auto proto = field.getProto();
      auto conditions = outer;
      if (proto.getDiscriminantValue() != capnp::schema::Field::NO_DISCRIMINANT)
        conditions.push_back({discriminant, proto.getDiscriminantValue()});
      if (proto.isGroup()) {
        add_fields(to, field.getType().asStruct(), conditions);
        continue;
      }
      if (auto type = type_of(field.getType())) to.slots_.push_back({proto.getSlot().getOffset(), std::move(*type), std::move(conditions)});
    }
  }

  // Null: no pointer.
  std::unique_ptr<Layout::Type> type_of(capnp::Type type) {
    auto out = std::make_unique<Layout::Type>();
    switch (type.which()) {
      case Which::TEXT:
        out->kind = Layout::Kind::text;
        return out;
      case Which::DATA:
        out->kind = Layout::Kind::data;
        return out;
      case Which::STRUCT:
        out->kind = Layout::Kind::structure;
        out->structure = &make(type.asStruct());
        return out;
      case Which::LIST:
        out->kind = Layout::Kind::list;
        out->element = type_of(type.asList().getElementType());
        if (!out->element) out->scalar = type.asList().getElementType().which();
        return out;
      case Which::ANY_POINTER:
      case Which::INTERFACE:
        throw std::logic_error("a message may hold no pointer of an unknown type");
      default:
        return nullptr;
    }
  }

  std::shared_mutex mutex_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Layout>> map_;
};

const Layout& layout_of(const capnp::StructSchema& schema) {
  static Layouts layouts;
  return layouts.get(schema);
}

void Layout::walk(capnp::AnyStruct::Reader value, int depth) const {
  if (depth > limits::kNestingMax) throw std::length_error("message is nested too deeply");
  const auto pointers = value.getPointerSection();
  const auto data = value.getDataSection();
  for (const auto& slot : slots_) {
    if (slot.index >= pointers.size()) continue;  // of an older peer
    if (there(slot, data.begin(), data.size())) walk_pointer(pointers[slot.index], slot.type, depth);
  }
}

bool Layout::there(const Slot& slot, const std::uint8_t* data, std::size_t bytes) {
  for (const auto& condition : slot.conditions) {
    std::uint16_t found = 0;
    const auto at = static_cast<std::size_t>(condition.offset) * 2;
    if (at + 2 <= bytes) std::memcpy(&found, data + at, 2);
    if (found != condition.value) return false;
  }
  return true;
}

void Layout::walk_pointer(capnp::AnyPointer::Reader pointer, const Type& type, int depth) {
  if (pointer.isNull()) return;
  switch (type.kind) {
    case Kind::text:
      pointer.getAs<capnp::Text>();
      return;
    case Kind::data:
      pointer.getAs<capnp::Data>();
      return;
    case Kind::structure:
      return type.structure->walk(pointer.getAs<capnp::AnyStruct>(), depth + 1);
    case Kind::list:
      return walk_list(pointer, type, depth + 1);
  }
}

void Layout::walk_list(capnp::AnyPointer::Reader pointer, const Type& type, int depth) {
  if (depth > limits::kNestingMax) throw std::length_error("message is nested too deeply");
  if (type.element && type.element->kind == Kind::structure) {
    // Of any struct: what a list of structs may look like on the wire does not depend on which.
    for (const auto element : pointer.getAs<capnp::List<messages::Empty>>())
      type.element->structure->walk(capnp::AnyStruct::Reader(element), depth + 1);
    return;
  }
  if (type.element) {
    pointer.getAs<capnp::List<capnp::Text>>();  // what a list of pointers may look like does not depend on to what
    const auto list = pointer.getAs<capnp::AnyList>();
    if (list.getElementSize() == capnp::ElementSize::POINTER) {
      for (const auto element : list.as<capnp::List<capnp::AnyPointer>>()) walk_pointer(element, *type.element, depth);
      return;
    }
    // A peer whose schema has made structs of the elements: the pointer is the first of each.
    for (const auto element : list.as<capnp::List<capnp::AnyStruct>>()) {
      walk_pointer(element.getPointerSection()[0], *type.element, depth);
    }
    return;
  }
  switch (type.scalar) {
    case Which::VOID:
      pointer.getAs<capnp::List<capnp::Void>>();
      return;
    case Which::BOOL:
      pointer.getAs<capnp::List<bool>>();
      return;
    case Which::INT8:
    case Which::UINT8:
      pointer.getAs<capnp::List<std::uint8_t>>();
      return;
    case Which::INT16:
    case Which::UINT16:
    case Which::ENUM:
      pointer.getAs<capnp::List<std::uint16_t>>();
      return;
    case Which::INT32:
    case Which::UINT32:
    case Which::FLOAT32:
      pointer.getAs<capnp::List<std::uint32_t>>();
      return;
    default:
      pointer.getAs<capnp::List<std::uint64_t>>();
  }
}

// ---- the words themselves ---------------------------------------------------------------------------------------------------------

class Layout::Words {
 public:
  explicit Words(std::span<const std::uint64_t> segment) : segment_(segment) {}
  [[nodiscard]] std::uint64_t at(std::uint32_t word) const noexcept { return segment_[word]; }
  [[nodiscard]] const std::uint8_t* bytes(std::uint32_t word) const noexcept {
    return reinterpret_cast<const std::uint8_t*>(segment_.data() + word);
  }
  // The word where `count` words begin, `offset` after the pointer at `pointer`. Counts what is visited, so that a small message cannot
  // make us walk for long. Nullopt: out of bounds.
  std::optional<std::uint32_t> target(std::uint32_t pointer, std::int32_t offset, std::uint64_t count) noexcept {
    const std::int64_t first = std::int64_t{pointer} + 1 + offset;
    if (first < 0 || static_cast<std::uint64_t>(first) + count > segment_.size()) return std::nullopt;
    visited_ += count + 1;
    if (visited_ > limits::kTraversalWordsMax) return std::nullopt;
    return static_cast<std::uint32_t>(first);
  }

 private:
  std::span<const std::uint64_t> segment_;
  std::uint64_t visited_ = 0;
};

namespace {

constexpr unsigned kStructPointer = 0;
constexpr unsigned kListPointer = 1;
constexpr unsigned kPointerElements = 6;
constexpr unsigned kCompositeElements = 7;
constexpr std::array<unsigned, 6> kElementBits = {0, 1, 8, 16, 32, 64};

unsigned kind_of(std::uint64_t pointer) { return static_cast<unsigned>(pointer & 3); }
std::int32_t offset_of(std::uint64_t pointer) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(pointer)) >> 2; }
unsigned elements_of(std::uint64_t pointer) { return static_cast<unsigned>(pointer >> 32) & 7; }
std::uint32_t count_of(std::uint64_t pointer) { return static_cast<std::uint32_t>(pointer >> 35); }

unsigned elements_for(Which scalar) {
  switch (scalar) {
    case Which::VOID:
      return 0;
    case Which::BOOL:
      return 1;
    case Which::INT8:
    case Which::UINT8:
      return 2;
    case Which::INT16:
    case Which::UINT16:
    case Which::ENUM:
      return 3;
    case Which::INT32:
    case Which::UINT32:
    case Which::FLOAT32:
      return 4;
    default:
      return 5;
  }
}

}  // namespace

bool Layout::fits(std::span<const std::uint64_t> segment) const {
  if (segment.empty()) return false;
  Words words(segment);
  const auto root = words.at(0);
  if (root == 0 || kind_of(root) != kStructPointer) return false;
  const Struct value{0, static_cast<std::uint16_t>(root >> 32), static_cast<std::uint16_t>(root >> 48)};
  const auto data = words.target(0, offset_of(root), value.data_words + value.pointers);
  return data && fits(words, {*data, value.data_words, value.pointers}, 0);
}

bool Layout::fits(Words& words, const Struct& value, int depth) const {
  if (depth >= limits::kNestingMax || value.pointers > 64) return false;
  const auto* data = words.bytes(value.data);
  const std::uint32_t pointers = value.data + value.data_words;
  std::uint64_t known = 0;
  for (const auto& slot : slots_) {
    if (slot.index >= value.pointers || !there(slot, data, std::size_t{value.data_words} * 8)) continue;
    known |= std::uint64_t{1} << slot.index;
    if (!pointer_fits(words, pointers + slot.index, slot.type, depth)) return false;
  }
  // What nobody reads is copied with the rest, when a struct of this message is put into another.
  for (std::uint32_t i = 0; i < value.pointers; ++i) {
    if ((known >> i & 1) == 0 && words.at(pointers + i) != 0) return false;
  }
  return true;
}

bool Layout::pointer_fits(Words& words, std::uint32_t at, const Type& type, int depth) {
  const auto pointer = words.at(at);
  if (pointer == 0) return true;
  switch (type.kind) {
    case Kind::text:
    case Kind::data: {
      if (kind_of(pointer) != kListPointer || elements_of(pointer) != 2) return false;
      const auto size = count_of(pointer);
      const auto first = words.target(at, offset_of(pointer), (std::uint64_t{size} + 7) / 8);
      if (!first) return false;
      return type.kind == Kind::data || (size > 0 && words.bytes(*first)[size - 1] == 0);
    }
    case Kind::structure: {
      if (kind_of(pointer) != kStructPointer) return false;
      const Struct value{0, static_cast<std::uint16_t>(pointer >> 32), static_cast<std::uint16_t>(pointer >> 48)};
      const auto first = words.target(at, offset_of(pointer), value.data_words + value.pointers);
      return first && type.structure->fits(words, {*first, value.data_words, value.pointers}, depth + 1);
    }
    case Kind::list:
      return list_fits(words, at, type, depth + 1);
  }
  return false;
}

bool Layout::list_fits(Words& words, std::uint32_t at, const Type& type, int depth) {
  const auto pointer = words.at(at);
  if (depth >= limits::kNestingMax || kind_of(pointer) != kListPointer) return false;
  const auto elements = elements_of(pointer);
  const auto count = count_of(pointer);
  if (!type.element) {
    if (elements != elements_for(type.scalar)) return false;
    return words.target(at, offset_of(pointer), (std::uint64_t{count} * kElementBits[elements] + 63) / 64).has_value();
  }
  if (type.element->kind != Kind::structure) {
    if (elements != kPointerElements) return false;
    const auto first = words.target(at, offset_of(pointer), count);
    if (!first) return false;
    for (std::uint32_t i = 0; i < count; ++i) {
      if (!pointer_fits(words, *first + i, *type.element, depth)) return false;
    }
    return true;
  }
  if (elements != kCompositeElements) return false;
  const auto tag_at = words.target(at, offset_of(pointer), std::uint64_t{count} + 1);  // here the count is of words
  if (!tag_at) return false;
  const auto tag = words.at(*tag_at);
  const auto structs = static_cast<std::uint32_t>(tag) >> 2;
  const Struct shape{0, static_cast<std::uint16_t>(tag >> 32), static_cast<std::uint16_t>(tag >> 48)};
  const std::uint32_t step = shape.data_words + shape.pointers;
  if (kind_of(tag) != kStructPointer || std::uint64_t{structs} * step > count) return false;
  if (step == 0) return structs == 0;  // any number of them would fit: let the other way count
  for (std::uint32_t i = 0; i < structs; ++i) {
    if (!type.element->structure->fits(words, {*tag_at + 1 + i * step, shape.data_words, shape.pointers}, depth + 1)) return false;
  }
  return true;
}

}  // namespace falaj
