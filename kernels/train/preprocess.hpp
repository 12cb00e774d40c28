// What a model must know about raw columns before it can be trained: means and deviations of numbers, vocabularies of categories.
// Fitted on training rows only. Fitters merge, and the result does not depend on who saw which row or in what order: the sums are
// exact (integers by exponent), the vocabularies sorted.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

enum class ColumnKind : std::uint8_t { numeric, categorical };
std::string_view to_string(ColumnKind kind) noexcept;

struct ColumnSpec {
  std::string name;
  ColumnKind kind = ColumnKind::numeric;
  bool operator==(const ColumnSpec&) const = default;
};

using NumericColumn = std::vector<float>;            // NaN: missing
using CategoricalColumn = std::vector<std::string>;  // "": missing
using Column = std::variant<NumericColumn, CategoricalColumn>;

// Raw feature columns of equal length. Row numbers (uint32_t) everywhere mean positions in such a table.
struct Table {
  std::vector<ColumnSpec> columns;
  std::vector<Column> values;  // values[i] belongs to columns[i]
  [[nodiscard]] std::size_t rows() const noexcept;
};
Status check(const Table& table);  // kinds and lengths agree, names are unique and not empty

struct FitOptions {
  std::uint64_t category_rows_min = 1;    // rarer categories count as unknown
  std::size_t vocabulary_max = 1U << 20;  // the most frequent are kept (ties: the smaller text)
  bool missing_indicators = true;         // one more 0/1 input for each numeric column in which training rows miss values
};

struct NumericFit {
  double mean = 0;
  double deviation = 1;  // never 0: a constant column is only shifted
  std::uint64_t rows = 0;
  std::uint64_t missing = 0;
  bool indicator = false;
  bool operator==(const NumericFit&) const = default;
};

struct CategoricalFit {
  std::vector<std::string> vocabulary;  // sorted; category i has code i + 1, code 0 is missing, rare or unknown
  std::uint64_t rows = 0;
  std::uint64_t missing = 0;
  bool operator==(const CategoricalFit&) const = default;
};

struct Preprocessing {
  std::vector<ColumnSpec> columns;
  std::vector<std::variant<NumericFit, CategoricalFit>> fits;
  bool operator==(const Preprocessing&) const = default;
};

class PreprocessFitter {
 public:
  explicit PreprocessFitter(std::vector<ColumnSpec> columns);
  Status add(const Table& table, std::span<const std::uint32_t> rows);
  Status merge(const PreprocessFitter& other);
  [[nodiscard]] Result<Preprocessing> finish(const FitOptions& options = {}) const;
  // For sending a part to whoever merges.
  [[nodiscard]] Bytes encode() const;
  static Result<PreprocessFitter> decode(ByteView bytes);

 private:
  // Sums of float mantissas by exponent: exact, hence the same in any order. Squares in two halves.
  struct NumericSums {
    std::uint64_t rows = 0, missing = 0;
    std::array<std::int64_t, 256> sum{};
    std::array<std::int64_t, 256> square_high{}, square_low{};
    void add(float x);
  };
  struct Counts {
    std::uint64_t rows = 0, missing = 0;
    std::map<std::string, std::uint64_t, std::less<>> categories;
  };
  std::vector<ColumnSpec> columns_;
  std::vector<std::variant<NumericSums, Counts>> sums_;
};

// Fit on the given rows at once.
Result<Preprocessing> fit_preprocessing(const Table& table, std::span<const std::uint32_t> rows, const FitOptions& options = {});

}  // namespace falaj::kernels
