#include "nodes/bench_models.hpp"

#include <numeric>

#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

constexpr std::size_t kNumbers = 13;
constexpr std::size_t kCategories = 7;

kernels::Table make_table(std::size_t rows, Random random) {
  kernels::Table table;
  for (std::size_t c = 0; c < kNumbers; ++c) {
    table.columns.push_back({format("number{}", c), kernels::ColumnKind::numeric});
    kernels::NumericColumn values(rows);
    for (auto& value : values) value = static_cast<float>(random.normal() * 10 + 50);
    table.values.emplace_back(std::move(values));
  }
  for (std::size_t c = 0; c < kCategories; ++c) {
    table.columns.push_back({format("category{}", c), kernels::ColumnKind::categorical});
    kernels::CategoricalColumn values(rows);
    for (auto& value : values) value = format("value{}", random.below(5));
    table.values.emplace_back(std::move(values));
  }
  return table;
}

}  // namespace

Result<BenchModel> make_bench_model(std::size_t rows) {
  BenchModel model;
  Random random(1);
  model.table = make_table(rows, random.split("table"));
  model.labels.resize(rows);
  for (auto& label : model.labels) label = random.chance(0.5) ? 1 : 0;
  model.target = {.name = "label", .task = kernels::Task::binary, .classes = {"no", "yes"}};
  std::vector<std::uint32_t> all(rows);
  std::iota(all.begin(), all.end(), 0U);
  kernels::PreprocessFitter fitter(model.table.columns);
  FALAJ_TRY(fitter.add(model.table, all));
  FALAJ_ASSIGN(const auto preprocessing, fitter.finish());
  FALAJ_ASSIGN(model.graph, kernels::build_family({}, preprocessing, model.target, 1));
  return model;
}

std::string request_body(const kernels::Table& table, std::size_t row) {
  net::JsonWriter w;
  w.begin_object().key("inputs").begin_array();
  for (std::size_t c = 0; c < table.columns.size(); ++c) {
    const auto* numbers = std::get_if<kernels::NumericColumn>(&table.values[c]);
    w.begin_object().key("name").string(table.columns[c].name).key("shape").begin_array().number(1).number(1).end_array();
    w.key("datatype").string(numbers != nullptr ? "FP32" : "BYTES").key("data").begin_array();
    if (numbers != nullptr) {
      w.number((*numbers)[row]);
    } else {
      w.string(std::get<kernels::CategoricalColumn>(table.values[c])[row]);
    }
    w.end_array().end_object();
  }
  w.end_array().end_object();
  return std::move(w).take();
}

}  // namespace falaj::nodes
