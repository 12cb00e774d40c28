// Where the pointers of a struct are, worked out once for each schema: what a message from outside is checked against. Reading the schema
// anew for each message, as Cap'n Proto's dynamic API does, cost more than everything else that a link does with a small message.
//
// Thread-safe; layouts live as long as the process.
#pragma once
#include <capnp/any.h>
#include <capnp/schema.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace falaj {

class Layout {
 public:
  // Reads every pointer that the schema can reach: what is out of bounds or of another kind throws kj::Exception, what is nested deeper
  // than limits::kNestingMax throws std::length_error.
  void walk(capnp::AnyStruct::Reader value) const { walk(value, 0); }
  // The same on the words of a message's only segment, without Cap'n Proto's readers, which cost several times as much. True: all that the
  // schema reaches is in bounds, of its kind and nested within limits, and it holds no other pointer: it may be read, and copied,
  // unchecked. False: something is wrong, or merely unusual (a far pointer, a newer peer's field, another element size): walk() says which.
  // https://capnproto.org/encoding.html
  [[nodiscard]] bool fits(std::span<const std::uint64_t> segment) const;

 private:
  friend class Layouts;
  enum class Kind : std::uint8_t { text, data, structure, list };
  struct Type {
    Kind kind = Kind::text;
    capnp::schema::Type::Which scalar = capnp::schema::Type::VOID;  // of a list's elements; VOID also for elements with pointers
    const Layout* structure = nullptr;                              // of a structure
    std::unique_ptr<Type> element;                                  // of a list whose elements are pointers or structures
  };
  // A member of a union: there only when the 16 bits at this place of the data section have this value.
  struct Condition {
    std::uint32_t offset;
    std::uint16_t value;
  };
  struct Slot {
    std::uint32_t index;  // of the pointer section
    Type type;
    std::vector<Condition> conditions;
  };

  class Words;
  struct Struct {            // as it lies in the segment
    std::uint32_t data = 0;  // first word
    std::uint32_t data_words = 0;
    std::uint32_t pointers = 0;  // as many follow the data
  };

  bool fits(Words& words, const Struct& value, int depth) const;
  static bool pointer_fits(Words& words, std::uint32_t at, const Type& type, int depth);
  static bool list_fits(Words& words, std::uint32_t at, const Type& type, int depth);
  [[nodiscard]] static bool there(const Slot& slot, const std::uint8_t* data, std::size_t bytes);

  void walk(capnp::AnyStruct::Reader value, int depth) const;
  static void walk_pointer(capnp::AnyPointer::Reader pointer, const Type& type, int depth);
  static void walk_list(capnp::AnyPointer::Reader pointer, const Type& type, int depth);

  std::vector<Slot> slots_;
};

const Layout& layout_of(const capnp::StructSchema& schema);

}  // namespace falaj
