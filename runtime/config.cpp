// toml++ parses, this file maps: it walks table and schema together and collects errors with their places. It is the only file
// that sees toml++. What it is not: a place for rules about single keys; those stand in the schema as annotations.
#include "runtime/config.hpp"

#include <capnp/schema.h>
#include <kj/exception.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <vector>

#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_UNRELEASED_FEATURES 0
#define TOML_MAX_NESTED_VALUES 32  // nesting of values on top of headers and dotted keys, which check_depth() bounds
#include <toml++/toml.h>

#include "runtime/base/bytes.hpp"
#include "runtime/base/format.hpp"
#include "runtime/config_schema.hpp"

namespace falaj::config {
namespace {

constexpr std::size_t kBytesMax = 1U << 20;
constexpr std::size_t kErrorsMax = 20;
constexpr std::size_t kDottedMax = 16;      // parts of one dotted key or header
constexpr std::size_t kListMax = 1U << 16;  // elements of one list

// Edits (insert, delete, replace, swap of neighbours) that turn one word into the other.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) now[j] = std::min(now[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

// " did you mean 'x'?", or when nothing is near, the nearest and all that would do.
std::string suggestion(std::string_view word, const std::vector<std::string>& known) {
  if (known.empty()) return "; no keys are known here";
  const auto shown = word.substr(0, 64);
  std::size_t best = std::numeric_limits<std::size_t>::max();
  const std::string* nearest = nullptr;
  std::string all;
  for (const auto& candidate : known) {
    const auto d = distance(shown, candidate);
    if (d < best) best = d, nearest = &candidate;
    all += (all.empty() ? "" : ", ") + candidate;
  }
  if (best <= std::max<std::size_t>(2, nearest->size() / 3)) return format("; did you mean '{}'?", *nearest);
  return format("; the nearest is '{}' (known: {})", *nearest, all);
}

std::string_view name_of(toml::node_type type) {
  switch (type) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number with a fraction";
    case toml::node_type::boolean:
      return "a boolean";
    case toml::node_type::date:
      return "a date";
    case toml::node_type::time:
      return "a time";
    case toml::node_type::date_time:
      return "a date with time";
    case toml::node_type::none:
      break;
  }
  return "nothing";
}

// Text that came from outside, cut and without control characters, so that one error stays one line.
std::string printable(std::string_view text) {
  std::string out(text.substr(0, 64));
  while (!out.empty() && !is_utf8(out)) out.pop_back();
  std::replace_if(out.begin(), out.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return out;
}

class Mapper {
 public:
  explicit Mapper(std::string_view name) : name_(name) {}

  void table(const toml::table& from, capnp::DynamicStruct::Builder into, const std::string& path) {
    std::map<std::string, Field, std::less<>> fields;
    std::vector<std::string> known;
    for (const auto field : into.getSchema().getFields()) {
      known.push_back(snake(field.getProto().getName()));
      fields.emplace(known.back(), field);
    }
    std::set<std::string, std::less<>> seen;
    std::string chosen;  // member of this struct's union
    for (auto&& [key, node] : from) {
      const auto found = fields.find(key.str());
      if (found == fields.end()) {
        fault(key.source().begin, format("unknown key '{}'{}", printable(join(path, key.str())), suggestion(key.str(), known)));
        continue;
      }
      seen.emplace(key.str());
      if (in_union(found->second)) {
        if (!chosen.empty()) {
          fault(key.source().begin, format("'{}' and '{}' exclude each other: give one of them", join(path, key.str()), chosen));
          continue;
        }
        chosen = join(path, key.str());
      }
      member(node, into, found->second, join(path, key.str()));
    }
    for (const auto& [key, field] : fields) {
      const auto rules = rules_of(field);
      if (!rules.required || seen.contains(key)) continue;
      fault(from.source().begin, format("missing key '{}'{}", join(path, key), rules.doc.empty() ? "" : ": " + rules.doc));
    }
  }

  void fault(toml::source_position at, std::string message) {
    if (errors_.size() > 1000) return;  // enough to choose the first twenty from
    errors_.push_back({std::max<std::uint32_t>(at.line, 1), std::max<std::uint32_t>(at.column, 1), std::move(message)});
  }

  Status status() {
    if (errors_.empty()) return {};
    std::stable_sort(errors_.begin(), errors_.end(),
                     [](const Fault& a, const Fault& b) { return std::tie(a.line, a.column) < std::tie(b.line, b.column); });
    std::string text;
    for (std::size_t i = 0; i < std::min(errors_.size(), kErrorsMax); ++i) {
      if (i > 0) text.push_back('\n');
      text += format("{}:{}:{}: {}", name_, errors_[i].line, errors_[i].column, errors_[i].message);
    }
    if (errors_.size() > kErrorsMax) text += format("\n{}: {} more errors", name_, errors_.size() - kErrorsMax);
    return invalid(std::move(text));
  }

 private:
  struct Fault {
    std::uint32_t line;
    std::uint32_t column;
    std::string message;
  };

  static std::string join(const std::string& path, std::string_view key) {
    return path.empty() ? std::string(key) : path + "." + std::string(key);
  }

  void wrong(const toml::node& node, const std::string& path, std::string_view expected) {
    fault(node.source().begin, format("'{}': expected {}, found {}", printable(path), expected, name_of(node.type())));
  }

  void member(const toml::node& node, capnp::DynamicStruct::Builder into, const Field& field, const std::string& path) {
    const auto type = field.getType();
    if (type.isStruct()) {
      if (const auto* from = node.as_table()) {
        table(*from, into.init(field).as<capnp::DynamicStruct>(), path);
      } else if (node.is_string() && field.getProto().isGroup()) {
        choice(node, into.init(field).as<capnp::DynamicStruct>(), path);
      } else {
        wrong(node, path, "a table");
      }
    } else if (type.isList()) {
      list(node, into, field, path);
    } else if (type.isVoid()) {
      if (node.value<bool>() != true) return wrong(node, path, "the value true");
      into.set(field, capnp::VOID);
    } else {
      scalar(node, type, rules_of(field), path, [&](const capnp::DynamicValue::Reader& value) { into.set(field, value); });
    }
  }

  // family = "linear" for a union whose member `linear` holds nothing.
  void choice(const toml::node& node, capnp::DynamicStruct::Builder into, const std::string& path) {
    const auto word = *node.value<std::string>();
    std::vector<std::string> known;
    for (const auto field : into.getSchema().getUnionFields()) {
      if (!field.getType().isVoid()) continue;
      known.push_back(snake(field.getProto().getName()));
      if (known.back() == word) return into.set(field, capnp::VOID);
    }
    if (known.empty()) return wrong(node, path, "a table");
    fault(node.source().begin, format("'{}': no such choice '{}'{}", path, printable(word), suggestion(word, known)));
  }

  void list(const toml::node& node, capnp::DynamicStruct::Builder into, const Field& field, const std::string& path) {
    const auto element = field.getType().asList().getElementType();
    if (element.isStruct() && node.is_table()) {
      auto out = into.init(field, 1).as<capnp::DynamicList>();
      return table(*node.as_table(), out[0].as<capnp::DynamicStruct>(), path);
    }
    const auto* from = node.as_array();
    if (from == nullptr) return wrong(node, path, element.isStruct() ? "a list of tables" : "a list");
    if (from->size() > kListMax) return fault(node.source().begin, format("'{}': more than {} elements", path, kListMax));
    elements(*from, into.init(field, static_cast<unsigned>(from->size())).as<capnp::DynamicList>(), rules_of(field), path);
  }

  void elements(const toml::array& from, capnp::DynamicList::Builder out, const Rules& rules, const std::string& path) {
    const auto element = out.getSchema().getElementType();
    for (std::size_t i = 0; i < from.size(); ++i) {
      const auto& node = *from.get(i);
      const auto index = static_cast<unsigned>(i);
      const auto here = format("{}[{}]", path, i);
      if (element.isStruct()) {
        if (!node.is_table()) {
          wrong(node, here, "a table");
          continue;
        }
        table(*node.as_table(), out[index].as<capnp::DynamicStruct>(), here);
      } else if (element.isList()) {
        if (!node.is_array() || node.as_array()->size() > kListMax) {
          wrong(node, here, "a list");
          continue;
        }
        elements(*node.as_array(), out.init(index, static_cast<unsigned>(node.as_array()->size())).as<capnp::DynamicList>(), rules, here);
      } else {
        scalar(node, element, rules, here, [&](const capnp::DynamicValue::Reader& value) { out.set(index, value); });
      }
    }
  }

  template <class Set>
  void scalar(const toml::node& node, capnp::Type type, const Rules& rules, const std::string& path, Set set) {
    const auto which = type.which();
    if (const auto limits = integer_bounds(which)) {
      if (!node.is_integer()) return wrong(node, path, "an integer");
      const auto value = node.as_integer()->get();
      const auto min = std::max(static_cast<double>(limits->first), rules.min);
      const auto max = std::min(static_cast<double>(limits->second), rules.max);
      if (value < limits->first || value > limits->second || static_cast<double>(value) < min || static_cast<double>(value) > max) {
        return fault(node.source().begin, format("'{}': {} is outside {} to {}", path, value, min, max));
      }
      if (which == SchemaType::UINT64) return set(static_cast<std::uint64_t>(value));
      return set(value);
    }
    switch (which) {
      case SchemaType::BOOL:
        if (!node.is_boolean()) return wrong(node, path, "true or false");
        return set(node.as_boolean()->get());
      case SchemaType::FLOAT32:
      case SchemaType::FLOAT64:
        return number(node, rules, path, set);
      case SchemaType::TEXT:
        return string(node, rules, path, set);
      case SchemaType::ENUM:
        return enumerant(node, type.asEnum(), path, set);
      case SchemaType::DATA: {
        if (!node.is_string()) return wrong(node, path, "base64url text");
        const auto bytes = from_base64url(node.as_string()->get());
        if (!bytes.has_value()) return fault(node.source().begin, format("'{}': {}", path, bytes.error().message));
        return set(capnp::Data::Reader(bytes->data(), bytes->size()));
      }
      default:
        return fault(node.source().begin, format("'{}' cannot be given in a file", path));
    }
  }

  template <class Set>
  void number(const toml::node& node, const Rules& rules, const std::string& path, Set set) {
    if (!node.is_number()) return wrong(node, path, "a number");
    const double value = node.is_integer() ? static_cast<double>(node.as_integer()->get()) : node.as_floating_point()->get();
    if (std::isnan(value) || value < rules.min || value > rules.max) {
      return fault(node.source().begin, format("'{}': {} is outside {} to {}", path, value, rules.min, rules.max));
    }
    set(value);
  }

  template <class Set>
  void string(const toml::node& node, const Rules& rules, const std::string& path, Set set) {
    if (!node.is_string()) return wrong(node, path, "a string");
    const auto& value = node.as_string()->get();
    if (!rules.one_of.empty() && std::find(rules.one_of.begin(), rules.one_of.end(), value) == rules.one_of.end()) {
      return fault(node.source().begin, format("'{}': no such choice '{}'{}", path, printable(value), suggestion(value, rules.one_of)));
    }
    set(capnp::Text::Reader(value.c_str(), value.size()));
  }

  template <class Set>
  void enumerant(const toml::node& node, capnp::EnumSchema schema, const std::string& path, Set set) {
    if (!node.is_string()) return wrong(node, path, "a string");
    const auto& value = node.as_string()->get();
    std::vector<std::string> known;
    for (const auto candidate : schema.getEnumerants()) {
      known.push_back(snake(candidate.getProto().getName()));
      if (known.back() == value) return set(capnp::DynamicEnum(candidate));
    }
    fault(node.source().begin, format("'{}': no such choice '{}'{}", path, printable(value), suggestion(value, known)));
  }

  std::string_view name_;
  std::vector<Fault> errors_;
};

// toml++ turns `a.a.a.a = 1` into nested tables without a bound of its own, and destroys them recursively. This scan follows
// strings and comments like the parser does and counts the parts of each dotted key. Returns the line of the first too deep one.
std::optional<std::uint32_t> too_deep(std::string_view text) {
  std::uint32_t line = 1;
  std::size_t dots = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') {
      ++line;
      dots = 0;
    } else if (c == '#') {
      while (i + 1 < text.size() && text[i + 1] != '\n') ++i;
    } else if (c == '"' || c == '\'') {
      const bool multi = text.substr(i, 3) == std::string(3, c);
      if (multi) i += 2;
      for (++i; i < text.size(); ++i) {
        if (text[i] == '\n') {
          ++line;
          if (!multi) break;  // the parser refuses it
        }
        if (c == '"' && text[i] == '\\') {
          if (i + 1 < text.size() && text[i + 1] != '\n') ++i;
        } else if (text[i] == c && (!multi || text.substr(i, 3) == std::string(3, c))) {
          if (multi) {
            i += 2;
            while (i + 1 < text.size() && text[i + 1] == c) ++i;  // up to two quotes may stand before the end
          }
          break;
        }
      }
    } else if (c == '.') {
      if (++dots >= kDottedMax) return line;
    } else if (c != ' ' && c != '\t' && std::string_view("=,{}[]").find(c) != std::string_view::npos) {
      dots = 0;
    }
  }
  return std::nullopt;
}

// Line and column (in characters) of the first byte that is not UTF-8.
std::optional<std::pair<std::size_t, std::size_t>> bad_utf8(std::string_view text) {
  if (is_utf8(text)) return std::nullopt;
  std::size_t line = 1;
  std::size_t column = 1;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t length = 1;
    while (length <= 4 && !is_utf8(text.substr(i, length))) ++length;
    if (length > 4) break;
    column = text[i] == '\n' ? 1 : column + 1;
    line += text[i] == '\n' ? 1 : 0;
    i += length;
  }
  return std::pair(line, column);
}

}  // namespace

Status parse_toml(std::string_view text, std::string_view name, capnp::DynamicStruct::Builder into) {
  if (text.size() > kBytesMax)
    return invalid(format("{}: {} bytes, more than the {} a configuration may have", name, text.size(), kBytesMax));
  if (const auto bad = bad_utf8(text)) return invalid(format("{}:{}:{}: not UTF-8", name, bad->first, bad->second));
  if (const auto line = too_deep(text)) return invalid(format("{}:{}:1: key of more than {} parts", name, *line, kDottedMax));
  const toml::parse_result parsed = toml::parse(text, name);
  if (!parsed) {
    const auto& fault = parsed.error();
    const auto at = fault.source().begin;
    return invalid(format("{}:{}:{}: {}", name, at.line, at.column, fault.description()));
  }
  try {
    Mapper mapper(name);
    mapper.table(parsed.table(), into, "");
    return mapper.status();
  } catch (const kj::Exception& e) {  // nothing above should ask for what the schema does not have
    return failed(format("{}: {}", name, e.getDescription().cStr()));
  }
}

Result<std::string> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return error(ErrorCode::not_found, format("{}: cannot be opened: check that it exists and may be read", path));
  std::string text(kBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return failed(format("{}: cannot be read", path));
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (text.size() > kBytesMax) return invalid(format("{}: more than the {} bytes a configuration may have", path, kBytesMax));
  return text;
}

}  // namespace falaj::config
