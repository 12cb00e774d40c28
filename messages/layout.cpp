#include "messages/layout.hpp"

#include <capnp/list.h>

#include <cstring>
#include <mutex>
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
    bool there = true;
    for (const auto& condition : slot.conditions) {
      std::uint16_t found = 0;
      const auto at = static_cast<std::size_t>(condition.offset) * 2;
      if (at + 2 <= data.size()) std::memcpy(&found, data.begin() + at, 2);
      there = there && found == condition.value;
    }
    if (there) walk_pointer(pointers[slot.index], slot.type, depth);
  }
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

}  // namespace falaj
