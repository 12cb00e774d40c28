#include "kernels/train/preprocess.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

#include "kernels/codec.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

std::string_view to_string(ColumnKind kind) noexcept { return kind == ColumnKind::numeric ? "numeric" : "categorical"; }

std::size_t Table::rows() const noexcept {
  if (values.empty()) return 0;
  return std::visit([](const auto& column) { return column.size(); }, values.front());
}

Status check(const Table& table) {
  if (table.values.size() != table.columns.size()) {
    return invalid(format("table: {} columns are named, {} are given", table.columns.size(), table.values.size()));
  }
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < table.columns.size(); ++i) {
    const ColumnSpec& spec = table.columns[i];
    if (spec.name.empty()) return invalid(format("table: column {} has no name", i));
    if (!names.insert(spec.name).second) return invalid(format("table: two columns are named '{}'", spec.name));
    const bool numeric = std::holds_alternative<NumericColumn>(table.values[i]);
    if (numeric != (spec.kind == ColumnKind::numeric))
      return invalid(format("column '{}' is {}, its values are not", spec.name, to_string(spec.kind)));
    const std::size_t size = std::visit([](const auto& column) { return column.size(); }, table.values[i]);
    if (size != table.rows()) return invalid(format("column '{}' has {} rows, the table {}", spec.name, size, table.rows()));
  }
  return {};
}

PreprocessFitter::PreprocessFitter(std::vector<ColumnSpec> columns) : columns_(std::move(columns)) {
  for (const ColumnSpec& column : columns_) {
    if (column.kind == ColumnKind::numeric) {
      sums_.emplace_back(NumericSums{});
    } else {
      sums_.emplace_back(Counts{});
    }
  }
}

// A float is mantissa * 2^(exponent - 150) with a mantissa of 24 bits, so 2^39 of them fit one bin; the square of a mantissa has
// 48 bits, which two bins share.
void PreprocessFitter::NumericSums::add(float x) {
  ++rows;
  if (!std::isfinite(x)) {  // an infinity would be all that is left of the mean
    ++missing;
    return;
  }
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t exponent = (bits >> 23) & 0xFFU;
  const std::int64_t mantissa = (bits & 0x7FFFFFU) | (exponent == 0 ? 0U : 0x800000U);
  const std::uint32_t bin = std::max(exponent, 1U);
  sum[bin] += (bits >> 31) != 0 ? -mantissa : mantissa;
  square_high[bin] += (mantissa * mantissa) >> 24;
  square_low[bin] += (mantissa * mantissa) & 0xFFFFFF;
}

Status PreprocessFitter::add(const Table& table, std::span<const std::uint32_t> rows) {
  FALAJ_TRY(check(table));
  if (table.columns != columns_) return invalid("preprocessing: the table's columns are not those the fitter was made for");
  for (const std::uint32_t row : rows) {
    if (row >= table.rows()) return invalid(format("preprocessing: row {} of a table of {}", row, table.rows()));
  }
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    if (auto* sums = std::get_if<NumericSums>(&sums_[i])) {
      for (const std::uint32_t row : rows) sums->add(std::get<NumericColumn>(table.values[i])[row]);
      continue;
    }
    auto& counts = std::get<Counts>(sums_[i]);
    for (const std::uint32_t row : rows) {
      const std::string& value = std::get<CategoricalColumn>(table.values[i])[row];
      ++counts.rows;
      if (value.empty()) {
        ++counts.missing;
      } else {
        ++counts.categories[value];
      }
    }
  }
  return {};
}

Status PreprocessFitter::merge(const PreprocessFitter& other) {
  if (other.columns_ != columns_) return invalid("preprocessing: parts of different columns cannot be merged");
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    if (auto* mine = std::get_if<NumericSums>(&sums_[i])) {
      const auto& theirs = std::get<NumericSums>(other.sums_[i]);
      mine->rows += theirs.rows;
      mine->missing += theirs.missing;
      for (std::size_t bin = 0; bin < mine->sum.size(); ++bin) {
        mine->sum[bin] += theirs.sum[bin];
        mine->square_high[bin] += theirs.square_high[bin];
        mine->square_low[bin] += theirs.square_low[bin];
      }
      continue;
    }
    auto& mine = std::get<Counts>(sums_[i]);
    const auto& theirs = std::get<Counts>(other.sums_[i]);
    mine.rows += theirs.rows;
    mine.missing += theirs.missing;
    for (const auto& [category, count] : theirs.categories) mine.categories[category] += count;
  }
  return {};
}

namespace {

CategoricalFit fit_categories(const std::map<std::string, std::uint64_t, std::less<>>& categories, const FitOptions& options) {
  std::vector<std::pair<std::uint64_t, std::string>> kept;
  for (const auto& [category, count] : categories) {
    if (count >= options.category_rows_min) kept.emplace_back(count, category);
  }
  if (kept.size() > options.vocabulary_max) {
    std::ranges::sort(kept, [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
    kept.resize(options.vocabulary_max);
  }
  CategoricalFit fit;
  for (auto& [count, category] : kept) fit.vocabulary.push_back(std::move(category));
  std::ranges::sort(fit.vocabulary);
  return fit;
}

}  // namespace

Result<Preprocessing> PreprocessFitter::finish(const FitOptions& options) const {
  Preprocessing out;
  out.columns = columns_;
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    if (const auto* counts = std::get_if<Counts>(&sums_[i])) {
      CategoricalFit fit = fit_categories(counts->categories, options);
      fit.rows = counts->rows;
      fit.missing = counts->missing;
      out.fits.emplace_back(std::move(fit));
      continue;
    }
    const auto& sums = std::get<NumericSums>(sums_[i]);
    NumericFit fit{.rows = sums.rows, .missing = sums.missing};
    if (sums.rows == 0) return invalid(format("column '{}': there are no training rows", columns_[i].name));
    if (const auto present = static_cast<double>(sums.rows - sums.missing); present > 0) {
      double sum = 0;
      double squares = 0;
      for (int bin = 1; bin < 255; ++bin) {  // small before large
        const auto at = static_cast<std::size_t>(bin);
        sum += std::ldexp(static_cast<double>(sums.sum[at]), bin - 150);
        squares +=
            std::ldexp(static_cast<double>(sums.square_high[at]) * 0x1p24 + static_cast<double>(sums.square_low[at]), 2 * (bin - 150));
      }
      fit.mean = sum / present;
      const double variance = squares / present - fit.mean * fit.mean;
      // Below this share of the mean square the difference is rounding, not spread.
      if (variance > 1e-13 * (squares / present)) fit.deviation = std::sqrt(variance);
    }
    fit.indicator = options.missing_indicators && fit.missing > 0 && fit.missing < fit.rows;
    out.fits.emplace_back(fit);
  }
  return out;
}

namespace {
constexpr std::uint32_t kFitterFormat = 1;
}

Bytes PreprocessFitter::encode() const {
  Writer writer;
  writer.number(kFitterFormat);
  writer.number(static_cast<std::uint32_t>(columns_.size()));
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    writer.text(columns_[i].name);
    writer.number(static_cast<std::uint8_t>(columns_[i].kind));
    if (const auto* sums = std::get_if<NumericSums>(&sums_[i])) {
      writer.number(sums->rows);
      writer.number(sums->missing);
      for (const auto* bins : {&sums->sum, &sums->square_high, &sums->square_low}) {
        for (const std::int64_t bin : *bins) writer.number(bin);
      }
      continue;
    }
    const auto& counts = std::get<Counts>(sums_[i]);
    writer.number(counts.rows);
    writer.number(counts.missing);
    writer.number(static_cast<std::uint64_t>(counts.categories.size()));
    for (const auto& [category, count] : counts.categories) {
      writer.text(category);
      writer.number(count);
    }
  }
  return writer.finish();
}

Result<PreprocessFitter> PreprocessFitter::decode(ByteView bytes) {
  FALAJ_ASSIGN(Reader reader, Reader::open(bytes, "preprocessing part"));
  if (const auto version = reader.number<std::uint32_t>(); version != kFitterFormat) {
    return error(ErrorCode::corrupt,
                 format("preprocessing part: format {} is not known here (this build reads {})", version, kFitterFormat));
  }
  std::vector<ColumnSpec> columns;
  std::vector<std::variant<NumericSums, Counts>> parts;
  const auto count = reader.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < count && reader.ok(); ++i) {
    ColumnSpec column;
    column.name = reader.text();
    column.kind = reader.number<std::uint8_t>() == 0 ? ColumnKind::numeric : ColumnKind::categorical;
    columns.push_back(column);
    if (column.kind == ColumnKind::numeric) {
      NumericSums sums;
      sums.rows = reader.number<std::uint64_t>();
      sums.missing = reader.number<std::uint64_t>();
      for (auto* bins : {&sums.sum, &sums.square_high, &sums.square_low}) {
        for (std::int64_t& bin : *bins) bin = reader.number<std::int64_t>();
      }
      parts.emplace_back(sums);
      continue;
    }
    Counts counts;
    counts.rows = reader.number<std::uint64_t>();
    counts.missing = reader.number<std::uint64_t>();
    const auto categories = reader.number<std::uint64_t>();
    for (std::uint64_t c = 0; c < categories && reader.ok(); ++c) {
      std::string category = reader.text();
      counts.categories[std::move(category)] = reader.number<std::uint64_t>();
    }
    parts.emplace_back(std::move(counts));
  }
  FALAJ_TRY(reader.finish());
  PreprocessFitter fitter(std::move(columns));
  fitter.sums_ = std::move(parts);
  return fitter;
}

Result<Preprocessing> fit_preprocessing(const Table& table, std::span<const std::uint32_t> rows, const FitOptions& options) {
  PreprocessFitter fitter(table.columns);
  FALAJ_TRY(fitter.add(table, rows));
  return fitter.finish(options);
}

}  // namespace falaj::kernels
