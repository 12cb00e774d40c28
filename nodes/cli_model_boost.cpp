// model boost: gradient-boosted trees (kernels/trees) from a file, without a cluster. Not a case of `model train`: there is no model to
// begin with, and columns are raw: missing values and categories are the trees' own matter.

#include "nodes/cli_model_boost.hpp"

#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "kernels/convert.hpp"
#include "kernels/onnx/onnx.hpp"
#include "kernels/train/split.hpp"
#include "kernels/trees/booster.hpp"
#include "nodes/array_files.hpp"
#include "nodes/artifacts.hpp"
#include "nodes/csv_columns.hpp"
#include "nodes/model_training.hpp"
#include "nodes/plot.hpp"
#include "nodes/progress.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

using kernels::Table;
using kernels::Tensor;
namespace trees = kernels::trees;

struct Arguments {
  std::string data, labels, label, positive;
  std::vector<std::string> exclude, categories;
  trees::Spec spec;
  double validation = 0, test = 0.2;
  std::size_t threads = 0;
  bool json = false;
  std::string log, output;
};

struct Rows {
  Table table;
  std::vector<std::string> labels;  // as texts
  std::string label;                // its name
};

bool any_of(const std::vector<std::string>& names, const std::string& name) { return std::ranges::find(names, name) != names.end(); }

void add_column(Table& table, CsvColumn column) {
  if (auto* texts = std::get_if<std::vector<std::string>>(&column.values)) {
    table.columns.push_back({column.name, kernels::ColumnKind::categorical});
    table.values.emplace_back(std::move(*texts));
    return;
  }
  const auto& numbers = std::get<std::vector<double>>(column.values);
  table.columns.push_back({column.name, kernels::ColumnKind::numeric});
  table.values.emplace_back(kernels::NumericColumn(numbers.begin(), numbers.end()));
}

// A matrix of numbers: columns x0, x1, ...
Status add_matrix(const std::string& name, const Tensor& matrix, Table& table) {
  if (matrix.shape().rank() != 2 || matrix.dtype() == kernels::DType::string)
    return invalid(format("{}: {}{} is no matrix of numbers, [rows, columns]", name, to_string(matrix.dtype()), to_string(matrix.shape())));
  const Tensor numbers = matrix.dtype() == kernels::DType::f32 ? matrix : kernels::converted(matrix, kernels::DType::f32);
  const auto columns = static_cast<std::size_t>(matrix.shape()[1]);
  for (std::size_t c = 0; c < columns; ++c) {
    kernels::NumericColumn column(static_cast<std::size_t>(matrix.shape()[0]));
    for (std::size_t row = 0; row < column.size(); ++row) column[row] = numbers.data<float>()[row * columns + c];
    table.columns.push_back({format("x{}", c), kernels::ColumnKind::numeric});
    table.values.emplace_back(std::move(column));
  }
  return {};
}

// Labels of any kind as texts, which classes are named by.
Result<std::vector<std::string>> label_texts(const std::string& name, const Tensor& labels) {
  const bool flat = labels.shape().rank() == 1 || (labels.shape().rank() == 2 && labels.shape()[1] == 1);
  if (!flat) return invalid(format("{}: labels have shape {}, they must be [rows]", name, to_string(labels.shape())));
  std::vector<std::string> out;
  if (labels.dtype() == kernels::DType::string) {
    out.assign(labels.data<std::string>().begin(), labels.data<std::string>().end());
  } else if (kernels::is_float(labels.dtype())) {
    const Tensor values = kernels::converted(labels, kernels::DType::f64);
    for (const double x : values.data<double>()) out.push_back(std::isfinite(x) ? format("{}", x) : std::string());
  } else {
    const Tensor values = kernels::converted(labels, kernels::DType::i64);
    for (const std::int64_t x : values.data<std::int64_t>()) out.push_back(std::to_string(x));
  }
  return out;
}

Status read_labels(const Arguments& a, const ArraySource& data, Rows& rows) {
  if (!a.label.empty()) {
    rows.label = a.label;
    const std::vector<std::string> one = {a.label};
    FALAJ_ASSIGN(auto read, read_csv_columns(data.file, one, true));
    rows.labels = std::move(std::get<std::vector<std::string>>(read.columns[0].values));
    return {};
  }
  const auto source = array_source(a.labels);
  rows.label = "label";
  if (source.kind == ArraySource::Kind::csv) {
    FALAJ_ASSIGN(auto read, read_csv_columns(source.file, source.parts, true));
    if (read.columns.size() != 1)
      return invalid(format("{}: {} columns, of which one is the labels: say {}:COLUMN", source.file, read.columns.size(), source.file));
    rows.label = read.columns[0].name;
    rows.labels = std::move(std::get<std::vector<std::string>>(read.columns[0].values));
    return {};
  }
  FALAJ_ASSIGN(const Tensor labels, read_label_array(a.labels));
  FALAJ_ASSIGN(rows.labels, label_texts(a.labels, labels));
  return {};
}

Status read_csv_table(const Arguments& a, const ArraySource& data, Table& table) {
  FALAJ_ASSIGN(auto read, read_csv_columns(data.file, data.parts));
  for (const auto& name : a.exclude) {
    if (std::ranges::find(read.columns, name, &CsvColumn::name) == read.columns.end())
      return invalid(format("--exclude {}: {} has no such column", name, data.file));
  }
  std::vector<std::string> texts;
  for (const auto& name : a.categories) {
    if (name != a.label && !any_of(a.exclude, name)) texts.push_back(name);
  }
  CsvColumns categories;
  if (!texts.empty()) {
    FALAJ_ASSIGN(categories, read_csv_columns(data.file, texts, true));
  }
  for (CsvColumn& column : read.columns) {
    if (column.name == a.label || any_of(a.exclude, column.name)) continue;
    const auto as_text = std::ranges::find(categories.columns, column.name, &CsvColumn::name);
    add_column(table, as_text == categories.columns.end() ? std::move(column) : std::move(*as_text));
  }
  return {};
}

Result<Rows> read_rows(const Arguments& a) {
  const auto data = array_source(a.data);
  const bool csv = data.kind == ArraySource::Kind::csv;
  if (a.label.empty() == a.labels.empty()) return invalid("give the labels by --label COLUMN (of a CSV file), or by --labels FILE");
  if (!csv && !(a.label.empty() && a.exclude.empty() && a.categories.empty()))
    return invalid(format("{}: --label, --exclude and --categories name columns, which only CSV files have", a.data));
  Rows rows;
  if (csv) {
    FALAJ_TRY(read_csv_table(a, data, rows.table));
  } else {
    kernels::ValueInfo any{"x", kernels::DType::undefined, {}};
    FALAJ_ASSIGN(const Tensor matrix, read_array(a.data, any));
    FALAJ_TRY(add_matrix(a.data, matrix, rows.table));
  }
  FALAJ_TRY(read_labels(a, data, rows));
  FALAJ_TRY(kernels::check(rows.table));
  if (rows.table.columns.empty()) return invalid(format("{}: no column is left to learn from", a.data));
  if (rows.table.rows() != rows.labels.size())
    return invalid(format("{} has {} rows, there are {} labels", a.data, rows.table.rows(), rows.labels.size()));
  const auto gone = std::ranges::find(rows.labels, std::string());
  if (gone != rows.labels.end()) return invalid(format("row {}: the label '{}' is missing", gone - rows.labels.begin(), rows.label));
  return rows;
}

// Grows the trees; a line of the log for each round.
struct Grown {
  std::string log = "round,training_loss,validation_loss\n";
  std::vector<double> losses;
};
Result<Grown> grow(trees::Booster& booster, std::uint32_t rounds) {
  Grown out;
  Progress progress("growing", rounds);
  while (!booster.done()) {
    FALAJ_TRY(booster.step());
    const double validation = booster.validation_loss();
    out.losses.push_back(booster.training_loss());
    out.log += format("{},{:.9g},{}\n", booster.rounds(), out.losses.back(), std::isfinite(validation) ? format("{:.9g}", validation) : "");
    progress.at(booster.rounds());
  }
  progress.end();
  return out;
}

Status do_boost(const Arguments& a) {
  FALAJ_TRY(trees::check(a.spec));
  for (const auto* path : {&a.log, &a.output}) FALAJ_TRY(check_writable(*path));
  if (a.spec.patience > 0 && !(a.validation > 0)) return invalid("--patience needs --validation-fraction");
  FALAJ_ASSIGN(const Rows rows, read_rows(a));
  std::vector<std::uint32_t> all(rows.labels.size());
  std::iota(all.begin(), all.end(), 0U);
  FALAJ_ASSIGN(const auto whole, kernels::fit_target(rows.label, rows.labels, all, a.positive));
  FALAJ_ASSIGN(const auto all_labels, kernels::encode_labels(whole, rows.labels));
  const bool regression = whole.task == kernels::Task::regression;
  FALAJ_ASSIGN(auto split, kernels::stratified_split({.validation = a.validation, .test = a.test, .seed = a.spec.seed}, all.size(),
                                                     kernels::strata_of(all_labels, regression)));
  if (split.train.empty()) return invalid("no row is left to train on");
  // The mean and the scale of a regression are of the training rows alone.
  auto target = whole;
  if (regression) {
    FALAJ_ASSIGN(target, kernels::fit_target(rows.label, rows.labels, split.train, a.positive, 1));
  }
  const std::size_t threads = a.threads > 0 ? a.threads : hardware_threads();
  FALAJ_ASSIGN(auto booster, trees::Booster::make(a.spec, target, rows.table, all_labels, split.train, split.validation,
                                                  std::min<std::size_t>(threads, 256)));
  FALAJ_ASSIGN(const Grown grown, grow(*booster, a.spec.rounds));
  std::optional<kernels::Evaluation> evaluation;
  if (!split.test.empty()) {
    FALAJ_ASSIGN(evaluation, booster->evaluate(split.test));
  }
  FALAJ_ASSIGN(const auto graph, booster->graph());
  FALAJ_ASSIGN(const auto model, kernels::export_onnx(graph));
  if (!a.log.empty()) FALAJ_TRY(write_file(a.log, as_bytes(grown.log)));
  FALAJ_TRY(write_file(a.output, model));
  if (a.json) {
    print(
        format("{{\"task\":\"{}\",\"rounds\":{},\"rows\":{},\"test_rows\":{},\"columns\":{},\"first_loss\":{:.9g},\"last_loss\":{:.9g},"
               "\"metrics\":{},\"output\":{}}}",
               to_string(target.task), booster->rounds(), split.train.size(), split.test.size(), rows.table.columns.size(),
               grown.losses.front(), grown.losses.back(), evaluation ? metrics_json(*evaluation) : "null", net::json_text(a.output)));
    return {};
  }
  if (output_is_terminal()) print(plot(grown.losses, "loss"));
  print(format("{} rounds on {} rows of {} columns, {} by '{}': loss {:.6g} -> {:.6g}", booster->rounds(), split.train.size(),
               rows.table.columns.size(), to_string(target.task), rows.label, grown.losses.front(), grown.losses.back()));
  if (evaluation) {
    std::vector<std::vector<std::string>> lines = {{"METRIC", format("ON {} HELD-OUT ROWS", split.test.size())}};
    for (const auto& [name, value] : evaluation->named()) lines.push_back({name, format("{:.6g}", value)});
    print(table(lines));
  }
  print(a.output);
  return {};
}

void add_tree_options(CLI::App& command, trees::Spec& spec) {
  command.add_option("--rounds", spec.rounds, "A tree each; with C > 2 classes, C trees each")->capture_default_str()->type_name("K");
  command.add_option("--leaves", spec.leaves, "Of a tree, at most")->capture_default_str()->type_name("N");
  command.add_option("--lr", spec.learning_rate, "Learning rate")->capture_default_str()->type_name("X");
  command.add_option("--rows-min", spec.rows_min, "Rows of a leaf, at least")->capture_default_str()->type_name("N");
  command.add_option("--hessian-min", spec.hessian_min, "Sum of second derivatives of a leaf, at least")
      ->capture_default_str()
      ->type_name("X");
  command.add_option("--l2", spec.l2, "Added to the second derivatives of a leaf")->capture_default_str()->type_name("X");
  command.add_option("--gain-min", spec.gain_min, "A split must gain more than this")->capture_default_str()->type_name("X");
  command.add_option("--column-share", spec.column_share, "Of the columns, drawn anew for each tree")
      ->capture_default_str()
      ->type_name("X");
  command.add_option("--row-share", spec.row_share, "Of the training rows, likewise")->capture_default_str()->type_name("X");
  command.add_option("--bins", spec.bins, "Of a column's values")->capture_default_str()->type_name("N");
  command.add_option("--patience", spec.patience, "Rounds without a better validation loss before it stops; 0: never")
      ->capture_default_str()
      ->type_name("K");
  command.add_option("--seed", spec.seed, "Of the held-out rows, and of what is drawn")->capture_default_str()->type_name("S");
}

}  // namespace

void add_model_boost_command(CLI::App& model, Cli& cli) {
  const auto a = std::make_shared<Arguments>();
  auto* command =
      model.add_subcommand("boost", "Grow gradient-boosted trees on a CSV file or a matrix; writes an ONNX model of the raw columns");
  command->add_option("data", a->data, "FILE.csv[:COLUMN,...], or a matrix as .npy or .npz:ENTRY (columns x0, x1, ...)")
      ->required()
      ->type_name("FILE");
  command->add_option("--label", a->label, "Column of the CSV file that is learned: classes, or numbers of more than 32 values")
      ->type_name("COLUMN");
  command->add_option("--labels", a->labels, "The labels in a file of their own: .npy, .npz[:ENTRY] or .csv:COLUMN")->type_name("FILE");
  command->add_option("--positive", a->positive, "Of two classes, the one whose probability is given")->type_name("CLASS");
  command->add_option("--exclude", a->exclude, "Columns that are not learned from: keys, or what is known only later")->type_name("COLUMN");
  command->add_option("--categories", a->categories, "Columns of numbers that are names")->type_name("COLUMN");
  command->add_option("--validation-fraction", a->validation, "Share of the rows that --patience looks at")
      ->capture_default_str()
      ->type_name("X");
  command->add_option("--test-fraction", a->test, "Share of the rows that is held out and measured")->capture_default_str()->type_name("X");
  add_tree_options(*command, a->spec);
  command->add_option("--threads", a->threads, "0: as many as there are; the trees do not depend on it")
      ->capture_default_str()
      ->type_name("T");
  command->add_option("--log", a->log, "CSV with one row a round: training and validation loss")->type_name("FILE");
  command->add_flag("--json", a->json, "Print JSON");
  command->add_option("--output,-o", a->output, "The model, .onnx")->required()->type_name("FILE");
  command->footer(
      "Missing numbers (empty, NA, ?) and categories are the trees' own matter.\nExample:\n  falaj model boost credit.csv --label class "
      "--positive bad --exclude applicant_id --rounds 200 -o credit.onnx");
  cli.runs(*command, [a] { return do_boost(*a); });
}

}  // namespace falaj::nodes
