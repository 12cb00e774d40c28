// Structured events: a name, a component, typed fields. Human text on a terminal, JSON lines otherwise (spdlog behind it,
// visible in log.cpp only). Thread-safe. Error severity fails a test run that asks for it (log::errors()).
//
//   log::info("link", "peer up", {{"peer", name}, {"rtt_us", rtt}});
//
// Never put personal data, keys or tokens into a field: logs are not sealed.
#pragma once
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

namespace falaj::log {

enum class Level : std::uint8_t { debug, info, warn, error, off };

struct Field {
  std::string_view name;
  std::variant<std::int64_t, std::uint64_t, double, bool, std::string> value;

  template <std::signed_integral T>
  Field(std::string_view n, T v) : name(n), value(static_cast<std::int64_t>(v)) {}
  template <std::unsigned_integral T>
    requires(!std::same_as<T, bool>)
  Field(std::string_view n, T v) : name(n), value(static_cast<std::uint64_t>(v)) {}
  Field(std::string_view n, bool v) : name(n), value(v) {}
  Field(std::string_view n, double v) : name(n), value(v) {}
  Field(std::string_view n, std::string v) : name(n), value(std::move(v)) {}
  Field(std::string_view n, std::string_view v) : name(n), value(std::string(v)) {}
  Field(std::string_view n, const char* v) : name(n), value(std::string(v)) {}
};
using Fields = std::initializer_list<Field>;

enum class Style : std::uint8_t { automatic, human, json };  // automatic: human when the output is a terminal

struct Options {
  Level level = Level::info;
  Style style = Style::automatic;
  std::string file;  // empty: standard error
  std::string node;  // put into each line
};
// Call once, before threads start; a second call replaces the sink.
void configure(const Options& options);

void write(Level level, std::string_view component, std::string_view event, Fields fields = {});
inline void debug(std::string_view component, std::string_view event, Fields fields = {}) { write(Level::debug, component, event, fields); }
inline void info(std::string_view component, std::string_view event, Fields fields = {}) { write(Level::info, component, event, fields); }
inline void warn(std::string_view component, std::string_view event, Fields fields = {}) { write(Level::warn, component, event, fields); }
inline void error(std::string_view component, std::string_view event, Fields fields = {}) { write(Level::error, component, event, fields); }

std::uint64_t errors();  // error-severity events since the process started
void flush();

}  // namespace falaj::log
