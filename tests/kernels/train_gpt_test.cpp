// The family gpt: a token sees nothing behind it, gradients are right with the table used twice, and it learns: letters of a text, and
// digits read pixel after pixel. What is exported is the same interpreted and planned.
#include <cmath>
#include <map>

#include "kernels/interpret.hpp"
#include "kernels/onnx/onnx.hpp"
#include "tests/kernels/train_support.hpp"

namespace falaj::kernels {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

const Example& digits() {
  static const Example example = read_example("digits.csv", "id", "digit");
  return example;
}

// Windows of the licence's text: `length` letters, and the one that follows.
Example letters(std::size_t length, std::size_t rows) {
  std::ifstream in(std::string(FALAJ_SOURCE_DIR) + "/LICENSE");
  std::string text;
  for (char c; in.get(c);) {
    const char plain = c == '\n' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (plain != ' ' || (!text.empty() && text.back() != ' ')) text.push_back(plain);
  }
  EXPECT_GT(text.size(), rows + length);
  Example example;
  for (std::size_t i = 0; i < length; ++i) {
    example.table.columns.push_back({format("c{}", i), ColumnKind::categorical});
    CategoricalColumn column;
    for (std::size_t row = 0; row < rows; ++row) column.emplace_back(1, text[row + i]);
    example.table.values.emplace_back(std::move(column));
  }
  for (std::size_t row = 0; row < rows; ++row) example.labels.emplace_back(1, text[row + length]);
  return example;
}

FamilySpec small(bool tied, std::uint32_t vocabulary) {
  FamilySpec spec = default_spec(Family::gpt);
  spec.hidden = {12};
  spec.embedding_width = 8;
  spec.heads = 2;
  spec.activation = "Tanh";  // smooth: differences are meaningful
  spec.tied = tied;
  spec.vocabulary = vocabulary;
  return spec;
}

TEST(TrainGpt, ATokenSeesItselfAndThoseBeforeItOnly) {
  const auto example = letters(6, 40);
  auto prepared = prepare(example, all_rows(40), small(false, 0), 1, "next");
  ASSERT_TRUE(prepared) << prepared.error().message;
  Graph graph = prepared->graph;
  graph.outputs.clear();
  graph.add_output("falaj/states", DType::f32, {-1, 6, 8});
  const auto states = [&](const Table& table) { return serve(graph, table).value()[0].clone(); };
  const Tensor before = states(example.table);
  for (const std::size_t at : {0, 3, 5}) {
    Table other = example.table;
    for (auto& letter : std::get<CategoricalColumn>(other.values[at])) letter = letter == "a" ? "e" : "a";
    const Tensor after = states(other);
    for (std::size_t row = 0; row < 40; ++row) {
      for (std::size_t token = 0; token < 6; ++token) {
        const std::size_t from = (row * 6 + token) * 8;
        const bool same = same_bits(before.data<float>().subspan(from, 8), after.data<float>().subspan(from, 8));
        EXPECT_EQ(same, token < at) << "row " << row << ": token " << token << " when token " << at << " is another";
      }
    }
  }
}

TEST(TrainGpt, GradientsAreTheSlopesOfTheLoss) {
  const auto example = letters(5, 60);
  for (const bool tied : {false, true}) {
    auto prepared = prepare(example, all_rows(60), small(tied, 0), 3, "next");
    ASSERT_TRUE(prepared) << prepared.error().message;
    const auto& layout = prepared->trainer->layout();
    EXPECT_EQ(std::ranges::count(layout, "head/weight", &Parameter::name), tied ? 0 : 1);
    EXPECT_EQ(std::ranges::count(layout, "tokens/table", &Parameter::name), 1);
    EXPECT_TRUE(std::ranges::none_of(layout, [](const Parameter& p) { return p.name.starts_with("falaj/"); })) << "the mask is no weight";
    expect_slopes(*prepared, all_rows(60), Random(1), 3);
  }
}

// The entropy of the labels given the last `order` letters, as counted in the same rows.
double counted_loss(const Example& example, std::size_t order) {
  std::map<std::string, std::map<std::string, double>> counts;
  const std::size_t length = example.table.columns.size();
  const auto context = [&](std::size_t row) {
    std::string out;
    for (std::size_t i = length - order; i < length; ++i) out += std::get<CategoricalColumn>(example.table.values[i])[row];
    return out;
  };
  for (std::size_t row = 0; row < example.labels.size(); ++row) ++counts[context(row)][example.labels[row]];
  double sum = 0;
  for (const auto& [key, next] : counts) {
    double all = 0;
    for (const auto& [letter, n] : next) all += n;
    for (const auto& [letter, n] : next) sum -= n * std::log(n / all);
  }
  return sum / static_cast<double>(example.labels.size());
}

void expect_same_interpreted_and_planned(const Graph& graph, const Table& table, std::size_t rows) {
  const auto bytes = export_onnx(graph);
  ASSERT_TRUE(bytes) << bytes.error().message;
  const auto imported = import_onnx(*bytes, "gpt.onnx");
  ASSERT_TRUE(imported) << imported.error().message;
  for (const Node& node : imported->nodes) EXPECT_TRUE(node.domain.empty() || node.domain == kOnnxMl) << node.op;
  const auto planned = serve(*imported, table);
  ASSERT_TRUE(planned) << planned.error().message;
  std::vector<Value> inputs;
  for (const ValueInfo& info : imported->inputs) {
    const auto column = std::ranges::find(table.columns, info.name, &ColumnSpec::name) - table.columns.begin();
    const Shape shape{static_cast<std::int64_t>(rows), 1};
    const auto& values = table.values[static_cast<std::size_t>(column)];
    if (const auto* numbers = std::get_if<NumericColumn>(&values)) {
      inputs.emplace_back(Tensor::of<float>(shape, std::span<const float>(*numbers)));
    } else {
      inputs.emplace_back(Tensor::of<std::string>(shape, std::span<const std::string>(std::get<CategoricalColumn>(values))));
    }
  }
  const auto interpreted = interpret(*imported, inputs);
  ASSERT_TRUE(interpreted) << interpreted.error().message;
  const auto a = (*planned)[0].rows(0, static_cast<std::int64_t>(rows)).data<float>();
  const auto b = (*interpreted)[0].tensor.data<float>();
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5) << i;
}

// Sanitizers look for other things than quality.
#ifdef FALAJ_SANITIZED
constexpr bool kWhole = false;
#else
constexpr bool kWhole = true;
#endif

TEST(TrainGpt, LearnsWhichLetterFollows) {
  const auto example = letters(12, 4000);
  FamilySpec spec = default_spec(Family::gpt);
  spec.hidden = {64};
  spec.tied = true;
  const auto rows = all_rows(4000);
  auto prepared = prepare(example, rows, spec, 1, "next");
  ASSERT_TRUE(prepared) << prepared.error().message;
  FitSpec fitting;
  fitting.epochs = kWhole ? 12 : 2;
  fitting.optimizer.learning_rate = 0.006;
  fitting.optimizer.weight_decay = 0.01;
  const auto report = fit(*prepared->trainer, prepared->data, fitting, rows);
  ASSERT_TRUE(report) << report.error().message;
  const double loss = prepared->trainer->evaluate(prepared->data, rows)->loss();
  RecordProperty("loss", format("{:.3f}", loss));
  RecordProperty("loss_of_the_last_letter", format("{:.3f}", counted_loss(example, 1)));
  if (kWhole) {
    EXPECT_LT(loss, 0.8 * counted_loss(example, 1)) << "more than the last letter tells";
  }
  Table some = example.table;
  for (auto& column : some.values) std::get<CategoricalColumn>(column).resize(50);
  std::get<CategoricalColumn>(some.values[3])[7] = "\xC3\xA9";  // no token
  expect_same_interpreted_and_planned(prepared->trainer->export_graph(), some, 50);
}

TEST(TrainGpt, ReadsDigitsPixelAfterPixel) {
  FamilySpec spec = default_spec(Family::gpt);
  spec.hidden = {64};
  spec.embedding_width = 16;
  spec.vocabulary = 17;
  const auto rows = all_rows(digits().labels.size());
  const auto target = fit_target("digit", digits().labels, rows);
  const auto split = stratified_split({.test = 0.2, .seed = 1}, rows.size(), strata_of(*encode_labels(*target, digits().labels), false));
  auto prepared = prepare(digits(), split->train, spec, 1, "digit");
  ASSERT_TRUE(prepared) << prepared.error().message;
  FitSpec fitting;
  fitting.epochs = kWhole ? 10 : 1;
  fitting.sampler.global_batch = 32;
  fitting.optimizer.learning_rate = 0.015;
  ASSERT_TRUE(fit(*prepared->trainer, prepared->data, fitting, split->train));
  const double accuracy = prepared->trainer->evaluate(prepared->data, split->test)->score();
  RecordProperty("accuracy", format("{:.4f}", accuracy));
  if (kWhole) {
    EXPECT_GE(accuracy, 0.87);
  }
  Table odd = digits().table;
  auto& pixels = std::get<NumericColumn>(odd.values[20]);
  pixels[0] = std::numeric_limits<float>::quiet_NaN();
  pixels[1] = -1;
  pixels[2] = 1e30F;
  for (auto& column : odd.values) std::get<NumericColumn>(column).resize(30);
  expect_same_interpreted_and_planned(prepared->trainer->export_graph(), odd, 30);
}

TEST(TrainGpt, SaysWhatDoesNotFit) {
  const auto refused = [](const Example& example, const FamilySpec& spec, const char* label) {
    const auto made = prepare(example, all_rows(100), spec, 1, label);
    return made ? std::string() : made.error().message;
  };
  EXPECT_NE(refused(digits(), small(false, 0), "digit").find("there are 64 numeric and 0 categorical columns"), std::string::npos);
  EXPECT_NE(refused(credit(), small(false, 5), "class").find("reads columns of one kind"), std::string::npos);
  EXPECT_NE(refused(digits(), small(true, 3), "digit").find("class '3' is no token of the columns"), std::string::npos);
  auto heads = small(false, 17);
  heads.heads = 3;
  EXPECT_NE(refused(digits(), heads, "digit").find("3 heads of attention"), std::string::npos);
  auto mlp = default_spec(Family::mlp);
  mlp.tied = true;
  EXPECT_NE(refused(digits(), mlp, "digit").find("for the family gpt, not for mlp"), std::string::npos);
}

}  // namespace
}  // namespace falaj::kernels
