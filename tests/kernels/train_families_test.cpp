#include <cmath>

#include "kernels/train/cut.hpp"
#include "kernels/train/families.hpp"
#include "kernels/train/json.hpp"
#include "tests/kernels/train_support.hpp"

namespace falaj::kernels {
namespace {

const std::vector<std::uint32_t> kRows = {0, 1, 2, 3};

Preprocessing small_fit() {
  const float missing = std::numeric_limits<float>::quiet_NaN();
  const Table table{{{"x", ColumnKind::numeric}, {"c", ColumnKind::categorical}, {"d", ColumnKind::categorical}},
                    {NumericColumn{1, missing, 3, 4}, CategoricalColumn{"a", "b", "a", ""}, CategoricalColumn(4, "")}};
  return fit_preprocessing(table, kRows).value();
}

const TargetSpec kBinary{.name = "y", .task = Task::binary, .classes = {"no", "yes"}};

TEST(TrainFamilies, InputsAreRawColumns) {
  for (const Family family : {Family::linear, Family::mlp, Family::wide_deep, Family::transformer}) {
    const auto graph = build_family({.family = family}, small_fit(), kBinary, 1);
    ASSERT_TRUE(graph) << graph.error().message;
    ASSERT_TRUE(validate(*graph)) << validate(*graph).error().message;
    ASSERT_EQ(graph->inputs.size(), 3U);
    EXPECT_EQ(graph->inputs[0].dtype, DType::f32);
    EXPECT_EQ(graph->inputs[1].dtype, DType::string);
    EXPECT_EQ(graph->outputs[0].name, kProbability);
    EXPECT_EQ(graph->outputs[1].name, kLabel);
    EXPECT_EQ(*read_target(*graph), kBinary);
    for (const Node& node : graph->nodes) EXPECT_NE(node.domain, kFalaj);
  }
}

TEST(TrainFamilies, ParametersStartFromTheirNames) {
  const auto a = build_family({.family = Family::wide_deep}, small_fit(), kBinary, 1).value();
  const auto b = build_family({.family = Family::wide_deep}, small_fit(), kBinary, 1).value();
  const auto c = build_family({.family = Family::wide_deep}, small_fit(), kBinary, 2).value();
  for (const auto& [name, value] : a.initializers) EXPECT_TRUE(equal_bits(value, b.initializers.at(name))) << name;
  EXPECT_FALSE(equal_bits(a.initializers.at("layer0/weight"), c.initializers.at("layer0/weight")));
}

TEST(TrainFamilies, OnlyWeightsAreTrained) {
  const auto graph = build_family({.family = Family::wide_deep, .hidden = {8}}, small_fit(), kBinary, 1).value();
  const auto cut = cut_for_training(graph, {}, {});
  ASSERT_TRUE(cut) << cut.error().message;
  EXPECT_EQ(cut->parameters, (std::vector<std::string>{"deep/embedding", "head/weight", "layer0/bias", "layer0/weight", "wide/bias",
                                                       "wide/table", "wide/weight"}));
  // Codes and standardised numbers cross; no raw text does.
  ASSERT_EQ(cut->boundary.size(), 2U);
  for (const ValueInfo& value : cut->boundary) EXPECT_NE(value.dtype, DType::string);
  for (const Node& node : cut->rest.nodes) EXPECT_TRUE(node.op != "LabelEncoder" && node.op != "Where");
}

TEST(TrainFamilies, RefusesWhatCannotBe) {
  EXPECT_FALSE(build_family({.hidden = {}}, small_fit(), kBinary, 1));
  EXPECT_FALSE(build_family({.activation = "Swish"}, small_fit(), kBinary, 1));
  EXPECT_FALSE(build_family({.dropout = 1.0}, small_fit(), kBinary, 1));
  EXPECT_FALSE(build_family({}, Preprocessing{}, kBinary, 1));
  EXPECT_FALSE(build_family({}, small_fit(), TargetSpec{.name = "y", .task = Task::binary, .classes = {"one"}}, 1));
  Preprocessing renamed = small_fit();
  renamed.columns[0].name = "probability";
  EXPECT_NE(build_family({}, renamed, kBinary, 1).error().message.find("'probability'"), std::string::npos);
  EXPECT_FALSE(parse_family("forest"));
  EXPECT_FALSE(parse_task("ranking"));
}

TEST(TrainFamilies, TargetsFromTexts) {
  const std::vector<std::string> texts = {"good", "bad", "good", "bad", ""};
  auto target = fit_target("y", texts, kRows, "bad");
  ASSERT_TRUE(target);
  EXPECT_EQ(target->classes, (std::vector<std::string>{"good", "bad"}));
  EXPECT_NE(fit_target("y", texts, std::vector<std::uint32_t>{0, 4}).error().message.find("row 4"), std::string::npos);
  EXPECT_FALSE(fit_target("y", texts, kRows, "ugly"));
  EXPECT_FALSE(fit_target("y", texts, std::vector<std::uint32_t>{0, 2}));
  EXPECT_NE(encode_labels(*target, texts).error().message.find("row 4"), std::string::npos);
  const std::vector<std::string> numbers = {"10", "9", "2", "10"};
  EXPECT_EQ(fit_target("y", numbers, kRows)->classes, (std::vector<std::string>{"2", "9", "10"}));
  const auto regression = fit_target("y", numbers, kRows, {}, 2);
  EXPECT_EQ(regression->task, Task::regression);
  EXPECT_NEAR(regression->mean, 7.75, 1e-12);
  EXPECT_EQ(encode_labels(*regression, numbers)->at(1), 9.0F);
}

TEST(TrainJson, StringsThereAndBack) {
  const std::vector<std::string> texts = {"a", "", "quote \" and \\", "tab\tnew\n", "\x01", "é"};
  EXPECT_EQ(*read_json_strings(json_strings(texts)), texts);
  EXPECT_EQ(*read_json_strings(R"( [ "\u00e9\u4e2d\/" ] )"), std::vector<std::string>{"é中/"});
  EXPECT_EQ(read_json_strings("[]")->size(), 0U);
  for (const char* bad : {"", "[", "[1]", "[\"a\"", "[\"a\",]", "[\"\\x\"]", "[\"\\u12\"]", "{}"})
    EXPECT_FALSE(read_json_strings(bad)) << bad;
}

TEST(TrainCheckpoint, RoundTripAndEveryFlippedByte) {
  Checkpoint checkpoint{.step = 7,
                        .epoch = 2,
                        .seed = 9,
                        .loss_sum = 0.5,
                        .loss_rows = 64,
                        .parameters = {1, 2, 3},
                        .optimizer_state = {4, 5},
                        .best_parameters = {6},
                        .stopping = {.patience = 3, .best = 0.8, .best_epoch = 1, .bad_epochs = 1, .any = true}};
  const Bytes bytes = encode(checkpoint);
  EXPECT_EQ(*decode_checkpoint(bytes), checkpoint);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    Bytes bad = bytes;
    bad[i] ^= 0x10;
    EXPECT_FALSE(decode_checkpoint(bad)) << i;
    EXPECT_FALSE(decode_checkpoint(ByteView(bytes).first(i))) << i;
  }
}

TEST(TrainCheckpoint, EarlyStopping) {
  EarlyStopping stopping{.patience = 2};
  EXPECT_TRUE(stopping.update(0, -5.0));
  EXPECT_TRUE(stopping.update(1, -4.0));
  EXPECT_FALSE(stopping.update(2, -4.0));
  EXPECT_FALSE(stopping.stop());
  EXPECT_FALSE(stopping.update(3, -4.5));
  EXPECT_TRUE(stopping.stop());
  EXPECT_EQ(stopping.best_epoch, 1U);
}

}  // namespace
}  // namespace falaj::kernels
