// Networks on images and on columns as tokens: what is built, that its gradients are right, and what it learns from the example data.
#include "kernels/onnx/onnx.hpp"
#include "tests/kernels/train_support.hpp"

namespace falaj::kernels {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

const Example& digits() {
  static const Example example = read_example("digits.csv", "id", "digit");
  return example;
}

FamilySpec small(Family family) {
  FamilySpec spec = default_spec(family);
  spec.hidden = {3, 4};
  spec.activation = "Tanh";  // smooth: differences are meaningful
  if (family == Family::transformer) {
    spec.embedding_width = 8;
    spec.heads = 2;
  } else {
    spec.image = {1, 8, 8};
  }
  return spec;
}

std::size_t count(const Graph& graph, std::string_view op) {
  return static_cast<std::size_t>(std::ranges::count(graph.nodes, op, &Node::op));
}

TEST(TrainNetworks, AreMadeOfStandardOps) {
  const auto rows = all_rows(100);
  const auto build = [&](const FamilySpec& spec) { return prepare(digits(), rows, spec, 1, "digit").value().graph; };
  const auto cnn = build(small(Family::cnn));
  EXPECT_EQ(count(cnn, "Conv"), 2U);
  EXPECT_EQ(count(cnn, "MaxPool"), 2U);
  const auto resnet = build(small(Family::resnet));
  EXPECT_EQ(count(resnet, "Conv"), 1U + 4 * 2 + 1) << "the stem, two in each of four blocks, and one skip that changes channels";
  EXPECT_EQ(count(resnet, "Mul"), 4U) << "the scale of each block";
  auto spec = small(Family::transformer);
  spec.activation = "Gelu";
  const auto transformer = build(spec);
  EXPECT_EQ(count(transformer, "Softmax"), 2U + 1) << "one of each block, and that of the classes";
  EXPECT_EQ(count(transformer, "Erf"), 2U);
  for (const auto* graph : {&cnn, &resnet, &transformer}) {
    ASSERT_TRUE(validate(*graph)) << validate(*graph).error().message;
    EXPECT_EQ(graph->inputs.size(), 64U);
    for (const Node& node : graph->nodes) EXPECT_TRUE(node.domain.empty() || node.domain == kOnnxMl) << node.op;
  }
}

TEST(TrainNetworks, GradientsAreTheSlopesOfTheLoss) {
  const auto rows = all_rows(24);
  for (const Family family : {Family::resnet, Family::transformer}) {  // a cnn's pools are not smooth; its layers are those of the others
    auto prepared = prepare(digits(), rows, small(family), 3, "digit");
    ASSERT_TRUE(prepared) << prepared.error().message;
    expect_slopes(*prepared, rows, Random(1), 2);
  }
  auto mixed = prepare(credit(), all_rows(50), small(Family::transformer), 3, "class", "bad");  // numbers and categories
  ASSERT_TRUE(mixed) << mixed.error().message;
  expect_slopes(*mixed, all_rows(50), Random(2), 2);
}

double accuracy_of_digits(Family family, std::uint64_t epochs, double rate) {
  FamilySpec spec = default_spec(family);
  spec.image = {1, 8, 8};
  const auto rows = all_rows(digits().labels.size());
  const auto target = fit_target("digit", digits().labels, rows);
  const auto split = stratified_split({.test = 0.2, .seed = 1}, rows.size(), strata_of(*encode_labels(*target, digits().labels), false));
  auto prepared = prepare(digits(), split->train, spec, 1, "digit");
  EXPECT_TRUE(prepared) << prepared.error().message;
  if (!prepared) return 0;
  FitSpec fitting;
  fitting.epochs = epochs;
  fitting.optimizer.learning_rate = rate;
  const auto report = fit(*prepared->trainer, prepared->data, fitting, split->train);
  EXPECT_TRUE(report) << report.error().message;

  // What is exported takes raw columns and gives the same.
  const auto bytes = export_onnx(prepared->trainer->export_graph());
  EXPECT_TRUE(bytes) << bytes.error().message;
  const auto imported = import_onnx(*bytes, "model.onnx");
  EXPECT_TRUE(imported) << imported.error().message;
  const auto outputs = serve(*imported, digits().table);
  EXPECT_TRUE(outputs) << outputs.error().message;
  const auto expected = prepared->trainer->predict(prepared->data, rows).value();
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR((*outputs)[0].data<float>()[i], expected[i], 1e-4) << i;
  const double accuracy = prepared->trainer->evaluate(prepared->data, split->test)->score();
  ::testing::Test::RecordProperty("accuracy", format("{:.4f}", accuracy));
  return accuracy;
}

TEST(TrainNetworks, ACnnReadsDigits) { EXPECT_GE(accuracy_of_digits(Family::cnn, 12, 0.005), 0.96); }
TEST(TrainNetworks, AResnetReadsDigits) { EXPECT_GE(accuracy_of_digits(Family::resnet, 8, 0.01), 0.95); }

TEST(TrainNetworks, ATransformerScoresCredit) {
  FamilySpec spec = default_spec(Family::transformer);
  spec.hidden = {32};
  spec.embedding_width = 16;
  spec.activation = "Gelu";
  double sum = 0;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    const auto split = credit_split(seed);
    auto prepared = prepare(credit(), split->train, spec, seed, "class", "bad");
    ASSERT_TRUE(prepared) << prepared.error().message;
    FitSpec fitting = recommended_fit(Family::transformer, split->train.size());
    fitting.epochs = 10;
    fitting.sampler.seed = seed;
    ASSERT_TRUE(fit(*prepared->trainer, prepared->data, fitting, split->train));
    sum += prepared->trainer->evaluate(prepared->data, split->test)->score();
  }
  RecordProperty("auc", format("{:.4f}", sum / 3));
  EXPECT_GE(sum / 3, 0.75);
}

TEST(TrainNetworks, SayWhatDoesNotFit) {
  const auto refused = [](const Example& example, const FamilySpec& spec) {
    const auto rows = all_rows(100);
    const auto made = prepare(example, rows, spec, 1, &example == &credit() ? "class" : "digit");
    return made ? std::string() : made.error().message;
  };
  auto spec = small(Family::cnn);
  spec.image = {1, 8, 9};
  EXPECT_NE(refused(digits(), spec).find("1 x 8 x 9 = 72 numbers; the features are 64 numeric and 0 categorical columns"),
            std::string::npos);
  EXPECT_NE(refused(credit(), small(Family::resnet)).find("family resnet reads one image"), std::string::npos);
  for (const std::vector<std::uint32_t>& image : {std::vector<std::uint32_t>{}, {8, 8}, {1, 0, 8}, {3, 60000, 60000}}) {
    spec.image = image;
    EXPECT_NE(refused(digits(), spec), "");
  }
  auto tokens = small(Family::transformer);
  tokens.heads = 3;
  EXPECT_NE(refused(credit(), tokens).find("3 heads of attention cannot share tokens of 8 numbers"), std::string::npos);
  tokens.heads = 0;
  EXPECT_NE(refused(credit(), tokens), "");
  FamilySpec mlp = default_spec(Family::mlp);
  mlp.image = {1, 8, 8};
  EXPECT_NE(refused(digits(), mlp).find("`image` is for the families cnn and resnet, not for mlp"), std::string::npos);
}

}  // namespace
}  // namespace falaj::kernels
