// Trained models as ONNX files: out, in again, and on with the training.
#include "kernels/onnx/onnx.hpp"
#include "tests/kernels/train_support.hpp"

namespace falaj::kernels {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

TEST(TrainOnnx, TheExportedModelTakesRawColumns) {
  for (const Family family : {Family::linear, Family::mlp, Family::wide_deep, Family::transformer}) {
    const auto split = credit_split(2);
    auto prepared = prepare(credit(), split->train, default_spec(family), 7, "class", "bad");
    ASSERT_TRUE(prepared) << prepared.error().message;
    ASSERT_TRUE(fit(*prepared->trainer, prepared->data, short_fit(), split->train));
    const auto expected = prepared->trainer->predict(prepared->data, all_rows(1000)).value();

    const auto bytes = export_onnx(prepared->trainer->export_graph());
    ASSERT_TRUE(bytes) << bytes.error().message;
    auto imported = import_onnx(*bytes, "model.onnx");
    ASSERT_TRUE(imported) << imported.error().message;
    const auto outputs = serve(*imported, credit().table);
    ASSERT_TRUE(outputs) << outputs.error().message;
    const auto probability = (*outputs)[0].data<float>();
    const auto label = (*outputs)[1].data<std::string>();
    for (std::size_t row = 0; row < 1000; ++row) {
      ASSERT_NEAR(probability[row], expected[row], 1e-5);
      ASSERT_EQ(label[row], probability[row] > 0.5F ? "bad" : "good");
    }

    // The imported model goes on training where the first stopped, and only initialisers change.
    const auto target = read_target(*imported);
    ASSERT_TRUE(target) << target.error().message;
    EXPECT_TRUE(*target == prepared->target);
    auto again = Trainer::make(*imported, {*target});
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_TRUE(same_bits(std::as_const(**again).parameters(), prepared->trainer->parameters()));
    std::vector<float> gradient(prepared->trainer->parameters().size());
    std::vector<float> other(gradient.size());
    const auto data = (*again)->prepare(credit().table, encode_labels(*target, credit().labels).value());
    ASSERT_TRUE(data) << data.error().message;
    ASSERT_TRUE(prepared->trainer->gradient(prepared->data, split->test, gradient));
    ASSERT_TRUE((*again)->gradient(*data, split->test, other));
    EXPECT_TRUE(same_bits(gradient, other));
    EXPECT_EQ(*export_onnx((*again)->export_graph()), *bytes);
  }
}

}  // namespace
}  // namespace falaj::kernels
