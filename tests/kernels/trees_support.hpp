// What the tests of boosted trees share: small random tables with missing numbers and categories, and runs over them.
#pragma once
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/trees/booster.hpp"
#include "kernels/trees/grow.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"
#include "tests/kernels/train_support.hpp"

namespace falaj::kernels::trees::testing {

using kernels::testing::all_rows;
using kernels::testing::serve;

constexpr float kMissing = std::numeric_limits<float>::quiet_NaN();
inline const TargetSpec kBinary{.name = "y", .task = Task::binary, .classes = {"no", "yes"}};

struct Sample {
  Table table;
  std::vector<float> labels;  // 0 or 1
};

// Numbers (every second column with missing ones, every third of few values), then categories; the label depends on some of each.
inline Sample random_sample(Random& random, std::size_t rows, std::size_t numbers, std::size_t categories) {
  Sample out;
  std::vector<double> score(rows);
  for (std::size_t c = 0; c < numbers; ++c) {
    NumericColumn column(rows);
    for (std::size_t r = 0; r < rows; ++r) {
      double x = random.normal();
      if (c % 3 == 2) x = std::floor(x * 2);
      const bool missing = c % 2 == 1 && random.chance(0.15);
      score[r] += missing ? 0.7 : std::sin(x * 2) / static_cast<double>(c + 1);
      column[r] = missing ? kMissing : static_cast<float>(x);
    }
    out.table.columns.push_back({format("x{}", c), ColumnKind::numeric});
    out.table.values.emplace_back(std::move(column));
  }
  for (std::size_t c = 0; c < categories; ++c) {
    const std::uint64_t words = c % 2 == 0 ? 12 : 3;
    CategoricalColumn column(rows);
    for (std::size_t r = 0; r < rows; ++r) {
      const std::uint64_t word = random.below(words + 1);
      if (word < words) column[r] = format("w{}", word);
      score[r] += word * 7 % 5 < 2 ? 0.6 : -0.4;
    }
    out.table.columns.push_back({format("c{}", c), ColumnKind::categorical});
    out.table.values.emplace_back(std::move(column));
  }
  for (std::size_t r = 0; r < rows; ++r) out.labels.push_back(random.chance(1 / (1 + std::exp(-score[r]))) ? 1.0F : 0.0F);
  return out;
}

inline std::unique_ptr<Booster> boosted(const Spec& spec, const TargetSpec& target, const Table& table, std::span<const float> labels,
                                        std::size_t threads = 1) {
  auto made = Booster::make(spec, target, table, labels, all_rows(table.rows()), {}, threads);
  EXPECT_TRUE(made) << made.error().message;
  while (!(*made)->done()) EXPECT_TRUE((*made)->step());
  return std::move(*made);
}

// All that a Grower needs, over all rows of a table.
struct Field {
  Spec spec;
  Team team;
  Preprocessing fitted;
  Bins bins;
  Matrix matrix;
  Field(const Table& table, const Spec& given, std::size_t threads) : spec(given), team(threads) {
    const auto rows = all_rows(table.rows());
    fitted = fit_preprocessing(table, rows, {.vocabulary_max = kBinsMax - 1, .missing_indicators = false}).value();
    bins = fit_bins(table, fitted, rows, spec, team).value();
    matrix = Matrix::of(bins, table, team).value();
    matrix.pack(team);
  }
};

}  // namespace falaj::kernels::trees::testing
