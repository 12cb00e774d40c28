#include "kernels/train/families.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "kernels/train/json.hpp"
#include "kernels/train/layers.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

namespace {

constexpr std::int64_t kOnnxFloat = 1;  // TensorProto.DataType
constexpr std::int64_t kOnnxInt64 = 7;
constexpr std::array<std::pair<Family, std::string_view>, 8> kFamilies = {{{Family::linear, "linear"},
                                                                           {Family::mlp, "mlp"},
                                                                           {Family::wide_deep, "wide_deep"},
                                                                           {Family::boosted_trees, "boosted_trees"},
                                                                           {Family::cnn, "cnn"},
                                                                           {Family::resnet, "resnet"},
                                                                           {Family::transformer, "transformer"},
                                                                           {Family::gpt, "gpt"}}};

std::int64_t as_dim(std::size_t size) { return static_cast<std::int64_t>(size); }

class FamilyBuilder {
 public:
  FamilyBuilder(const FamilySpec& spec, const Preprocessing& preprocessing, const TargetSpec& target, std::uint64_t seed)
      : spec_(spec), preprocessing_(preprocessing), target_(target), layers_(graph_, spec.activation, seed) {}

  Result<Graph> build() {
    graph_.name = std::string(to_string(spec_.family));
    FALAJ_TRY(declare_columns(graph_, preprocessing_));
    if (spec_.family != Family::gpt) {
      numeric_block();
      categorical_block();
    }
    outputs_ = target_.task == Task::multiclass ? target_.classes.size() : 1;
    switch (spec_.family) {
      case Family::linear:
        affine("linear", outputs_, Start::zeros, kLogits);
        break;
      case Family::mlp:
        head(hidden_layers(activate(affine("layer0", spec_.hidden[0], Start::weights, {}), 0), 1), kLogits);
        break;
      case Family::cnn:
      case Family::resnet: {
        FALAJ_ASSIGN(const auto pixels, image());
        head(spec_.family == Family::cnn ? convolutions(pixels) : residual_blocks(pixels), kLogits);
        break;
      }
      case Family::transformer:
        head(encoder(tokens()), kLogits);
        break;
      case Family::gpt: {
        FALAJ_ASSIGN(const auto codes, text_tokens());
        FALAJ_TRY(decoder(codes));
        break;
      }
      default: {
        const std::string wide = affine("wide", outputs_, Start::zeros, {});
        const std::string deep = head(hidden_layers(deep_input(), 0), {});
        graph_.add("Add", {wide, deep}, {}, kLogits);
      }
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
    standardised_width_ = raw.size();
    numeric_width_ = raw.size() + flagged.size();
    const Shape width{as_dim(raw.size())};
    const std::string mean = graph_.add_initializer("falaj/mean", Tensor::of<float>(width, std::span<const float>(means)));
    const std::string deviation = graph_.add_initializer("falaj/deviation", Tensor::of<float>(width, std::span<const float>(deviations)));
    const std::string numbers = join(std::move(raw), "falaj/numbers");
    const std::string missing = graph_.add("IsNaN", {numbers}, {}, "falaj/missing");
    const std::string filled = graph_.add("Where", {missing, mean, numbers}, {}, "falaj/filled");
    const std::string centred = graph_.add("Sub", {filled, mean}, {}, "falaj/centred");
    numeric_ = standardised_ = graph_.add("Div", {centred, deviation}, {}, "falaj/standardised");
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
    return layers_.parameter(name, shape, start, fan_in);
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
    const std::string axis = layers_.constant("falaj/axis1", Tensor::vector<std::int64_t>({1}));
    const std::string one_hot = graph_.add("ReduceSum", {rows, axis}, {{"keepdims", std::int64_t{0}}});
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
    deep_width_ = spec_.hidden[layer];
    return dropped(layers_.activate(x, format("falaj/hidden{}", layer)));
  }
  std::string dropped(const std::string& value) {
    if (spec_.dropout > 0) dropped_.push_back(value);
    return value;
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

  // ---- images: [N, channels, rows, columns] ----

  Result<std::string> image() {
    const std::size_t wanted = std::size_t{spec_.image[0]} * spec_.image[1] * spec_.image[2];
    if (categorical_width_ > 0 || standardised_width_ != wanted) {
      return invalid(
          format("family {} reads one image of {} x {} x {} = {} numbers; the features are {} numeric and {} categorical columns",
                 to_string(spec_.family), spec_.image[0], spec_.image[1], spec_.image[2], wanted, standardised_width_, categorical_width_));
    }
    const std::string shape =
        layers_.constant("falaj/image", Tensor::vector<std::int64_t>({-1, spec_.image[0], spec_.image[1], spec_.image[2]}));
    channels_ = spec_.image[0];
    rows_ = spec_.image[1];
    columns_ = spec_.image[2];
    return graph_.add("Reshape", {standardised_, shape}, {}, "falaj/pixels");
  }

  std::string convolutions(std::string x) {
    for (std::size_t stage = 0; stage < spec_.hidden.size(); ++stage) {
      const std::string name = format("stage{}", stage);
      x = layers_.convolution(name, x, channels_, spec_.hidden[stage], kKernel, 1);
      channels_ = spec_.hidden[stage];
      x = dropped(layers_.activate(layers_.channel_bias(name, x, channels_)));
      if (rows_ < 2 || columns_ < 2) continue;
      x = graph_.add("MaxPool", {x},
                     Attributes{{"kernel_shape", std::vector<std::int64_t>{2, 2}}, {"strides", std::vector<std::int64_t>{2, 2}}});
      rows_ /= 2;
      columns_ /= 2;
    }
    deep_width_ = channels_ * rows_ * columns_;
    return graph_.add("Flatten", {x}, Attributes{{"axis", std::int64_t{1}}}, "falaj/deep");
  }

  // He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition" (2015), two basic blocks a stage, without normalisation by the
  // batch, whose result would depend on how it is divided among workers: each block begins as one that changes nothing (De, Smith: "Batch
  // Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks", 2020).
  std::string residual_blocks(std::string x) {
    x = layers_.convolution("stem", x, channels_, spec_.hidden[0], kKernel, 1);
    channels_ = spec_.hidden[0];
    x = layers_.activate(layers_.channel_bias("stem", x, channels_));
    for (std::size_t stage = 0; stage < spec_.hidden.size(); ++stage) {
      const bool halves = stage > 0 && rows_ > 1 && columns_ > 1;
      x = residual_block(format("stage{}/0", stage), x, spec_.hidden[stage], halves ? 2 : 1);
      x = dropped(residual_block(format("stage{}/1", stage), x, spec_.hidden[stage], 1));
    }
    deep_width_ = channels_;
    return graph_.add("Flatten", {graph_.add("GlobalAveragePool", {x})}, Attributes{{"axis", std::int64_t{1}}}, "falaj/deep");
  }

  std::string residual_block(const std::string& name, const std::string& x, std::size_t channels, std::int64_t stride) {
    std::string y = layers_.convolution(name + "/first", x, channels_, channels, kKernel, stride);
    y = layers_.activate(layers_.channel_bias(name + "/first", y, channels));
    y = layers_.channel_bias(name + "/second", layers_.convolution(name + "/second", y, channels, channels, kKernel, 1), channels);
    y = layers_.channel_scale(name, y, channels, channels > 1 ? Start::zeros : Start::ones);
    std::string skip = x;
    if (channels != channels_ || stride != 1) skip = layers_.convolution(name + "/skip", x, channels_, channels, 1, stride);
    channels_ = channels;
    if (stride == 2) {
      rows_ = (rows_ + 1) / 2;
      columns_ = (columns_ + 1) / 2;
    }
    return layers_.activate(graph_.add("Add", {y, skip}));
  }

  // ---- tokens: [N, columns, embedding_width] ----

  std::string tokens() {
    const auto width = as_dim(spec_.embedding_width);
    std::vector<std::string> parts;
    if (numeric_width_ > 0) {
      const std::string weight = parameter("tokens/weight", {as_dim(numeric_width_), width}, Start::embedding, numeric_width_);
      const std::string bias = parameter("tokens/bias", {as_dim(numeric_width_), width}, Start::embedding, numeric_width_);
      const std::string scaled = graph_.add("Einsum", {numeric_, weight}, Attributes{{"equation", std::string("nf,fd->nfd")}});
      parts.push_back(graph_.add("Add", {scaled, bias}));
    }
    if (categorical_width_ > 0) {
      const std::string table = parameter("tokens/table", {as_dim(categories_), width}, Start::embedding, categorical_width_);
      parts.push_back(graph_.add("Gather", {table, codes_}, {{"axis", std::int64_t{0}}}));
    }
    return join(std::move(parts), "falaj/tokens");
  }

  // Normalised before each part, not after it (Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020).
  std::string blocks(std::string x, std::size_t causal_tokens) {
    const std::size_t width = spec_.embedding_width;
    for (std::size_t block = 0; block < spec_.hidden.size(); ++block) {
      const std::string name = format("block{}", block);
      const std::string normal = layers_.layer_norm(name + "/attention", x, width);
      const std::string attended = layers_.self_attention(name + "/attention", normal, width, spec_.heads, causal_tokens);
      x = graph_.add("Add", {x, dropped(attended)});
      std::string y = layers_.linear(name + "/first", layers_.layer_norm(name + "/first", x, width), width, spec_.hidden[block]);
      y = layers_.linear(name + "/second", layers_.activate(y), spec_.hidden[block], width);
      x = graph_.add("Add", {x, dropped(y)});
    }
    deep_width_ = width;
    return layers_.layer_norm("last", x, width);
  }

  std::string encoder(const std::string& tokens) {
    return graph_.add("ReduceMean", {blocks(tokens, 0)}, Attributes{{"axes", std::vector<std::int64_t>{1}}, {"keepdims", std::int64_t{0}}},
                      "falaj/deep");
  }

  // ---- text: [N, columns] of one vocabulary ----

  // Codes of tokens: rows of one table, the last of which stands for what is no token.
  Result<std::string> text_tokens() {
    const auto numeric = std::ranges::count(preprocessing_.columns, ColumnKind::numeric, &ColumnSpec::kind);
    const auto columns = static_cast<std::ptrdiff_t>(preprocessing_.columns.size());
    if (numeric != (spec_.vocabulary > 0 ? columns : 0)) {
      return invalid(
          format("family gpt reads columns of one kind: categories, or numbers with `vocabulary`, how many there are; there are {} "
                 "numeric and {} categorical columns, and vocabulary is {}",
                 numeric, columns - numeric, spec_.vocabulary));
    }
    std::vector<std::string> raw;
    for (const ColumnSpec& column : preprocessing_.columns) raw.push_back(column.name);
    if (spec_.vocabulary > 0) {
      for (std::uint32_t token = 0; token < spec_.vocabulary; ++token) vocabulary_.push_back(std::to_string(token));
      const std::string numbers = join(std::move(raw), "falaj/numbers");
      const std::string first = layers_.constant("falaj/first_token", Tensor::vector<float>({0}));
      const std::string behind = layers_.constant("falaj/no_token", Tensor::vector<float>({static_cast<float>(spec_.vocabulary)}));
      const std::string not_below = graph_.add("GreaterOrEqual", {numbers, first});
      const std::string below = graph_.add("Less", {numbers, behind});
      const std::string inside = graph_.add("And", {not_below, below});  // NaN is not
      const std::string known = graph_.add("Where", {inside, numbers, behind});
      return graph_.add("Cast", {known}, {{"to", kOnnxInt64}}, "falaj/codes");
    }
    std::set<std::string> words;
    for (const auto& fit : preprocessing_.fits) {
      const auto& seen = std::get<CategoricalFit>(fit).vocabulary;
      words.insert(seen.begin(), seen.end());
    }
    if (words.empty()) return invalid("family gpt: no column has a value in the training rows");
    vocabulary_.assign(words.begin(), words.end());
    std::vector<std::int64_t> rows(vocabulary_.size());
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    // One encoder for all columns: a text is one matrix of strings.
    const std::string texts = join(std::move(raw), "falaj/texts");
    return graph_.add(kOnnxMl, "LabelEncoder", {texts},
                      {{"keys_strings", vocabulary_}, {"values_int64s", std::move(rows)}, {"default_int64", as_dim(vocabulary_.size())}},
                      "falaj/codes");
  }

  Status decoder(const std::string& codes) {
    const auto width = as_dim(spec_.embedding_width);
    const std::size_t length = preprocessing_.columns.size();
    const std::string table = parameter("tokens/table", {as_dim(vocabulary_.size()) + 1, width}, Start::embedding, 1);
    const std::string places = parameter("tokens/places", {as_dim(length), width}, Start::embedding, 1);
    const std::string looked_up = graph_.add("Gather", {table, codes}, {{"axis", std::int64_t{0}}});
    const std::string states = blocks(graph_.add("Add", {looked_up, places}, {}, "falaj/tokens"), length);
    graph_.add("Identity", {states}, {}, "falaj/states");
    const std::string last = layers_.constant("falaj/last_token", Tensor::scalar<std::int64_t>(as_dim(length) - 1));
    const std::string read = graph_.add("Gather", {"falaj/states", last}, {{"axis", std::int64_t{1}}}, "falaj/deep");
    if (!spec_.tied) {
      head(read, kLogits);
      return {};
    }
    if (target_.task != Task::multiclass) return invalid("tied: the label must be a token, one of several classes");
    std::vector<std::int64_t> rows;
    for (const std::string& name : target_.classes) {
      const auto found = std::ranges::find(vocabulary_, name);
      if (found == vocabulary_.end()) return invalid(format("tied: the label's class '{}' is no token of the columns", name));
      rows.push_back(found - vocabulary_.begin());
    }
    const std::string which =
        graph_.add_initializer("falaj/class_tokens", Tensor::of<std::int64_t>({as_dim(rows.size())}, std::span<const std::int64_t>(rows)));
    const std::string classes = graph_.add("Gather", {table, which}, {{"axis", std::int64_t{0}}});
    const std::string weights = graph_.add("Transpose", {classes}, Attributes{{"perm", std::vector<std::int64_t>{1, 0}}});
    graph_.add("MatMul", {read, weights}, {}, kLogits);
    return {};
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
  static constexpr std::int64_t kKernel = 3;
  Graph graph_;
  Layers layers_;
  std::string standardised_;  // [N, standardised_width_]: numbers without the flags of missing ones
  std::string numeric_;       // [N, numeric_width_]: with them
  std::string codes_;         // [N, categorical_width_], rows of tables of categories_ rows
  std::size_t standardised_width_ = 0, numeric_width_ = 0, categorical_width_ = 0, categories_ = 0, deep_width_ = 0, outputs_ = 1;
  std::size_t channels_ = 0, rows_ = 0, columns_ = 0;  // of the image so far
  std::vector<std::string> vocabulary_;                // of a text; the token behind the last is none of them
  std::vector<std::string> dropped_;
};

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

std::string_view to_string(Family family) noexcept {
  return std::ranges::find(kFamilies, family, &std::pair<Family, std::string_view>::first)->second;
}

Result<Family> parse_family(std::string_view text) {
  std::string known;
  for (const auto& [family, name] : kFamilies) {
    if (text == name) return family;
    known += format("{}{}", known.empty() ? "" : ", ", name);
  }
  return invalid(format("model family '{}' is not known: use one of {}", text, known));
}

FamilySpec default_spec(Family family) {
  FamilySpec spec{.family = family};
  if (family == Family::cnn || family == Family::resnet) spec.hidden = {16, 32};
  if (family == Family::transformer || family == Family::gpt) {
    spec.hidden = {64, 64};
    spec.embedding_width = 32;
  }
  if (family == Family::gpt) spec.activation = "Gelu";
  return spec;
}

namespace {

constexpr std::uint64_t kPixelsMax = 65536;
constexpr std::uint32_t kVocabularyMax = 65536;

Status check_image(const FamilySpec& spec) {
  const bool whole = spec.image.size() == 3 && std::ranges::none_of(spec.image, [](std::uint32_t n) { return n == 0 || n > kPixelsMax; });
  if (!whole) {
    return invalid(format("family {} needs `image`, three numbers of at least 1: channels, rows and columns, as in image = [1, 8, 8]",
                          to_string(spec.family)));
  }
  if (const auto pixels = std::uint64_t{spec.image[0]} * spec.image[1] * spec.image[2]; pixels > kPixelsMax)
    return invalid(format("an image of {} numbers: at most {} are possible", pixels, kPixelsMax));
  return {};
}

}  // namespace

Status check(const FamilySpec& spec) {
  if (!Layers::knows_activation(spec.activation)) {
    return invalid(format("activation '{}' is not known: use Relu, Tanh, Sigmoid, Elu, LeakyRelu, Softplus or Gelu", spec.activation));
  }
  const bool of_images = spec.family == Family::cnn || spec.family == Family::resnet;
  if (!of_images && !spec.image.empty())
    return invalid(format("`image` is for the families cnn and resnet, not for {}", to_string(spec.family)));
  if (spec.family != Family::gpt && (spec.vocabulary > 0 || spec.tied))
    return invalid(format("`vocabulary` and `tied` are for the family gpt, not for {}", to_string(spec.family)));
  if (spec.vocabulary > kVocabularyMax) return invalid(format("a vocabulary of {} tokens: at most {}", spec.vocabulary, kVocabularyMax));
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
  if (of_images) return check_image(spec);
  const bool attends = spec.family == Family::transformer || spec.family == Family::gpt;
  if (attends && (spec.heads == 0 || spec.embedding_width % spec.heads != 0)) {
    return invalid(
        format("{} heads of attention cannot share tokens of {} numbers: the one must divide the other", spec.heads, spec.embedding_width));
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

}  // namespace falaj::kernels
