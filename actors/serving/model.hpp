// A served model: an ONNX graph compiled for this process, asked with the wire's tensors. One Model is shared by the replicas of a
// process; a Session is one thread's way to run it.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/plan.hpp"
#include "messages/serving.capnp.h"
#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::serving {

struct TensorSpec {
  std::string name;
  messages::DataType type = messages::DataType::INVALID;
  std::vector<std::int64_t> shape;  // -1: any
  bool batched = false;             // the first dimension is the batch
};

class Model {
 public:
  // Blocking (compiles). `name` is what errors call it. Immutable afterwards; any thread.
  static Result<std::shared_ptr<const Model>> load(ByteView onnx, std::string_view name);

  [[nodiscard]] const std::vector<TensorSpec>& inputs() const { return inputs_; }
  [[nodiscard]] const std::vector<TensorSpec>& outputs() const { return outputs_; }
  [[nodiscard]] const std::shared_ptr<const kernels::Compiled>& compiled() const { return compiled_; }
  // Rows of a request, once its inputs are known to fit: names, types, shapes, sizes of content. Inputs the request leaves out are
  // missing values where their type has one (float: NaN, string: empty). An error names input, what it is and what it must be.
  [[nodiscard]] Result<std::int64_t> check(messages::Infer::Reader request) const;

 private:
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  std::shared_ptr<const kernels::Compiled> compiled_;
};

// Runs batches of requests. One thread at a time.
class Session {
 public:
  explicit Session(std::shared_ptr<const Model> model);
  Status warm_up(std::int64_t rows);
  [[nodiscard]] const Model& model() const { return *model_; }
  // The requests (checked, `rows[i]` rows each) as one batch. Afterwards answer() writes the outputs of each.
  Status run(std::span<const messages::Infer::Reader> requests, std::span<const std::int64_t> rows);
  // Outputs of rows [first, first + rows), all or those that the request names (checked by wanted()).
  void answer(messages::InferReply::Builder into, messages::Infer::Reader request, std::int64_t first, std::int64_t rows) const;

 private:
  void fill(std::size_t input, std::span<const messages::Infer::Reader> requests, std::span<const std::int64_t> rows, std::int64_t total);
  std::shared_ptr<const Model> model_;
  kernels::Executor executor_;
  std::vector<kernels::Tensor> inputs_;
  std::vector<kernels::Tensor> outputs_;
  std::int64_t total_ = 0;
};

messages::DataType data_type(kernels::DType type) noexcept;
std::size_t element_size(messages::DataType type) noexcept;    // 0: bytes and invalid
std::string_view type_name(messages::DataType type) noexcept;  // "FP32"

}  // namespace falaj::serving
