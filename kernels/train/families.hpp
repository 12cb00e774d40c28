// Model families as graphs: raw columns in, one ONNX input each ([N,1], f32 with NaN = missing or string with "" = missing),
// preprocessing by standard ops inside the graph (opset 17, ai.onnx.ml 3), the network, and outputs that need no further
// reading:
//   binary      probability [N,1] of classes[1]; label [N,1] string
//   multiclass  probability [N,C]; label [N,1] string
//   regression  prediction [N,1]
// Training uses the value named by kLogits (regression: the standardised prediction).
//
// Categories of all columns share one table: each column's LabelEncoder gives rows of it, so that one Gather serves them all and
// a linear layer over one-hot features is a sum of gathered rows (no one-hot matrix is ever made).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/graph.hpp"
#include "kernels/train/preprocess.hpp"

namespace falaj::kernels {

inline constexpr std::string_view kLogits = "falaj/logits";
inline constexpr std::string_view kProbability = "probability";
inline constexpr std::string_view kLabel = "label";
inline constexpr std::string_view kPrediction = "prediction";

// Keys of an exported model's metadata; lists are JSON arrays.
namespace metadata {
inline constexpr std::string_view kTask = "falaj.task";          // binary, multiclass, regression
inline constexpr std::string_view kFamily = "falaj.family";      // as to_string(Family)
inline constexpr std::string_view kTarget = "falaj.target";      // name of the label column
inline constexpr std::string_view kClasses = "falaj.classes";    // ["bad","good"], in the order of the outputs
inline constexpr std::string_view kColumns = "falaj.columns";    // [{"name":"age","kind":"numeric","mean":35.1,...},...]
inline constexpr std::string_view kRequired = "falaj.required";  // inputs of which no value may be missing; absent: none
inline constexpr std::string_view kLogitsValue = "falaj.logits";
inline constexpr std::string_view kTargetMean = "falaj.target_mean";  // regression: prediction = mean + scale * logits
inline constexpr std::string_view kTargetScale = "falaj.target_scale";
inline constexpr std::string_view kDropout = "falaj.dropout";  // values that are dropped out while training
inline constexpr std::string_view kDropoutShare = "falaj.dropout_share";
}  // namespace metadata

enum class Task : std::uint8_t { binary, multiclass, regression };
std::string_view to_string(Task task) noexcept;
Result<Task> parse_task(std::string_view text);

struct TargetSpec {
  std::string name;  // of the label column
  Task task = Task::binary;
  std::vector<std::string> classes;  // binary: exactly two, the second is the positive one
  double mean = 0;                   // regression: of the training labels
  double scale = 1;
  bool operator==(const TargetSpec&) const = default;
};

// The target from raw label texts, training rows only. Numbers with more than `classes_max` different values are a regression, all
// else is classification; classes are sorted (numbers by value). `positive`: the positive class of a binary target (empty: the
// second of the two).
Result<TargetSpec> fit_target(std::string_view name, std::span<const std::string> labels, std::span<const std::uint32_t> rows,
                              std::string_view positive = {}, std::size_t classes_max = 32);
// Labels as training wants them: class numbers, or numbers. An unknown class or a bad number is an error naming the row.
Result<std::vector<float>> encode_labels(const TargetSpec& target, std::span<const std::string> labels);

// cnn and resnet take the numeric columns for the pixels of one image, in the order channel, row, column. transformer makes a token of each
// column (Gorishniy, Rubachev, Khrulkov, Babenko: "Revisiting Deep Learning Models for Tabular Data", 2021) and averages what comes out.
// gpt reads the columns as a text, a token each, in their order: a decoder in which a token sees those before it (Radford et al., "Language
// Models are Unsupervised Multitask Learners", 2019), whose last state says what the label is: the next token, or a class of the whole.
enum class Family : std::uint8_t { linear, mlp, wide_deep, boosted_trees, cnn, resnet, transformer, gpt };
std::string_view to_string(Family family) noexcept;
Result<Family> parse_family(std::string_view text);

struct FamilySpec {
  Family family = Family::wide_deep;
  // Units of each layer; cnn, resnet: channels of each stage, after which the image has half the rows and columns; transformer, gpt:
  // units between the two linear layers of each block.
  std::vector<std::uint32_t> hidden = {32, 16};
  std::string activation = "Relu";    // Relu, Tanh, Sigmoid, Elu, LeakyRelu, Softplus, Gelu
  double dropout = 0.0;               // after each hidden layer or block, while training only
  std::uint32_t embedding_width = 4;  // wide_deep: floats for each category; transformer, gpt: of each token
  std::vector<std::uint32_t> image;   // cnn, resnet: channels, rows, columns
  std::uint32_t heads = 4;            // transformer, gpt: of attention; divides embedding_width
  // gpt: columns of numbers hold the tokens 0 to vocabulary - 1; 0: the columns are categories, which share one vocabulary. What is neither
  // (missing, rare, unknown) is a token of its own.
  std::uint32_t vocabulary = 0;
  bool tied = false;  // gpt: the table of tokens also gives the logits (Press and Wolf, 2017); the classes must be tokens
  bool operator==(const FamilySpec&) const = default;
};
FamilySpec default_spec(Family family);
Status check(const FamilySpec& spec);  // boosted trees are grown by kernels/trees, not built here

Result<Graph> build_family(const FamilySpec& spec, const Preprocessing& preprocessing, const TargetSpec& target, std::uint64_t seed);

// What the graphs of all families share: an input for each column; from kLogits to the outputs; the metadata.
Status declare_columns(Graph& graph, const Preprocessing& preprocessing);
void declare_outputs(Graph& graph, const TargetSpec& target);
void describe(Graph& graph, Family family, const Preprocessing& preprocessing, const TargetSpec& target);

// The target of a model that build_family made (or that carries the same metadata).
Result<TargetSpec> read_target(const Graph& graph);

}  // namespace falaj::kernels
