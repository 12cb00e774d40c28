// A served model: an ONNX graph compiled for this process, asked with the wire's tensors. One Model is shared by the replicas of a
// process; a Session is one thread's way to run it.
#pragma once
#include <compare>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "kernels/plan.hpp"
#include "messages/resources.capnp.h"
#include "messages/serving.capnp.h"
#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::serving {

struct TensorSpec {
  std::string name;
  messages::DataType type = messages::DataType::INVALID;
  std::vector<std::int64_t> shape;  // -1: any
  bool batched = false;             // the first dimension is the batch
  bool required = false;            // no value may be missing: the model was trained on a field that has one always
};

// Where a request's tensors go: for each input of the model its position in the request, -1 when it was left out.
struct Fit {
  std::int64_t rows = 1;
  std::vector<std::int32_t> at;
};

// How a model is compiled and run.
struct ModelOptions {
  bool bf16 = false;        // products and convolutions by known weights take their operands rounded
  std::size_t threads = 1;  // of a Session: the caller's is one of them
  auto operator<=>(const ModelOptions&) const = default;
};
ModelOptions model_options(messages::Deployment::Reader deployment);

class Model {
 public:
  // Blocking (compiles). `name` is what errors call it. Immutable afterwards; any thread.
  static Result<std::shared_ptr<const Model>> load(ByteView onnx, std::string_view name, const ModelOptions& options = {});

  [[nodiscard]] const ModelOptions& options() const { return options_; }
  [[nodiscard]] const std::vector<TensorSpec>& inputs() const { return inputs_; }
  [[nodiscard]] const std::vector<TensorSpec>& outputs() const { return outputs_; }
  [[nodiscard]] const std::shared_ptr<const kernels::Compiled>& compiled() const { return compiled_; }
  // How a request fits: names, types, shapes, sizes of content. Inputs that it leaves out are missing values where their type has one
  // (float: NaN, string: empty) and the field they stand for may miss one. An error names input, what it is and what it must be.
  [[nodiscard]] Result<Fit> check(messages::Infer::Reader request) const;
  // May requests share a run? Only where the batch is the one free dimension of every input: otherwise each runs alone.
  [[nodiscard]] bool batches() const { return batches_; }
  // Does the input hold categories of a known list? Others count as missing, and are counted.
  [[nodiscard]] bool has_categories(std::size_t input) const { return !categories_[input].empty(); }
  [[nodiscard]] bool knows(std::size_t input, std::string_view category) const { return categories_[input].contains(category); }

 private:
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>{}(text); }
  };
  using Categories = std::unordered_set<std::string, TextHash, std::equal_to<>>;
  void note_categories(const kernels::Graph& graph);
  Status note_required(const kernels::Graph& graph, std::string_view name);
  [[nodiscard]] std::optional<std::size_t> position(std::string_view input, std::size_t likely) const;

  ModelOptions options_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  std::unordered_map<std::string, std::size_t, TextHash, std::equal_to<>> by_name_;
  bool batches_ = true;
  std::vector<Categories> categories_;  // by input; empty: not such an input
  std::shared_ptr<const kernels::Compiled> compiled_;
};

// A checked request on its way into a batch.
struct Part {
  messages::Infer::Reader request;
  Fit fit;
};

// Runs batches of requests. One thread at a time.
class Session {
 public:
  explicit Session(std::shared_ptr<const Model> model);
  Status warm_up(std::int64_t rows);
  [[nodiscard]] const Model& model() const { return *model_; }
  // All parts as one batch. Afterwards answer() writes the outputs of each.
  Status run(std::span<const Part> parts);
  // Outputs of rows [first, first + rows), all or those that the request names.
  void answer(messages::InferReply::Builder into, messages::Infer::Reader request, std::int64_t first, std::int64_t rows) const;
  // Unknown categories of the last run, by input.
  [[nodiscard]] const std::vector<std::uint64_t>& unknown() const { return unknown_; }
  [[nodiscard]] std::uint32_t unknown_of(std::size_t part) const { return unknown_of_.at(part); }

 private:
  kernels::Shape shape_of(std::size_t input, const Part& first) const;
  void fill(std::size_t input, std::span<const Part> parts);
  std::uint32_t fill_strings(std::size_t input, const Part& part, std::span<std::string> out);

  std::shared_ptr<const Model> model_;
  kernels::Executor executor_;
  std::vector<kernels::Tensor> inputs_;
  std::vector<kernels::Tensor> outputs_;
  std::vector<std::uint64_t> unknown_;
  std::vector<std::uint32_t> unknown_of_;  // by part
  std::int64_t total_ = 0;
};

messages::DataType data_type(kernels::DType type) noexcept;
std::size_t element_size(messages::DataType type) noexcept;    // 0: bytes and invalid
std::string_view type_name(messages::DataType type) noexcept;  // "FP32"

}  // namespace falaj::serving
