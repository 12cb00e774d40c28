#include "kernels/train/families.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>

#include "kernels/train/json.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {

namespace {

constexpr std::int64_t kOnnxFloat = 1;  // TensorProto.DataType
constexpr std::int64_t kOnnxInt64 = 7;
constexpr std::size_t kClassesMax = 1000;
constexpr std::array<std::string_view, 6> kActivations = {"Relu", "Tanh", "Sigmoid", "Elu", "LeakyRelu", "Softplus"};

std::int64_t as_dim(std::size_t size) { return static_cast<std::int64_t>(size); }

// Draws the initial values of one parameter.
enum class Start : std::uint8_t { zeros, weights, embedding };

class FamilyBuilder {
 public:
  FamilyBuilder(const FamilySpec& spec, const Preprocessing& preprocessing, const TargetSpec& target, std::uint64_t seed)
      : spec_(spec), preprocessing_(preprocessing), target_(target), random_(seed) {}

  Result<Graph> build() {
    graph_.name = std::string(to_string(spec_.family));
    FALAJ_TRY(declare_columns(graph_, preprocessing_));
    numeric_block();
    categorical_block();
    outputs_ = target_.task == Task::multiclass ? target_.classes.size() : 1;
    if (spec_.family == Family::linear) {
      affine("linear", outputs_, Start::zeros, kLogits);
    } else if (spec_.family == Family::mlp) {
      head(hidden_layers(activate(affine("layer0", spec_.hidden[0], Start::weights, {}), 0), 1), kLogits);
    } else {
      const std::string wide = affine("wide", outputs_, Start::zeros, {});
      const std::string deep = head(hidden_layers(deep_input(), 0), {});
      graph_.add("Add", {wide, deep}, {}, kLogits);
    }
    declare_outputs(graph_, target_);
    describe(graph_, spec_.family, preprocessing_, target_);
    if (!dropped_.empty()) {
      graph_.metadata[std::string(metadata::kDropout)] = json_strings(dropped_);
      graph_.metadata[std::string(metadata::kDropoutShare)] = format("{:.17g}", spec_.dropout);
    }
    return std::move(graph_);
  }

 private:
  std::string join(std::vector<std::string> parts, std::string_view name) {
    if (parts.size() == 1) return parts.front();
    return graph_.add("Concat", std::move(parts), {{"axis", std::int64_t{1}}}, name);
  }

  // Missing numbers become the mean, which standardising turns into 0.
  void numeric_block() {
    std::vector<std::string> raw;
    std::vector<float> means;
    std::vector<float> deviations;
    std::vector<std::int64_t> flagged;
    for (std::size_t i = 0; i < preprocessing_.columns.size(); ++i) {
      const auto* fit = std::get_if<NumericFit>(&preprocessing_.fits[i]);
      if (fit == nullptr) continue;
      if (fit->indicator) flagged.push_back(as_dim(raw.size()));
      raw.push_back(preprocessing_.columns[i].name);
      means.push_back(static_cast<float>(fit->mean));
      deviations.push_back(static_cast<float>(fit->deviation));
    }
    if (raw.empty()) return;
    numeric_width_ = raw.size() + flagged.size();
    const Shape width{as_dim(raw.size())};
    const std::string mean = graph_.add_initializer("falaj/mean", Tensor::of<float>(width, std::span<const float>(means)));
    const std::string deviation = graph_.add_initializer("falaj/deviation", Tensor::of<float>(width, std::span<const float>(deviations)));
    const std::string numbers = join(std::move(raw), "falaj/numbers");
    const std::string missing = graph_.add("IsNaN", {numbers}, {}, "falaj/missing");
    const std::string filled = graph_.add("Where", {missing, mean, numbers}, {}, "falaj/filled");
    const std::string centred = graph_.add("Sub", {filled, mean}, {}, "falaj/centred");
    numeric_ = graph_.add("Div", {centred, deviation}, {}, "falaj/standardised");
    if (flagged.empty()) return;
    const std::string flags = graph_.add("Cast", {missing}, {{"to", kOnnxFloat}}, "falaj/missing_flags");
    const std::string which =
        graph_.add_initializer("falaj/flagged", Tensor::of<std::int64_t>({as_dim(flagged.size())}, std::span<const std::int64_t>(flagged)));
    const std::string picked = graph_.add("Gather", {flags, which}, {{"axis", std::int64_t{1}}}, "falaj/indicators");
    numeric_ = join({numeric_, picked}, "falaj/numeric");
  }

  // Codes are rows of one table that all columns share; the first row of a column's part stands for missing, rare and unknown.
  void categorical_block() {
    std::vector<std::string> codes;
    for (std::size_t i = 0; i < preprocessing_.columns.size(); ++i) {
      const auto* fit = std::get_if<CategoricalFit>(&preprocessing_.fits[i]);
      if (fit == nullptr) continue;
      std::vector<std::string> keys = fit->vocabulary;
      std::vector<std::int64_t> rows(keys.size());
      std::iota(rows.begin(), rows.end(), as_dim(categories_) + 1);
      if (keys.empty()) {  // runtimes want at least one key
        keys.emplace_back();
        rows.push_back(as_dim(categories_));
      }
      const std::string& column = preprocessing_.columns[i].name;
      codes.push_back(
          graph_.add(kOnnxMl, "LabelEncoder", {column},
                     {{"keys_strings", std::move(keys)}, {"values_int64s", std::move(rows)}, {"default_int64", as_dim(categories_)}},
                     "falaj/code/" + column));
      categories_ += fit->vocabulary.size() + 1;
    }
    categorical_width_ = codes.size();
    if (!codes.empty()) codes_ = join(std::move(codes), "falaj/codes");
  }

  std::string parameter(const std::string& name, const Shape& shape, Start start, std::size_t fan_in) {
    Tensor value(DType::f32, shape);
    Random random = random_.split(name);
    const double gain = spec_.activation == "Relu" || spec_.activation == "LeakyRelu" || spec_.activation == "Elu" ? 2.0 : 1.0;
    const double bound = std::sqrt(3.0 * gain / static_cast<double>(std::max<std::size_t>(fan_in, 1)));
    if (start == Start::weights) {
      for (float& x : value.mutable_data<float>()) x = static_cast<float>((2.0 * random.uniform() - 1.0) * bound);
    } else if (start == Start::embedding) {
      for (float& x : value.mutable_data<float>()) x = static_cast<float>(0.3 * random.normal());
    }
    return graph_.add_initializer(name, std::move(value));
  }

  // A linear layer over standardised numbers and one-hot categories.
  std::string affine(const std::string& name, std::size_t width, Start start, std::string_view output) {
    const std::size_t fan_in = numeric_width_ + categorical_width_;
    const std::string bias = parameter(name + "/bias", {as_dim(width)}, Start::zeros, fan_in);
    std::string sum;
    if (numeric_width_ > 0) {
      const std::string weight = parameter(name + "/weight", {as_dim(numeric_width_), as_dim(width)}, start, fan_in);
      sum = graph_.add("Gemm", {numeric_, weight, bias}, {}, categorical_width_ == 0 ? output : "");
      if (categorical_width_ == 0) return sum;
    }
    const std::string table = parameter(name + "/table", {as_dim(categories_), as_dim(width)}, start, fan_in);
    const std::string rows = graph_.add("Gather", {table, codes_}, {{"axis", std::int64_t{0}}});
    if (graph_.initializers.find("falaj/axis1") == graph_.initializers.end()) {
      graph_.add_initializer("falaj/axis1", Tensor::vector<std::int64_t>({1}));
    }
    const std::string one_hot = graph_.add("ReduceSum", {rows, "falaj/axis1"}, {{"keepdims", std::int64_t{0}}});
    return graph_.add("Add", {sum.empty() ? bias : sum, one_hot}, {}, output);
  }

  std::string deep_input() {
    std::vector<std::string> parts;
    deep_width_ = numeric_width_;
    if (numeric_width_ > 0) parts.push_back(numeric_);
    if (categorical_width_ > 0) {
      const std::string table =
          parameter("deep/embedding", {as_dim(categories_), as_dim(spec_.embedding_width)}, Start::embedding, categorical_width_);
      const std::string rows = graph_.add("Gather", {table, codes_}, {{"axis", std::int64_t{0}}});
      parts.push_back(graph_.add("Flatten", {rows}, {{"axis", std::int64_t{1}}}, "falaj/embedded"));
      deep_width_ += categorical_width_ * spec_.embedding_width;
    }
    return join(std::move(parts), "falaj/deep");
  }

  // Dropout is a list of values in the metadata, not nodes: the exported model has no trace of it.
  std::string activate(const std::string& x, std::size_t layer) {
    const std::string y = graph_.add(spec_.activation, {x}, {}, format("falaj/hidden{}", layer));
    if (spec_.dropout > 0) dropped_.push_back(y);
    deep_width_ = spec_.hidden[layer];
    return y;
  }

  std::string hidden_layers(std::string x, std::size_t from) {
    for (std::size_t layer = from; layer < spec_.hidden.size(); ++layer) {
      const std::string name = format("layer{}", layer);
      const std::string weight =
          parameter(name + "/weight", {as_dim(deep_width_), static_cast<std::int64_t>(spec_.hidden[layer])}, Start::weights, deep_width_);
      const std::string bias = parameter(name + "/bias", {static_cast<std::int64_t>(spec_.hidden[layer])}, Start::zeros, deep_width_);
      x = activate(graph_.add("Gemm", std::vector<std::string>{x, weight, bias}), layer);
    }
    return x;
  }

  std::string head(const std::string& x, std::string_view output) {
    const std::string weight = parameter("head/weight", {as_dim(deep_width_), as_dim(outputs_)}, Start::weights, 2 * deep_width_);
    if (spec_.family == Family::wide_deep) return graph_.add("MatMul", {x, weight}, {}, output);  // the wide part has the bias
    const std::string bias = parameter("head/bias", {as_dim(outputs_)}, Start::zeros, deep_width_);
    return graph_.add("Gemm", {x, weight, bias}, {}, output);
  }

  const FamilySpec& spec_;
  const Preprocessing& preprocessing_;
  const TargetSpec& target_;
  Random random_;
  Graph graph_;
  std::string numeric_;  // [N, numeric_width_]
  std::string codes_;    // [N, categorical_width_], rows of tables of categories_ rows
  std::size_t numeric_width_ = 0, categorical_width_ = 0, categories_ = 0, deep_width_ = 0, outputs_ = 1;
  std::vector<std::string> dropped_;
};

bool parse_number(std::string_view text, double& value) {
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  return problem == std::errc() && end == text.data() + text.size() && std::isfinite(value);
}

}  // namespace

Status declare_columns(Graph& graph, const Preprocessing& preprocessing) {
  if (preprocessing.columns.empty()) return invalid("a model needs at least one feature column");
  for (const ColumnSpec& column : preprocessing.columns) {
    if (column.name == kProbability || column.name == kLabel || column.name == kPrediction || column.name.starts_with("falaj/")) {
      return invalid(format("feature column '{}' has the name of a model's output: rename it", column.name));
    }
    if (graph.find_input(column.name) != nullptr) return invalid(format("two feature columns are named '{}'", column.name));
    graph.add_input(column.name, column.kind == ColumnKind::numeric ? DType::f32 : DType::string, {-1, 1});
  }
  return {};
}

void declare_outputs(Graph& graph, const TargetSpec& target) {
  const std::string logits(kLogits);
  if (target.task == Task::regression) {
    const std::string scale = graph.add_initializer("falaj/scale", Tensor::vector<float>({static_cast<float>(target.scale)}));
    const std::string mean = graph.add_initializer("falaj/shift", Tensor::vector<float>({static_cast<float>(target.mean)}));
    const std::string scaled = graph.add("Mul", std::vector<std::string>{logits, scale});
    graph.add("Add", std::vector<std::string>{scaled, mean}, {}, kPrediction);
    graph.add_output(kPrediction, DType::f32, {-1, 1});
    return;
  }
  std::string number;
  if (target.task == Task::binary) {
    const std::string probability = graph.add("Sigmoid", {logits}, {}, kProbability);
    const std::string half = graph.add_initializer("falaj/half", Tensor::vector<float>({0.5F}));
    const std::string above = graph.add("Greater", std::vector<std::string>{probability, half});
    number = graph.add("Cast", {above}, Attributes{{"to", kOnnxInt64}});
  } else {
    graph.add("Softmax", {logits}, {{"axis", std::int64_t{1}}}, kProbability);
    number = graph.add("ArgMax", {logits}, Attributes{{"axis", std::int64_t{1}}, {"keepdims", std::int64_t{1}}});
  }
  std::vector<std::int64_t> numbers(target.classes.size());
  std::iota(numbers.begin(), numbers.end(), std::int64_t{0});
  graph.add(kOnnxMl, "LabelEncoder", {number},
            {{"keys_int64s", std::move(numbers)}, {"values_strings", target.classes}, {"default_string", std::string()}}, kLabel);
  graph.add_output(kProbability, DType::f32, {-1, target.task == Task::binary ? 1 : as_dim(target.classes.size())});
  graph.add_output(kLabel, DType::string, {-1, 1});
}

void describe(Graph& graph, Family family, const Preprocessing& preprocessing, const TargetSpec& target) {
  auto& meta = graph.metadata;
  meta[std::string(metadata::kTask)] = to_string(target.task);
  meta[std::string(metadata::kFamily)] = to_string(family);
  meta[std::string(metadata::kTarget)] = target.name;
  meta[std::string(metadata::kClasses)] = json_strings(target.classes);
  meta[std::string(metadata::kLogitsValue)] = kLogits;
  meta[std::string(metadata::kTargetMean)] = format("{:.17g}", target.mean);
  meta[std::string(metadata::kTargetScale)] = format("{:.17g}", target.scale);
  std::string columns = "[";
  for (std::size_t i = 0; i < preprocessing.columns.size(); ++i) {
    const ColumnSpec& column = preprocessing.columns[i];
    columns += format(R"({}{{"name":{},"kind":"{}")", i == 0 ? "" : ",", json_string(column.name), to_string(column.kind));
    if (const auto* fit = std::get_if<NumericFit>(&preprocessing.fits[i])) {
      columns += format(R"(,"mean":{:.9g},"deviation":{:.9g},"missing":{})", fit->mean, fit->deviation, fit->missing);
    } else {
      const auto& categories = std::get<CategoricalFit>(preprocessing.fits[i]);
      columns += format(R"(,"categories":{},"missing":{})", categories.vocabulary.size(), categories.missing);
    }
    columns += "}";
  }
  meta[std::string(metadata::kColumns)] = columns + "]";
}

std::string_view to_string(Task task) noexcept {
  return task == Task::binary ? "binary" : task == Task::multiclass ? "multiclass" : "regression";
}

Result<Task> parse_task(std::string_view text) {
  for (const Task task : {Task::binary, Task::multiclass, Task::regression}) {
    if (text == to_string(task)) return task;
  }
  return invalid(format("task '{}' is not known: use binary, multiclass or regression", text));
}

std::string_view to_string(Family family) noexcept {
  switch (family) {
    case Family::linear:
      return "linear";
    case Family::mlp:
      return "mlp";
    case Family::wide_deep:
      return "wide_deep";
    case Family::boosted_trees:
      return "boosted_trees";
  }
  return {};
}

Result<Family> parse_family(std::string_view text) {
  for (const Family family : {Family::linear, Family::mlp, Family::wide_deep, Family::boosted_trees}) {
    if (text == to_string(family)) return family;
  }
  return invalid(format("model family '{}' is not known: use linear, mlp, wide_deep or boosted_trees", text));
}

Status check(const FamilySpec& spec) {
  if (std::ranges::find(kActivations, spec.activation) == kActivations.end()) {
    return invalid(format("activation '{}' is not known: use Relu, Tanh, Sigmoid, Elu, LeakyRelu or Softplus", spec.activation));
  }
  if (spec.family == Family::linear) return {};
  if (spec.family == Family::boosted_trees) return invalid("boosted trees are grown, not differentiated: see kernels/trees");
  if (spec.hidden.empty() || spec.hidden.size() > 64) return invalid(format("{} hidden layers: there must be 1 to 64", spec.hidden.size()));
  for (const std::uint32_t width : spec.hidden) {
    if (width == 0 || width > 65536) return invalid(format("a hidden layer of {} units: there must be 1 to 65536", width));
  }
  if (!(spec.dropout >= 0 && spec.dropout < 1)) return invalid(format("dropout is {}, it must be in [0, 1)", spec.dropout));
  if (spec.embedding_width == 0 || spec.embedding_width > 4096) {
    return invalid(format("embedding_width is {}, it must be 1 to 4096", spec.embedding_width));
  }
  return {};
}

Result<Graph> build_family(const FamilySpec& spec, const Preprocessing& preprocessing, const TargetSpec& target, std::uint64_t seed) {
  FALAJ_TRY(check(spec));
  if (target.task == Task::binary && target.classes.size() != 2) {
    return invalid(format("a binary target has two classes, '{}' has {}", target.name, target.classes.size()));
  }
  if (target.task == Task::multiclass && target.classes.size() < 2) {
    return invalid(format("a target of several classes has at least two, '{}' has {}", target.name, target.classes.size()));
  }
  return FamilyBuilder(spec, preprocessing, target, seed).build();
}

Result<TargetSpec> fit_target(std::string_view name, std::span<const std::string> labels, std::span<const std::uint32_t> rows,
                              std::string_view positive, std::size_t classes_max) {
  std::map<std::string, double, std::less<>> distinct;
  bool numeric = true;
  double sum = 0;
  double squares = 0;
  for (const std::uint32_t row : rows) {
    if (row >= labels.size() || labels[row].empty()) return invalid(format("label '{}' is missing in row {}", name, row));
    double value = 0;
    numeric = numeric && parse_number(labels[row], value);
    distinct[labels[row]] = value;
    sum += value;
    squares += value * value;
  }
  if (distinct.size() < 2)
    return invalid(format("label '{}' has {} different value in the training rows: there is nothing to learn", name, distinct.size()));
  TargetSpec target{.name = std::string(name)};
  if (numeric && distinct.size() > classes_max) {
    target.task = Task::regression;
    const auto count = static_cast<double>(rows.size());
    target.mean = sum / count;
    target.scale = std::sqrt(std::max(squares / count - target.mean * target.mean, 0.0));
    if (!(target.scale > 0)) target.scale = 1;
    return target;
  }
  if (distinct.size() > kClassesMax) {
    return invalid(
        format("label '{}' has {} different texts: {} classes are the most, numbers may have more", name, distinct.size(), kClassesMax));
  }
  target.task = distinct.size() == 2 ? Task::binary : Task::multiclass;
  for (const auto& [text, value] : distinct) target.classes.push_back(text);
  if (numeric) {
    std::ranges::sort(target.classes, {}, [&](const std::string& text) { return std::pair(distinct.find(text)->second, text); });
  }
  if (!positive.empty()) {
    if (target.task != Task::binary)
      return invalid(format("a positive class is for two classes, label '{}' has {}", name, distinct.size()));
    const auto found = std::ranges::find(target.classes, positive);
    if (found == target.classes.end()) {
      return invalid(format("positive class '{}' does not occur in label '{}': it has '{}' and '{}'", positive, name, target.classes[0],
                            target.classes[1]));
    }
    if (found == target.classes.begin()) std::swap(target.classes[0], target.classes[1]);
  }
  return target;
}

Result<std::vector<float>> encode_labels(const TargetSpec& target, std::span<const std::string> labels) {
  std::map<std::string_view, std::size_t> numbers;
  for (std::size_t i = 0; i < target.classes.size(); ++i) numbers[target.classes[i]] = i;
  std::vector<float> out(labels.size());
  for (std::size_t row = 0; row < labels.size(); ++row) {
    if (target.task == Task::regression) {
      double value = 0;
      if (!parse_number(labels[row], value))
        return invalid(format("label '{}' in row {} is '{}', not a number", target.name, row, labels[row]));
      out[row] = static_cast<float>(value);
      continue;
    }
    const auto found = numbers.find(labels[row]);
    if (found == numbers.end()) {
      return invalid(format("label '{}' in row {} is '{}', which is no class of the training rows", target.name, row, labels[row]));
    }
    out[row] = static_cast<float>(found->second);
  }
  return out;
}

Result<TargetSpec> read_target(const Graph& graph) {
  const auto text = [&](std::string_view key) -> std::string {
    const auto found = graph.metadata.find(key);
    return found == graph.metadata.end() ? std::string() : found->second;
  };
  if (text(metadata::kTask).empty()) return error(ErrorCode::not_found, format("the model's metadata has no '{}'", metadata::kTask));
  TargetSpec target;
  FALAJ_ASSIGN(target.task, parse_task(text(metadata::kTask)));
  target.name = text(metadata::kTarget);
  if (const std::string classes = text(metadata::kClasses); !classes.empty()) {
    FALAJ_ASSIGN(target.classes, read_json_strings(classes));
  }
  for (auto [key, value] : {std::pair{metadata::kTargetMean, &target.mean}, std::pair{metadata::kTargetScale, &target.scale}}) {
    if (const std::string number = text(key); !number.empty() && !parse_number(number, *value)) {
      return invalid(format("the model's metadata '{}' is '{}', not a number", key, number));
    }
  }
  return target;
}

}  // namespace falaj::kernels
