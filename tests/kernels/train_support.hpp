// What the training tests share: a reader for the example CSV files (no quotes in them) and a fitted model on top.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/plan.hpp"
#include "kernels/train/fit.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels::testing {

struct Example {
  Table table;
  std::vector<std::string> labels;
};

inline Example read_example(const std::string& file, const std::string& id, const std::string& label, bool all_numeric = false) {
  std::ifstream in(std::string(FALAJ_SOURCE_DIR) + "/configs/examples/data/" + file);
  const auto cells = [](const std::string& line) {
    std::vector<std::string> out;
    std::stringstream stream(line);
    for (std::string cell; std::getline(stream, cell, ',');) out.push_back(cell.ends_with('\r') ? cell.substr(0, cell.size() - 1) : cell);
    return out;
  };
  std::string line;
  std::getline(in, line);
  const auto header = cells(line);
  std::vector<std::vector<std::string>> columns(header.size());
  while (std::getline(in, line)) {
    const auto row = cells(line);
    EXPECT_EQ(row.size(), header.size());
    for (std::size_t i = 0; i < row.size(); ++i) columns[i].push_back(row[i]);
  }
  const auto number = [](const std::string& text) {
    float value = std::numeric_limits<float>::quiet_NaN();
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
    return std::pair(problem == std::errc() && end == text.data() + text.size(), value);
  };
  Example example;
  for (std::size_t i = 0; i < header.size(); ++i) {
    if (header[i] == id) continue;
    if (header[i] == label) {
      example.labels = columns[i];
      continue;
    }
    const bool numeric = all_numeric || std::ranges::all_of(columns[i], [&](const std::string& text) { return number(text).first; });
    example.table.columns.push_back({header[i], numeric ? ColumnKind::numeric : ColumnKind::categorical});
    if (!numeric) {
      example.table.values.emplace_back(columns[i]);
      continue;
    }
    NumericColumn values;
    for (const std::string& text : columns[i]) values.push_back(number(text).second);
    example.table.values.emplace_back(std::move(values));
  }
  return example;
}

// Everything between raw columns and a trainer that is ready to fit.
struct Prepared {
  TargetSpec target;
  Graph graph;
  std::unique_ptr<Trainer> trainer;
  DataSet data;
};

inline Result<Prepared> prepare(const Example& example, std::span<const std::uint32_t> train, const FamilySpec& family, std::uint64_t seed,
                                const std::string& label, const std::string& positive = {}) {
  Prepared out;
  FALAJ_ASSIGN(const Preprocessing fitted, fit_preprocessing(example.table, train));
  FALAJ_ASSIGN(out.target, fit_target(label, example.labels, train, positive));
  FALAJ_ASSIGN(out.graph, build_family(family, fitted, out.target, seed));
  FALAJ_ASSIGN(out.trainer, Trainer::make(out.graph, {out.target}));
  FALAJ_ASSIGN(auto labels, encode_labels(out.target, example.labels));
  FALAJ_ASSIGN(out.data, out.trainer->prepare(example.table, std::move(labels)));
  return out;
}

inline std::vector<std::uint32_t> all_rows(std::size_t count) {
  std::vector<std::uint32_t> rows(count);
  std::iota(rows.begin(), rows.end(), 0U);
  return rows;
}

inline const Example& credit() {
  static const Example example = read_example("german_credit.csv", "applicant_id", "class");
  return example;
}

inline Result<Split> credit_split(std::uint64_t seed) {
  const auto rows = all_rows(credit().labels.size());
  FALAJ_ASSIGN(const TargetSpec target, fit_target("class", credit().labels, rows, "bad"));
  FALAJ_ASSIGN(const auto labels, encode_labels(target, credit().labels));
  return stratified_split({.test = 0.2, .seed = seed}, rows.size(), strata_of(labels, false));
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

inline FitSpec short_fit() {
  FitSpec spec = recommended_fit(Family::wide_deep, 800);
  spec.epochs = 3;
  spec.sampler.seed = 5;
  return spec;
}

// The gradient of the loss against differences of it, at some elements of each parameter. The model must be smooth.
inline void expect_slopes(Prepared& prepared, std::span<const std::uint32_t> rows, Random random, int probes = 4) {
  Trainer& trainer = *prepared.trainer;
  for (float& x : trainer.parameters()) x += static_cast<float>(0.1 * random.normal());
  std::vector<float> gradient(trainer.parameters().size());
  const auto loss = trainer.gradient(prepared.data, rows, gradient);
  ASSERT_TRUE(loss) << loss.error().message;
  EXPECT_NEAR(*loss, trainer.evaluate(prepared.data, rows)->loss_sum, 1e-3);
  for (const Parameter& parameter : trainer.layout()) {
    for (int probe = 0; probe < probes; ++probe) {
      const std::size_t at = parameter.offset + random.below(parameter.count);
      const float before = trainer.parameters()[at];
      trainer.parameters()[at] = before + 0.01F;
      const double above = trainer.evaluate(prepared.data, rows)->loss_sum;
      trainer.parameters()[at] = before - 0.01F;
      const double below = trainer.evaluate(prepared.data, rows)->loss_sum;
      trainer.parameters()[at] = before;
      EXPECT_NEAR(gradient[at], (above - below) / 0.02, 0.02 + 0.01 * std::abs(gradient[at])) << parameter.name;
    }
  }
}

// Runs a model as a server would: raw columns in.
inline Result<std::vector<Tensor>> serve(const Graph& graph, const Table& table) {
  FALAJ_ASSIGN(auto compiled, compile(graph));
  Executor executor(compiled);
  std::vector<Tensor> inputs;
  for (const ValueInfo& info : compiled->inputs()) {
    for (std::size_t i = 0; i < table.columns.size(); ++i) {
      if (table.columns[i].name != info.name) continue;
      const Shape shape{static_cast<std::int64_t>(table.rows()), 1};
      if (const auto* numbers = std::get_if<NumericColumn>(&table.values[i])) {
        inputs.push_back(Tensor::const_view(DType::f32, shape, numbers->data()));
      } else {
        inputs.push_back(Tensor::const_view(DType::string, shape, std::get<CategoricalColumn>(table.values[i]).data()));
      }
    }
  }
  std::vector<Tensor> outputs;
  FALAJ_TRY(executor.run(inputs, outputs));
  return outputs;
}

}  // namespace falaj::kernels::testing
