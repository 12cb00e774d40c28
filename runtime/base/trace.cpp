#include "runtime/base/trace.hpp"

#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj {
namespace {

std::uint64_t nonzero(Random& random) {
  std::uint64_t value = 0;
  while (value == 0) value = random.next();
  return value;
}

std::optional<std::uint64_t> lower_hex(std::string_view text) {
  std::uint64_t value = 0;
  for (const char c : text) {
    int digit = 0;
    if (c >= '0' && c <= '9')
      digit = c - '0';
    else if (c >= 'a' && c <= 'f')
      digit = c - 'a' + 10;
    else
      return std::nullopt;
    value = value << 4 | static_cast<std::uint64_t>(digit);
  }
  return value;
}

}  // namespace

TraceContext new_trace(Random& random, bool sampled) { return {nonzero(random), random.next(), nonzero(random), sampled}; }

TraceContext child_of(const TraceContext& parent, Random& random) {
  if (!parent.valid()) return new_trace(random);
  return {parent.trace_high, parent.trace_low, nonzero(random), parent.sampled};
}

std::string traceparent(const TraceContext& c) {
  return format("00-{:016x}{:016x}-{:016x}-{:02x}", c.trace_high, c.trace_low, c.span, c.sampled ? 1 : 0);
}

std::optional<TraceContext> parse_traceparent(std::string_view text) {
  if (text.size() < 55 || text[2] != '-' || text[35] != '-' || text[52] != '-') return std::nullopt;
  const auto version = lower_hex(text.substr(0, 2));
  if (!version || *version == 0xff || (*version == 0 && text.size() != 55) || (text.size() > 55 && text[55] != '-')) return std::nullopt;
  const auto high = lower_hex(text.substr(3, 16));
  const auto low = lower_hex(text.substr(19, 16));
  const auto span = lower_hex(text.substr(36, 16));
  const auto flags = lower_hex(text.substr(53, 2));
  if (!high || !low || !span || !flags) return std::nullopt;
  const TraceContext context{*high, *low, *span, (*flags & 1) != 0};
  if (!context.valid()) return std::nullopt;
  return context;
}

}  // namespace falaj
