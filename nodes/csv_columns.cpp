#include "nodes/csv_columns.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "actors/features/csv.hpp"
#include "kernels/convert.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using features::CsvField;
using features::CsvRecords;
using kernels::DType;
using kernels::Shape;
using kernels::Tensor;

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();
constexpr std::size_t kShownMax = 40;
constexpr double kExactMax = 9007199254740992.0;  // up to 2^53 every whole number is a double

bool is_missing(const CsvField& field) {
  static constexpr std::array<std::string_view, 6> kTexts = {"", "NA", "?", "null", "nan", "NaN"};
  return !field.quoted && std::ranges::find(kTexts, field.text) != kTexts.end();
}

std::optional<double> number_of(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string listed(std::span<const CsvField> fields) {
  std::string out;
  for (const auto& field : fields) {
    if (out.size() > 200) return out + ", ...";
    out += (out.empty() ? "" : ", ") + field.text;
  }
  return out;
}

// Which field of a record is which column that is wanted.
Result<std::vector<std::size_t>> find_columns(const std::string& path, std::span<const CsvField> header,
                                              std::span<const std::string> names) {
  std::vector<std::size_t> at;
  for (std::size_t i = 0; i < header.size(); ++i) {
    const auto same = [&](const CsvField& other) { return other.text == header[i].text; };
    if (std::ranges::count_if(header, same) > 1)
      return invalid(format("{}:1:{}: two columns are named '{}'", path, header[i].column, header[i].text));
    if (names.empty()) at.push_back(i);
  }
  for (const auto& name : names) {
    const auto found = std::ranges::find(header, name, &CsvField::text);
    if (found == header.end()) return invalid(format("{}: has no column '{}'; its columns are: {}", path, name, listed(header)));
    at.push_back(static_cast<std::size_t>(found - header.begin()));
  }
  return at;
}

// The values of a column so far: missing ones are counted until the first that says what the column holds.
struct Column {
  std::string name;
  std::size_t field = 0;
  std::size_t missing = 0;
  std::optional<std::variant<std::vector<double>, std::vector<std::string>>> values;

  Status add(const std::string& path, const CsvField& cell, bool as_text, std::size_t& bytes) {
    bytes += sizeof(double);
    const bool gone = is_missing(cell);
    if (gone && !values && !as_text) {
      ++missing;
      return {};
    }
    const auto number = number_of(cell.text);
    if (!values) {
      if (!as_text && number) {
        values.emplace(std::vector<double>(missing, kMissing));
      } else {
        values.emplace(std::vector<std::string>(missing));
      }
    }
    if (auto* texts = std::get_if<std::vector<std::string>>(&*values)) {
      texts->push_back(gone ? std::string() : cell.text);
      bytes += sizeof(std::string) + (cell.text.size() > 15 ? cell.text.size() : 0);
    } else if (gone || number) {
      std::get<std::vector<double>>(*values).push_back(gone ? kMissing : *number);
    } else {
      return invalid(format("{}:{}:{}: column '{}': '{}' is no number, and the values before it are", path, cell.line, cell.column, name,
                            cell.text.substr(0, kShownMax)));
    }
    return {};
  }
};

Status read_records(CsvRecords& records, const std::string& path, std::span<Column> columns, std::size_t width, bool as_text,
                    std::size_t& rows) {
  std::size_t bytes = 0;
  for (;;) {
    FALAJ_ASSIGN(const auto next, records.next());
    if (next == CsvRecords::Next::end) return {};
    if (next == CsvRecords::Next::fault)
      return invalid(format("{}:{}:{}: {}", path, records.fault().line, records.fault().column, records.fault().what));
    const auto fields = records.fields();
    if (fields.size() != width) return invalid(format("{}:{}:1: {} fields, the header has {}", path, records.line(), fields.size(), width));
    for (Column& column : columns) FALAJ_TRY(column.add(path, fields[column.field], as_text, bytes));
    if (bytes > kCsvBytesMax) return invalid(format("{}: more than {} bytes of values: split the file", path, kCsvBytesMax));
    ++rows;
  }
}

bool same_sizes(const Shape& row, std::size_t columns) {
  std::int64_t product = 1;
  for (std::size_t d = 1; d < row.rank(); ++d) {
    if (row[d] < 0) return false;
    product *= std::min<std::int64_t>(row[d], std::int64_t{1} << 31);
    if (product > std::int64_t{1} << 31) return false;
  }
  return product == static_cast<std::int64_t>(columns);
}

Result<Tensor> texts_of(CsvColumns read, const Shape& shape) {
  Tensor out(DType::string, shape);
  auto values = out.mutable_data<std::string>();
  for (std::size_t c = 0; c < read.columns.size(); ++c) {
    auto& texts = std::get<std::vector<std::string>>(read.columns[c].values);
    for (std::size_t row = 0; row < read.rows; ++row) values[row * read.columns.size() + c] = std::move(texts[row]);
  }
  return out;
}

struct Range {
  double low, high;
};
std::optional<Range> range_of(DType dtype) {
  switch (dtype) {
    case DType::i64:
      return Range{-kExactMax, kExactMax};
    case DType::u64:
      return Range{0, kExactMax};
    case DType::i32:
      return Range{-2147483648.0, 2147483647.0};
    case DType::u32:
      return Range{0, 4294967295.0};
    case DType::i16:
      return Range{-32768, 32767};
    case DType::u16:
      return Range{0, 65535};
    case DType::i8:
      return Range{-128, 127};
    case DType::u8:
      return Range{0, 255};
    case DType::boolean:
      return Range{0, 1};
    default:
      return std::nullopt;
  }
}

Result<Tensor> numbers_of(const CsvColumns& read, const Shape& shape, DType dtype) {
  const auto range = range_of(dtype);
  if (!range && !kernels::is_float(dtype))
    return Error{ErrorCode::unimplemented,
                 format("{}: values of {} cannot be read from CSV: give an .npy file", read.file, to_string(dtype))};
  FALAJ_TRY(kernels::byte_size(DType::f64, shape));
  Tensor out(DType::f64, shape);
  auto values = out.mutable_data<double>();
  for (std::size_t c = 0; c < read.columns.size(); ++c) {
    const CsvColumn& column = read.columns[c];
    if (!column.numeric()) return invalid(format("{}: column '{}' holds no numbers", read.file, column.name));
    const auto& numbers = std::get<std::vector<double>>(column.values);
    for (std::size_t row = 0; row < read.rows; ++row) {
      const double x = numbers[row];
      if (range && !(x >= range->low && x <= range->high && x == std::floor(x)))
        return invalid(format("{}: row {}, column '{}': {} is not a value of {}", read.file, row, column.name,
                              std::isnan(x) ? std::string("a missing value") : format("{}", x), to_string(dtype)));
      values[row * read.columns.size() + c] = x;
    }
  }
  return dtype == DType::f64 ? out : kernels::converted(out, dtype);
}

}  // namespace

Result<CsvColumns> read_csv_columns(const std::string& path, std::span<const std::string> names, bool as_text) {
  FALAJ_ASSIGN(auto source, features::bytes_of_file(path));
  CsvRecords records(std::move(source));
  FALAJ_ASSIGN(const auto first, records.next());
  if (first == CsvRecords::Next::end) return invalid(format("{}: is empty; its first line must name the columns", path));
  if (first == CsvRecords::Next::fault)
    return invalid(format("{}:{}:{}: {}", path, records.fault().line, records.fault().column, records.fault().what));
  FALAJ_ASSIGN(const auto at, find_columns(path, records.fields(), names));
  const std::size_t width = records.fields().size();
  std::vector<Column> columns;
  for (const std::size_t field : at) columns.push_back({.name = records.fields()[field].text, .field = field});
  CsvColumns out{.file = path};
  FALAJ_TRY(read_records(records, path, columns, width, as_text, out.rows));
  if (out.rows == 0) return invalid(format("{}: has a header and no rows", path));
  for (Column& column : columns) {
    if (!column.values) column.values.emplace(std::vector<double>(column.missing, kMissing));  // nothing but missing ones
    out.columns.push_back({std::move(column.name), std::move(*column.values)});
  }
  return out;
}

Result<Tensor> csv_tensor(const std::string& path, std::span<const std::string> names, const kernels::ValueInfo& wanted) {
  const bool texts = wanted.dtype == DType::string;
  if (texts && names.empty()) return invalid(format("{}: name the columns of strings that are meant, as in {}:NAME", path, path));
  FALAJ_ASSIGN(auto read, read_csv_columns(path, names, texts));
  if (names.empty()) std::erase_if(read.columns, [](const CsvColumn& column) { return !column.numeric(); });
  if (read.columns.empty()) return invalid(format("{}: no column holds numbers", path));
  Shape shape{static_cast<std::int64_t>(read.rows), static_cast<std::int64_t>(read.columns.size())};
  if (wanted.has_shape && wanted.shape.rank() != 2 && !wanted.shape.empty() && same_sizes(wanted.shape, read.columns.size())) {
    shape = wanted.shape;
    shape[0] = static_cast<std::int64_t>(read.rows);
  }
  return texts ? texts_of(std::move(read), shape) : numbers_of(read, shape, wanted.dtype);
}

Result<Tensor> csv_labels(const std::string& path, std::span<const std::string> names) {
  FALAJ_ASSIGN(auto read, read_csv_columns(path, names));
  if (read.columns.size() != 1 && names.empty())
    return invalid(format("{}: {} columns, of which one is the labels: say {}:COLUMN", path, read.columns.size(), path));
  bool whole = true;
  for (const CsvColumn& column : read.columns) {
    if (!column.numeric()) return invalid(format("{}: column '{}' holds no numbers, which labels must be", path, column.name));
    const auto& values = std::get<std::vector<double>>(column.values);
    const auto bad = std::ranges::find_if(values, [](double x) { return !std::isfinite(x); });
    if (bad != values.end()) return invalid(format("{}: row {}, column '{}': there is no label", path, bad - values.begin(), column.name));
    whole = whole && std::ranges::all_of(values, [](double x) { return x == std::floor(x) && std::abs(x) <= kExactMax; });
  }
  Shape shape{static_cast<std::int64_t>(read.rows)};
  if (read.columns.size() > 1) shape.push_back(static_cast<std::int64_t>(read.columns.size()));
  return numbers_of(read, shape, whole ? DType::i64 : DType::f32);
}

}  // namespace falaj::nodes
