// Columns as small whole numbers: each value is replaced by the bin it falls into, once, before the first tree.
//
// A column of numbers is cut into at most `bins` ranges that hold about equally many training rows; a value with many rows gets a
// range of its own. Bin b holds x <= upper[b] (and above upper[b - 1]); the last one all that is larger, infinity too. Missing numbers
// (NaN) have the bin behind the last. Edges lie between two values that occur, so that comparing floats and comparing bins agree.
// A column of categories has the bin i + 1 for vocabulary[i] and 0 for all else: missing, rare, unknown.
//
// The matrix of bins is kept twice, both as bytes: by column, for sending the rows of a leaf left or right, and by groups of columns, in
// each of which a row's bins lie together, for histograms.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/team.hpp"
#include "kernels/train/preprocess.hpp"
#include "kernels/trees/spec.hpp"

namespace falaj::kernels::trees {

constexpr std::size_t kGroupWidth = 16;  // columns of a group, at most: their histogram of 32 KiB stays in the nearest cache
constexpr std::size_t kStride = 256;     // a bin is a byte

struct ColumnBins {
  std::string name;
  bool categorical = false;
  std::vector<float> upper;             // numbers: ascending
  std::vector<std::string> vocabulary;  // categories: sorted

  [[nodiscard]] std::size_t values() const noexcept { return categorical ? vocabulary.size() + 1 : upper.size() + 1; }
  [[nodiscard]] std::size_t bins() const noexcept { return categorical ? values() : values() + 1; }
  [[nodiscard]] std::size_t missing() const noexcept { return categorical ? 0 : values(); }
  [[nodiscard]] std::uint8_t bin(float value) const noexcept;
  [[nodiscard]] std::uint8_t bin(const std::string& value) const noexcept;
  bool operator==(const ColumnBins&) const = default;
};
using Bins = std::vector<ColumnBins>;

// From the rows given (not empty, all inside the table). `fitted` brings the vocabularies: fit_preprocessing() of the same rows with
// at most kBinsMax - 1 words a column (vocabulary_max).
Result<Bins> fit_bins(const Table& table, const Preprocessing& fitted, std::span<const std::uint32_t> rows, const Spec& spec, Team& team);

class Matrix {
 public:
  Matrix() = default;
  // All rows of the table; its columns are matched by name, extra ones are left alone.
  static Result<Matrix> of(const Bins& bins, const Table& table, Team& team);

  struct Group {
    std::size_t first = 0;             // column
    std::size_t width = 0;             // columns
    std::vector<std::uint8_t> packed;  // [rows][width]
  };
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t columns() const noexcept { return columns_; }
  [[nodiscard]] const std::uint8_t* column(std::size_t i) const noexcept { return by_column_.data() + i * rows_; }
  [[nodiscard]] const std::vector<Group>& groups() const noexcept { return groups_; }
  // Needed for growing trees, not for asking them. Enough groups for the team.
  void pack(Team& team);

 private:
  std::size_t rows_ = 0, columns_ = 0;
  std::vector<std::uint8_t> by_column_;  // [columns][rows]
  std::vector<Group> groups_;
};

}  // namespace falaj::kernels::trees
