// W3C trace context (Trace Context, W3C Recommendation 2021): carried by every message and every HTTP request.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace falaj {

class Random;

struct TraceContext {
  std::uint64_t trace_high = 0;
  std::uint64_t trace_low = 0;
  std::uint64_t span = 0;
  bool sampled = false;

  [[nodiscard]] bool valid() const noexcept { return (trace_high | trace_low) != 0 && span != 0; }
  bool operator==(const TraceContext&) const = default;
};

TraceContext new_trace(Random& random, bool sampled = false);
TraceContext child_of(const TraceContext& parent, Random& random);     // same trace, new span
std::string traceparent(const TraceContext& context);                  // "00-<32 hex>-<16 hex>-<2 hex>"
std::optional<TraceContext> parse_traceparent(std::string_view text);  // nullopt: invalid, start a new trace

}  // namespace falaj
