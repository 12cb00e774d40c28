// Columns of a CSV file for the commands that need no cluster. The records are those of actors/features/csv.hpp; the first is the header.
//
// A column holds numbers when its first value that is not missing is one, and then every other value must be one too: an error names
// file, line, column and value. Missing are the empty cell, NA, ?, null and nan, none of them quoted.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

constexpr std::size_t kCsvBytesMax = std::size_t{8} << 30;  // of values kept

struct CsvColumn {
  std::string name;
  std::variant<std::vector<double>, std::vector<std::string>> values;  // NaN and "": missing
  [[nodiscard]] bool numeric() const { return values.index() == 0; }
};
struct CsvColumns {
  std::string file;
  std::vector<CsvColumn> columns;
  std::size_t rows = 0;
};

// The columns named, in that order; none named: all, in the file's order. `as_text`: none of them is taken for numbers.
Result<CsvColumns> read_csv_columns(const std::string& path, std::span<const std::string> names = {}, bool as_text = false);

// What a model's input is given: [rows, columns], or the input's own shape where its sizes but the rows are known and as many. Without
// names, every numeric column; strings need names. Missing values are NaN for floats and "" for strings, else an error with its row.
Result<kernels::Tensor> csv_tensor(const std::string& path, std::span<const std::string> names, const kernels::ValueInfo& wanted);
// One column, or those named as [rows, columns]: whole numbers as int64, others as float32. Every label must be there. Rows in errors
// count from 0, without the header.
Result<kernels::Tensor> csv_labels(const std::string& path, std::span<const std::string> names);

}  // namespace falaj::nodes
