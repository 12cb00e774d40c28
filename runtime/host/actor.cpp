#include "runtime/host/actor.hpp"

#include <algorithm>
#include <stdexcept>

#include "runtime/base/format.hpp"

namespace falaj {

const HandlerEntry* HandlerTable::find(TypeId type) const noexcept {
  const auto at = std::lower_bound(entries_.begin(), entries_.end(), type, [](const HandlerEntry& e, TypeId t) { return e.type < t; });
  if (at != entries_.end() && at->type == type) return &*at;
  // An entry of type 0 takes whatever no other does; it sorts first.
  return entries_.empty() || entries_.front().type != TypeId{} ? nullptr : &entries_.front();
}

void HandlerTable::add(HandlerEntry entry) {
  const auto at =
      std::lower_bound(entries_.begin(), entries_.end(), entry.type, [](const HandlerEntry& e, TypeId t) { return e.type < t; });
  if (at != entries_.end() && at->type == entry.type) throw std::logic_error(format("two handlers for message {}", entry.name));
  entries_.insert(at, std::move(entry));
}

std::string_view verb_of(const capnp::StructSchema& schema) {
  constexpr std::uint64_t kVerb = 0x9b5c2de7a1f04802;  // messages/annotations.capnp, verb
  for (const auto annotation : schema.getProto().getAnnotations()) {
    if (annotation.getId() == kVerb) return text(annotation.getValue().getText());  // points into the compiled-in schema
  }
  return {};
}

namespace detail {

void task_finished(PromiseBase& promise) noexcept {
  auto& list = *promise.list;
  if (promise.previous != nullptr) {
    promise.previous->next = promise.next;
  } else {
    list.running = promise.next;
  }
  if (promise.next != nullptr) promise.next->previous = promise.previous;
  promise.previous = nullptr;
  promise.next = list.finished;
  list.finished = &promise;
}

}  // namespace detail

}  // namespace falaj
