// Message: immutable Cap'n Proto bytes behind a reference count.
//
// The bytes are in standard stream framing (segment table, then segments), so that a link writes them as they lie. A message
// built here has one segment and is read without checks; one from outside is walked once against its schema, within
// limits.hpp, when it is first opened, and only then read. Copying a Message copies a pointer; any thread may hold one.
//
// Ways to get hurt:
//  - A Reader points into its View's message: keep the View (or Msg<T>) as long as the Reader.
//  - build() grows by doubling, then copies once into one segment: give `words` when the size is known and large.
#pragma once
#include <capnp/dynamic.h>
#include <capnp/message.h>
#include <capnp/schema.h>
#include <capnp/serialize.h>

#include <atomic>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/ids.hpp"
#include "runtime/base/result.hpp"

namespace falaj {

template <class T>
class View;
class DynamicView;
class Layout;
const Layout& layout_of(const capnp::StructSchema& schema);

class Message {
 public:
  Message() = default;
  Message(const Message& other) noexcept : rep_(other.rep_) { retain(rep_); }
  Message(Message&& other) noexcept : rep_(std::exchange(other.rep_, nullptr)) {}
  Message& operator=(Message other) noexcept {
    std::swap(rep_, other.rep_);
    return *this;
  }
  ~Message() { release(rep_); }

  // fill(T::Builder) writes the root. `words`: expected size in 8-byte words.
  template <class T, class Fill>
  static Message build(Fill&& fill, std::size_t words = kDefaultWords);
  template <class T>
  static Message build() {
    return build<T>([](typename T::Builder) {}, 4);
  }
  // A copy of a struct that is part of another message.
  template <class T>
  static Message copy_of(typename T::Reader value) {
    const auto size = value.totalSize();
    Arena arena(size.wordCount + 1);
    arena.setRoot(value);
    return std::move(arena).finish(TypeId(capnp::typeId<T>()));
  }

  // A copy of what a pointer of another message points to.
  static Message from_root(TypeId type, capnp::AnyPointer::Reader root);

  [[nodiscard]] explicit operator bool() const noexcept { return rep_ != nullptr; }
  [[nodiscard]] TypeId type() const noexcept { return rep_ == nullptr ? TypeId{} : rep_->type; }
  [[nodiscard]] ByteView bytes() const noexcept { return rep_ == nullptr ? ByteView{} : ByteView{rep_->data(), rep_->size}; }
  [[nodiscard]] bool trusted() const noexcept { return rep_ != nullptr && rep_->trusted.load(std::memory_order_relaxed); }

  // Opens as T: `unimplemented` for another type, `invalid` or `corrupt` when bytes from outside break a limit or the schema.
  template <class T>
  [[nodiscard]] Result<View<T>> open() const&;
  template <class T>
  [[nodiscard]] Result<View<T>> open() &&;  // this message moves into the view, if there is one
  // The same by schema, for what is known only at run time (JSON).
  [[nodiscard]] Result<DynamicView> open_dynamic(const capnp::StructSchema& schema) const;
  // For messages built in this process: a wrong type is a bug and throws std::logic_error.
  template <class T>
  [[nodiscard]] View<T> view() const;

 private:
  friend class MessageBuffer;
  template <class T>
  friend class View;
  static constexpr std::size_t kDefaultWords = 48;

  struct Rep {
    std::atomic<std::uint32_t> references{1};
    std::atomic<bool> trusted{false};  // may be read without checks: built here, or found to fit its schema
    TypeId type;
    std::size_t size = 0;      // bytes of framing and segments
    std::size_t capacity = 0;  // bytes
    std::uint8_t* data() noexcept { return reinterpret_cast<std::uint8_t*>(this + 1); }
    static Rep* make(std::size_t capacity);  // of that many bytes at least
  };
  static_assert(sizeof(Rep) % 8 == 0);

  // What a thread fills a struct without pointers in, again and again: to set up a builder costs more than a short message.
  template <class T>
  struct Form {
    capnp::word memory[1 + T::_capnpPrivate::dataWordSize] = {};  // the root's pointer, then its data
    capnp::MallocMessageBuilder builder{kj::arrayPtr(memory, std::size(memory))};
    typename T::Builder root = builder.template initRoot<T>();
    bool in_use = false;
  };
  template <class T>
  static Form<T>& form();  // this thread's
  template <class T, class Fill>
  static Message fill_in(Form<T>& form, Fill&& fill);

  // Builds straight into a Rep; further segments are merged by finish().
  class Arena final : public capnp::MessageBuilder {
   public:
    explicit Arena(std::size_t words);
    ~Arena() noexcept(false) override;
    kj::ArrayPtr<capnp::word> allocateSegment(unsigned minimum) override;
    Message finish(TypeId type) &&;

   private:
    Rep* first_ = nullptr;
    bool handed_out_ = false;
    std::size_t total_ = 0;
    std::vector<std::unique_ptr<capnp::word[]>> more_;
  };

  explicit Message(Rep* rep) noexcept : rep_(rep) {}
  static void retain(Rep* rep) noexcept {
    if (rep != nullptr) rep->references.fetch_add(1, std::memory_order_relaxed);
  }
  static void release(Rep* rep) noexcept;
  static Message from_words(TypeId type, const void* words, std::size_t count);  // of one segment, the root's pointer first
  [[nodiscard]] const capnp::word* root_words() const noexcept { return reinterpret_cast<const capnp::word*>(rep_->data()) + 1; }
  [[nodiscard]] kj::ArrayPtr<const capnp::word> words() const noexcept {
    return {reinterpret_cast<const capnp::word*>(rep_->data()), rep_->size / 8};
  }
  [[nodiscard]] bool fits(const Layout& layout) const noexcept;  // then it is trusted from now on
  // Checks framing and walks everything the schema can reach. On success returns a reader whose limits are spent no further.
  [[nodiscard]] Result<std::unique_ptr<capnp::FlatArrayMessageReader>> checked(const capnp::StructSchema& schema) const;

  Rep* rep_ = nullptr;
};

// Memory that a link fills with the bytes of one body and turns into a Message without a copy.
class MessageBuffer {
 public:
  // `bytes`: framing included; a multiple of 8, at most limits::kMessageBytesMax, else `invalid`.
  static Result<MessageBuffer> allocate(std::size_t bytes);
  MessageBuffer(MessageBuffer&& other) noexcept : rep_(std::exchange(other.rep_, nullptr)) {}
  MessageBuffer& operator=(MessageBuffer&& other) noexcept {
    std::swap(rep_, other.rep_);
    return *this;
  }
  ~MessageBuffer() { Message::release(rep_); }
  [[nodiscard]] std::span<std::uint8_t> writable() noexcept { return {rep_->data(), rep_->size}; }
  // `corrupt` when the segment table does not add up to the size.
  Result<Message> finish(TypeId type) &&;

 private:
  explicit MessageBuffer(Message::Rep* rep) noexcept : rep_(rep) {}
  Message::Rep* rep_;
};

// Bytes from a file, a queue or a test as a message from outside (one copy).
Result<Message> message_from_bytes(TypeId type, ByteView bytes);

// A typed reader together with the message that it reads. Move-only.
template <class T>
class View {
 public:
  View(View&&) noexcept = default;
  View& operator=(View&&) noexcept = default;
  const typename T::Reader& operator*() const noexcept { return root_; }
  const typename T::Reader* operator->() const noexcept { return &root_; }
  [[nodiscard]] const Message& message() const noexcept { return message_; }

 private:
  friend class Message;
  explicit View(Message message) : message_(std::move(message)), root_(capnp::readMessageUnchecked<T>(message_.root_words())) {}
  View(Message message, std::unique_ptr<capnp::FlatArrayMessageReader> reader)
      : message_(std::move(message)), reader_(std::move(reader)), root_(reader_->getRoot<T>()) {}

  Message message_;
  std::unique_ptr<capnp::FlatArrayMessageReader> reader_;  // null for trusted ones
  typename T::Reader root_;
};

// A reader by schema together with its message. Move-only.
class DynamicView {
 public:
  [[nodiscard]] capnp::DynamicStruct::Reader root() const;

 private:
  friend class Message;
  DynamicView(capnp::StructSchema schema, std::unique_ptr<capnp::FlatArrayMessageReader> reader, Message message)
      : schema_(schema), message_(std::move(message)), reader_(std::move(reader)) {}
  capnp::StructSchema schema_;
  Message message_;
  std::unique_ptr<capnp::FlatArrayMessageReader> reader_;
};

template <class T, class Fill>
Message Message::build(Fill&& fill, std::size_t words) {
  if constexpr (T::_capnpPrivate::pointerCount == 0) {
    if (auto& mine = form<T>(); !mine.in_use) return fill_in<T>(mine, std::forward<Fill>(fill));
  }
  Arena arena(words);
  std::forward<Fill>(fill)(arena.initRoot<T>());
  return std::move(arena).finish(TypeId(capnp::typeId<T>()));
}

template <class T>
Message::Form<T>& Message::form() {
  struct Place {
    alignas(Form<T>) std::byte memory[sizeof(Form<T>)];
    Form<T>* form;
  };
  static constinit thread_local Place place{};  // never destroyed, which frees nothing: the form has no memory but its own
  if (place.form == nullptr) place.form = new (place.memory) Form<T>;
  return *place.form;
}

template <class T, class Fill>
Message Message::fill_in(Form<T>& form, Fill&& fill) {
  struct Use {
    bool& flag;
    explicit Use(bool& in_use) noexcept : flag(in_use) { flag = true; }
    ~Use() { flag = false; }
  } const use(form.in_use);
  std::memset(form.memory + 1, 0, sizeof form.memory - sizeof form.memory[0]);
  std::forward<Fill>(fill)(typename T::Builder(form.root));
  return from_words(TypeId(capnp::typeId<T>()), form.memory, std::size(form.memory));
}

[[noreturn]] void throw_wrong_type(TypeId wanted, TypeId found);

template <class T>
Result<View<T>> Message::open() && {
  if (type() != TypeId(capnp::typeId<T>())) return error(ErrorCode::unimplemented, "message is of another type");
  static const Layout& layout = layout_of(capnp::Schema::from<T>());
  if (trusted() || fits(layout)) return View<T>(std::move(*this));
  auto reader = checked(capnp::Schema::from<T>());
  if (!reader.has_value()) return std::move(reader).error();
  return View<T>(std::move(*this), std::move(reader).value());
}

template <class T>
Result<View<T>> Message::open() const& {
  return Message(*this).open<T>();
}

template <class T>
View<T> Message::view() const {
  if (type() != TypeId(capnp::typeId<T>()) || !trusted()) throw_wrong_type(TypeId(capnp::typeId<T>()), type());
  return View<T>(*this);
}

inline std::string_view text(capnp::Text::Reader reader) { return {reader.cStr(), reader.size()}; }
inline ByteView bytes(capnp::Data::Reader reader) { return {reader.begin(), reader.size()}; }
inline capnp::Data::Reader data(ByteView view) { return {view.data(), view.size()}; }

}  // namespace falaj
