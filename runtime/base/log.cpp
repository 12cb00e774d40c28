#include "runtime/base/log.hpp"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "runtime/base/clock.hpp"
#include "runtime/base/format.hpp"

namespace falaj::log {
namespace {

struct Sink {
  std::shared_ptr<spdlog::logger> logger;
  Level level = Level::info;
  bool json = false;
  std::string node;
};

std::atomic<std::uint64_t> g_errors{0};

std::shared_ptr<const Sink> make_sink(const Options& options) {
  auto sink = std::make_shared<Sink>();
  sink->level = options.level;
  sink->node = options.node;
  const bool terminal = options.file.empty() && isatty(STDERR_FILENO) == 1;
  sink->json = options.style == Style::json || (options.style == Style::automatic && !terminal);
  spdlog::sink_ptr out;
  if (options.file.empty()) {
    out = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  } else {
    out = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
  }
  sink->logger = std::make_shared<spdlog::logger>("falaj", out);
  sink->logger->set_level(spdlog::level::trace);
  sink->logger->set_pattern(sink->json ? "%v" : "%H:%M:%S.%e %^%L%$ %v");
  sink->logger->flush_on(spdlog::level::info);
  return sink;
}

std::mutex g_mutex;
std::shared_ptr<const Sink> g_sink;

std::shared_ptr<const Sink> current() {
  const std::scoped_lock lock(g_mutex);
  if (!g_sink) g_sink = make_sink({});
  return g_sink;
}

void append_json(std::string& out, std::string_view text) {
  out.push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<int>(c));
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

std::string render(const Field& field, bool json) {
  return std::visit(
      [json](const auto& value) -> std::string {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::string>) {
          std::string quoted;
          if (json || value.empty() || value.find_first_of(" \"=\n") != std::string::npos) {
            append_json(quoted, value);
            return quoted;
          }
          return value;
        } else {
          return fmt::format("{}", value);
        }
      },
      field.value);
}

std::string line(const Sink& sink, Level level, std::string_view component, std::string_view event, Fields fields) {
  constexpr std::string_view names[] = {"debug", "info", "warn", "error", "off"};
  std::string out;
  if (sink.json) {
    const auto ns = SystemClock().wall().unix_ns;
    out = fmt::format("{{\"time\":{}.{:06d},\"level\":\"{}\",\"node\":", ns / 1'000'000'000, ns % 1'000'000'000 / 1000,
                      names[static_cast<int>(level)]);
    append_json(out, sink.node);
    out += ",\"component\":";
    append_json(out, component);
    out += ",\"event\":";
    append_json(out, event);
    for (const auto& field : fields) {
      out.push_back(',');
      append_json(out, field.name);
      out.push_back(':');
      out += render(field, true);
    }
    out.push_back('}');
    return out;
  }
  out = sink.node.empty() ? fmt::format("{}: {}", component, event) : fmt::format("[{}] {}: {}", sink.node, component, event);
  for (const auto& field : fields) out += fmt::format(" {}={}", field.name, render(field, false));
  return out;
}

}  // namespace

void configure(const Options& options) {
  auto sink = make_sink(options);
  const std::scoped_lock lock(g_mutex);
  g_sink = std::move(sink);
}

void write(Level level, std::string_view component, std::string_view event, Fields fields) {
  if (level == Level::error) g_errors.fetch_add(1, std::memory_order_relaxed);
  const auto sink = current();
  if (level < sink->level) return;
  constexpr spdlog::level::level_enum levels[] = {spdlog::level::debug, spdlog::level::info, spdlog::level::warn, spdlog::level::err,
                                                  spdlog::level::off};
  sink->logger->log(levels[static_cast<int>(level)], spdlog::string_view_t(line(*sink, level, component, event, fields)));
}

std::uint64_t errors() { return g_errors.load(std::memory_order_relaxed); }

void flush() { current()->logger->flush(); }

}  // namespace falaj::log
