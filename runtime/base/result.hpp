// Result<T>: what a caller acts on. An exception is for a bug or a broken invariant; a Result is for everything the world
// may do to us (disk full, peer gone, bad input).
//
// A code exists only if some caller would act differently on it; everything else is `failed` with a message. The codes are
// the same on the wire (messages/envelope.capnp, ErrorCode); tests/messages compares the two lists.
#pragma once
#include <expected>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace falaj {

enum class ErrorCode : unsigned char {
  failed = 0,         // a fault of ours or of the machine; retrying the same call is not known to help
  invalid = 1,        // the input is wrong: fix it, then call again
  not_found = 2,      // the named thing does not exist (an actor: unknown_actor)
  conflict = 3,       // compare-and-set lost, name taken, idempotency key reused with other content
  denied = 4,         // the principal lacks the verb, or the read lacks an allowed purpose
  overloaded = 5,     // a bound was reached: back off, then retry
  unreachable = 6,    // the peer cannot be reached now; whether it acted is unknown
  gone = 7,           // that incarnation has ended; look the name up again
  deadline = 8,       // time ran out; whether it acted is unknown
  unimplemented = 9,  // this build or this peer does not know the message, op or version
  corrupt = 10,       // stored or received bytes fail their checksum or format
  no_space = 11,      // disk or quota is full; nothing was changed
};

std::string_view to_string(ErrorCode code) noexcept;

struct Error {
  ErrorCode code = ErrorCode::failed;
  std::string message;  // one line: what, where (file:line:column, field, peer), and the remedy
  bool operator==(const Error&) const = default;
};

std::string to_string(const Error& error);

template <class T>
class [[nodiscard]] Result : public std::expected<T, Error> {
  using Base = std::expected<T, Error>;

 public:
  using Base::Base;
  Result(Error error) : Base(std::unexpect, std::move(error)) {}
  Result(ErrorCode code, std::string message) : Base(std::unexpect, Error{code, std::move(message)}) {}
};

using Status = Result<void>;

inline Error error(ErrorCode code, std::string message) { return Error{code, std::move(message)}; }
inline Error invalid(std::string message) { return Error{ErrorCode::invalid, std::move(message)}; }
inline Error failed(std::string message) { return Error{ErrorCode::failed, std::move(message)}; }

// The same error with where it happened put before its message.
Error within(std::string_view where, Error inner);

// FALAJ_TRY(expr): leaves the function with the error of a Status; FALAJ_ASSIGN(var, expr): declares var from a Result.
// In a coroutine use FALAJ_CO_TRY / FALAJ_CO_ASSIGN, which co_return.
#define FALAJ_CONCAT_(a, b) a##b
#define FALAJ_CONCAT(a, b) FALAJ_CONCAT_(a, b)
#define FALAJ_TRY(...)                                                       \
  do {                                                                       \
    auto falaj_status_ = (__VA_ARGS__);                                      \
    if (!falaj_status_.has_value()) return std::move(falaj_status_).error(); \
  } while (false)
#define FALAJ_ASSIGN_IMPL_(tmp, var, ret, ...)      \
  auto tmp = (__VA_ARGS__);                         \
  if (!tmp.has_value()) ret std::move(tmp).error(); \
  var = std::move(tmp).value()
#define FALAJ_ASSIGN(var, ...) FALAJ_ASSIGN_IMPL_(FALAJ_CONCAT(falaj_result_, __LINE__), var, return, __VA_ARGS__)
#define FALAJ_CO_TRY(...)                                                       \
  do {                                                                          \
    auto falaj_status_ = (__VA_ARGS__);                                         \
    if (!falaj_status_.has_value()) co_return std::move(falaj_status_).error(); \
  } while (false)
#define FALAJ_CO_ASSIGN(var, ...) FALAJ_ASSIGN_IMPL_(FALAJ_CONCAT(falaj_result_, __LINE__), var, co_return, __VA_ARGS__)

}  // namespace falaj
