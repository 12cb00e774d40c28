// The second half of csv.hpp: records onto the fields of a view.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "actors/features/csv.hpp"
#include "actors/features/values.hpp"
#include "messages/features.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::features {

namespace {

constexpr std::uint64_t kProgressRows = 1024;

std::string shown(std::string_view text) {
  constexpr std::size_t kMost = 40;
  if (text.size() <= kMost) return std::string(text);
  std::size_t end = kMost;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;  // not inside a character
  return std::string(text.substr(0, end)) + "...";
}

std::string_view trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

template <class T>
bool parse_all(std::string_view text, T& value) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  return fault == std::errc{} && end == text.data() + text.size();
}

Result<storage::FieldValue> parse_float(std::string_view text, bool narrow) {
  double value = 0;
  if (!parse_all(text, value))
    return invalid(format("'{}' is not a number{}", shown(text), text.find(',') == text.npos ? "" : "; write the decimal point as '.'"));
  if (std::isnan(value)) return storage::FieldValue{};
  if (!std::isfinite(value)) return invalid(format("'{}' is not finite", shown(text)));
  if (!narrow) return storage::FieldValue{value};
  if (std::abs(value) > static_cast<double>(std::numeric_limits<float>::max())) {
    return invalid(format("'{}' is too large for float32; declare the field as float64", shown(text)));
  }
  return storage::FieldValue{static_cast<float>(value)};
}

Result<storage::FieldValue> parse_bool(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (lower == "true" || lower == "1" || lower == "yes") return storage::FieldValue{true};
  if (lower == "false" || lower == "0" || lower == "no") return storage::FieldValue{false};
  return invalid(format("'{}' is not true or false (also 1, 0, yes, no)", shown(text)));
}

// monostate: NaN.
Result<storage::FieldValue> parse_value(std::string_view text, messages::FieldType type) {
  switch (type) {
    case messages::FieldType::STRING:
      return storage::FieldValue{std::string(text)};
    case messages::FieldType::FLOAT32:
      return parse_float(trimmed(text), true);
    case messages::FieldType::FLOAT64:
      return parse_float(trimmed(text), false);
    case messages::FieldType::BOOL:
      return parse_bool(trimmed(text));
    case messages::FieldType::INT64: {
      std::int64_t value = 0;
      if (!parse_all(trimmed(text), value)) return invalid(format("'{}' is not a whole number of 64 bits", shown(text)));
      return storage::FieldValue{value};
    }
  }
  return error(ErrorCode::unimplemented, "a field type that this build does not know");
}

bool digits(std::string_view text, std::size_t at, std::size_t count, int& value) {
  value = 0;
  if (text.size() < at + count) return false;
  for (std::size_t i = at; i < at + count; ++i) {
    if (text[i] < '0' || text[i] > '9') return false;
    value = value * 10 + (text[i] - '0');
  }
  return true;
}

constexpr std::int64_t kSecond = 1'000'000'000;

Result<std::int64_t> to_ns(std::int64_t seconds, std::int64_t ns, std::string_view text) {
  std::int64_t out = 0;
  if (__builtin_mul_overflow(seconds, kSecond, &out) || __builtin_add_overflow(out, ns, &out)) {
    return invalid(format("'{}' is outside the years 1678 to 2262", shown(text)));
  }
  return out;
}

// ".123456789" to nanoseconds; further digits are dropped. Moves `at` behind it.
std::int64_t fraction(std::string_view text, std::size_t& at) {
  std::int64_t ns = 0;
  std::int64_t unit = kSecond / 10;
  for (++at; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at, unit /= 10) ns += (text[at] - '0') * unit;
  return ns;
}

Result<std::int64_t> parse_rfc3339(std::string_view text) {
  const Error bad = invalid(format("'{}' is not a time; write RFC 3339 (2026-01-31T08:00:00+04:00) or Unix seconds", shown(text)));
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0;
  const bool shape = digits(text, 0, 4, year) && digits(text, 5, 2, month) && digits(text, 8, 2, day) && digits(text, 11, 2, hour) &&
                     digits(text, 14, 2, minute) && digits(text, 17, 2, second) && text[4] == '-' && text[7] == '-' &&
                     (text[10] == 'T' || text[10] == 't' || text[10] == ' ') && text[13] == ':' && text[16] == ':';
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!shape || !date.ok() || hour > 23 || minute > 59 || second > 60) return bad;
  std::size_t at = 19;
  const std::int64_t ns = at < text.size() && text[at] == '.' ? fraction(text, at) : 0;
  int zone_hour = 0, zone_minute = 0;
  if (at >= text.size()) return invalid(format("'{}' has no time zone; append Z or +04:00", shown(text)));
  const char sign = text[at];
  if (sign == 'Z' || sign == 'z') {
    if (at + 1 != text.size()) return bad;
  } else if ((sign != '+' && sign != '-') || text.size() != at + 6 || !digits(text, at + 1, 2, zone_hour) || text[at + 3] != ':' ||
             !digits(text, at + 4, 2, zone_minute) || zone_hour > 23 || zone_minute > 59) {
    return bad;
  }
  const std::int64_t offset = (zone_hour * 60 + zone_minute) * 60 * (sign == '-' ? -1 : 1);
  const std::int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  return to_ns(days * 86400 + hour * 3600 + minute * 60 + second - offset, ns, text);
}

// Where each thing of the view is found in a record.
struct Plan {
  std::size_t entity = 0;
  std::optional<std::size_t> event_time;
  std::vector<std::size_t> fields;
  std::size_t width = 0;
};

class RowReader {
 public:
  RowReader(std::string_view name, messages::FeatureView::Reader view, const CsvOptions& options)
      : name_(name), view_(view), options_(options) {}

  Status read_header(std::span<const CsvField> header);
  // The row in `row`, or false and the errors noted.
  bool read_row(const CsvRecords& records, CsvRow& row);
  void note(std::uint64_t line, std::uint64_t column, std::string_view what) {
    ++errors_;
    if (errors_ > options_.errors_max) return;
    if (!text_.empty()) text_ += '\n';
    text_ += format("{}:{}:{}: {}", name_, line, column, what);
  }
  [[nodiscard]] bool full() const { return errors_ >= options_.errors_max; }
  [[nodiscard]] Status verdict() const {
    if (errors_ == 0) return {};
    return invalid(text_ + (full() && errors_ > 1 ? "\n(reading stopped here: there may be more)" : ""));
  }
  CsvSummary summary;

 private:
  [[nodiscard]] bool is_missing(const CsvField& field) const {
    if (field.text.empty()) return true;
    if (field.quoted) return false;
    return std::ranges::find(options_.missing, field.text) != options_.missing.end();
  }
  bool read_entity(const CsvField& field, CsvRow& row);
  bool read_value(const CsvField& field, messages::FeatureField::Reader spec, storage::FieldValue& value);

  std::string_view name_;
  messages::FeatureView::Reader view_;
  const CsvOptions& options_;
  Plan plan_;
  std::vector<messages::FeatureField::Reader> specs_;
  std::size_t errors_ = 0;
  std::string text_;
};

Status RowReader::read_header(std::span<const CsvField> header) {
  std::map<std::string_view, std::size_t> columns;
  for (std::size_t i = 0; i < header.size(); ++i) {
    const auto& field = header[i];
    if (field.text.empty()) {
      note(field.line, field.column, format("column {} has no name in the header; name it", i + 1));
    } else if (!columns.emplace(field.text, i).second) {
      note(field.line, field.column, format("field '{}': this column is in the header twice; rename one", shown(field.text)));
    }
  }
  std::set<std::string_view> used;
  const auto find = [&](std::string_view column, std::string_view what) -> std::optional<std::size_t> {
    used.insert(column);
    const auto found = columns.find(column);
    if (found != columns.end()) return found->second;
    note(header.front().line, 1,
         format("field '{}': the file has no such column, which is the view's {}; add it, or change the view", column, what));
    return std::nullopt;
  };
  plan_.width = header.size();
  if (const auto at = find(text(view_.getEntity()), "entity")) plan_.entity = *at;
  if (view_.getEventTime().size() != 0) plan_.event_time = find(text(view_.getEventTime()), "event time");
  for (const auto field : view_.getField()) {
    specs_.push_back(field);
    plan_.fields.push_back(find(text(field.getName()), "field").value_or(0));
  }
  for (const auto& field : header) {
    if (!used.contains(field.text)) summary.ignored.push_back(field.text);
  }
  return verdict();
}

bool RowReader::read_entity(const CsvField& field, CsvRow& row) {
  const auto name = text(view_.getEntity());
  if (field.text.empty()) {
    note(field.line, field.column, format("field '{}': the entity is empty", name));
    return false;
  }
  if (field.text.size() > kEntityBytesMax) {
    note(field.line, field.column, format("field '{}': an entity of {} bytes; at most {}", name, field.text.size(), kEntityBytesMax));
    return false;
  }
  row.entity = field.text;
  return true;
}

bool RowReader::read_value(const CsvField& field, messages::FeatureField::Reader spec, storage::FieldValue& value) {
  value = storage::FieldValue{};
  if (!is_missing(field)) {
    auto parsed = parse_value(field.text, spec.getType());
    if (!parsed.has_value()) {
      note(field.line, field.column, format("field '{}': {}", text(spec.getName()), parsed.error().message));
      return false;
    }
    value = std::move(*parsed);
  }
  if (!std::holds_alternative<std::monostate>(value)) return true;
  ++summary.missing;
  if (!spec.getRequired()) return true;
  note(field.line, field.column, format("field '{}': a value is required", text(spec.getName())));
  return false;
}

bool RowReader::read_row(const CsvRecords& records, CsvRow& row) {
  const auto fields = records.fields();
  if (fields.size() != plan_.width) {
    const auto& last = fields.back();
    note(last.line, last.column,
         format("{} columns, but the header has {}{}", fields.size(), plan_.width,
                fields.size() > plan_.width ? "; quote a field that holds the separator" : ""));
    return false;
  }
  row.line = records.line();
  row.event_time_ns = 0;
  row.values.resize(specs_.size());
  bool good = read_entity(fields[plan_.entity], row);
  if (plan_.event_time && !is_missing(fields[*plan_.event_time])) {
    const auto& field = fields[*plan_.event_time];
    auto time = parse_time_ns(trimmed(field.text));
    if (!time.has_value()) {
      note(field.line, field.column, format("field '{}': {}", text(view_.getEventTime()), time.error().message));
      good = false;
    } else {
      row.event_time_ns = *time;
    }
  }
  for (std::size_t i = 0; i < specs_.size(); ++i) good = read_value(fields[plan_.fields[i]], specs_[i], row.values[i]) && good;
  return good;
}

}  // namespace

Result<std::int64_t> parse_time_ns(std::string_view text) {
  std::size_t at = text.starts_with('-') ? 1 : 0;
  const bool negative = at == 1;
  const std::size_t begin = at;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
  const bool number = at > begin && (at == text.size() || text[at] == '.');
  if (!number) return parse_rfc3339(text);
  std::int64_t seconds = 0;
  const auto [end, fault] = std::from_chars(text.data() + begin, text.data() + at, seconds);
  if (fault != std::errc{} || end != text.data() + at) return invalid(format("'{}' is not a time in Unix seconds", shown(text)));
  const std::int64_t ns = at < text.size() ? fraction(text, at) : 0;
  if (at != text.size()) return invalid(format("'{}' is not a time in Unix seconds", shown(text)));
  return negative ? to_ns(-seconds, -ns, text) : to_ns(seconds, ns, text);
}

Result<CsvSummary> read_csv(ByteSource source, std::string_view name, messages::FeatureView::Reader view, const CsvOptions& options,
                            const CsvVisitor& visit, const CsvProgress& progress) {
  FALAJ_TRY(check_view(view));
  CsvRecords records(std::move(source), options.bounds, options.separator);
  RowReader rows(name, view, options);
  bool header_seen = false;
  CsvRow row;
  for (;;) {
    FALAJ_ASSIGN(const auto next, records.next());
    if (next == CsvRecords::Next::end) break;
    if (next == CsvRecords::Next::fault) {
      rows.note(records.fault().line, records.fault().column, records.fault().what);
      if (!header_seen || rows.full()) break;
      continue;
    }
    if (!header_seen) {
      header_seen = true;
      FALAJ_TRY(rows.read_header(records.fields()));
      continue;
    }
    if (rows.read_row(records, row)) {
      ++rows.summary.rows;
      if (visit) FALAJ_TRY(visit(std::move(row)));
      if (progress && rows.summary.rows % kProgressRows == 0) progress(rows.summary.rows, records.bytes());
    } else if (rows.full()) {
      break;
    }
  }
  FALAJ_TRY(rows.verdict());
  if (!header_seen) return invalid(format("{}:1:1: the file is empty; its first line must name the columns", name));
  rows.summary.bytes = records.bytes();
  if (progress) progress(rows.summary.rows, records.bytes());
  return std::move(rows.summary);
}

Result<CsvSummary> check_csv(ByteSource source, std::string_view name, messages::FeatureView::Reader view, const CsvOptions& options,
                             const CsvProgress& progress) {
  return read_csv(std::move(source), name, view, options, nullptr, progress);
}

Message put_rows(std::string_view tenant, std::string_view view, std::span<const CsvRow> rows) {
  std::size_t words = 16;
  for (const auto& row : rows) {
    words += 8 + row.entity.size() / 8 + row.values.size() * 3;
    for (const auto& value : row.values) {
      if (const auto* string = std::get_if<std::string>(&value)) words += 1 + string->size() / 8;
    }
  }
  return Message::build<messages::PutRows>(
      [&](messages::PutRows::Builder out) {
        out.setView(std::string(view));
        out.setTenant(std::string(tenant));
        auto list = out.initRows(static_cast<unsigned>(rows.size()));
        for (unsigned i = 0; i < list.size(); ++i) {
          const auto& row = rows[i];
          list[i].setEntity(row.entity);
          list[i].setEventTimeNs(row.event_time_ns);
          auto values = list[i].initValues(static_cast<unsigned>(row.values.size()));
          for (unsigned k = 0; k < values.size(); ++k) write_value(values[k], row.values[k]);
        }
      },
      words);
}

}  // namespace falaj::features
