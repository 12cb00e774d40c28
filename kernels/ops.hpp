// What an op is: one OpDef, in one place (kernels/ops/<family>.cpp), holding its types (inference), its meaning (reference
// kernel) and its gradient. all_ops() is the one list; the tests walk it, so a new op is tested by existing.
//
// Inference works on concrete shapes: a plan is made for the shapes it will run with. Inputs whose value is known when the plan is
// made carry it (`constant`), which is how Reshape, Slice and the like learn their targets.
//
// A Kernel is made for one call (types, shapes, attributes, constants all known), is immutable, and is then run any number of
// times, from any number of threads, on bare pointers.
//
// Ops of our own (domain ai.falaj), for training graphs and fused plans; T is f32 or f64:
//   SigmoidCrossEntropy(logits T[...], labels T[same], weights T[same]?) -> loss T[]     labels are probabilities of the positive class
//   SoftmaxCrossEntropy(logits T[N,C], labels i64[N], weights T[N]?)     -> loss T[]
//   MeanSquare(prediction T[...], target T[same], weights T[same]?)      -> loss T[]; MeanAbsolute and Huber (attribute delta) alike
//     attribute reduction = "mean" (default: divides by the element count, rows for softmax) or "sum" (micro-shards of a batch: the
//     caller divides by the size of the whole batch); SoftmaxCrossEntropy: ignore_index, the label of rows that do not count
//   MatMul(A, B, bias?) with transA, transB (last two dimensions), alpha, activation ("Relu", ...), activation_alpha
//   GatherGrad(dy, indices, data) scatter-adds rows in index order; ReduceLike(x, like) sums x down to like's broadcastable shape;
//   ReshapeLike, CastLike, ExpandLike, SliceGrad, ConcatGrad, <Activation>Grad, ...: see kernels/ops/.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/graph.hpp"
#include "kernels/tensor.hpp"

namespace falaj::kernels {

class PackedWeights;
class Team;

struct ValueType {
  DType dtype = DType::undefined;  // undefined: an optional input that is absent
  Shape shape;
  const Tensor* constant = nullptr;  // its value, when that is known before the run
};

// A node together with the types of what it reads.
struct OpCall {
  const Node& node;
  std::span<const ValueType> inputs;
  std::int64_t opset = kOpset;

  [[nodiscard]] bool has(std::size_t i) const { return i < inputs.size() && inputs[i].dtype != DType::undefined; }
  [[nodiscard]] const ValueType& in(std::size_t i) const { return inputs[i]; }
};

struct InferCall : OpCall {
  std::vector<ValueType>& outputs;  // sized to node.outputs; inference fills dtype and shape of each
};

// Pointers of one launch, in the order of node.inputs / node.outputs (null where absent).
struct Io {
  void* const* in;
  void* const* out;
  std::byte* scratch;  // Kernel::scratch_bytes() of it, 64-byte aligned
  std::string* failure;
  Team* team = nullptr;  // threads that a kernel may share its work with (kernels/parallel.hpp); null: the caller's alone

  template <class T>
  [[nodiscard]] const T* input(std::size_t i) const {
    return static_cast<const T*>(in[i]);
  }
  template <class T>
  [[nodiscard]] T* output(std::size_t i) const {
    return static_cast<T*>(out[i]);
  }
  // Bad data met while running (an index out of range): the run ends with `invalid` and the node's name. Nothing out of bounds
  // may have been touched.
  void fail(std::string reason) const { *failure = std::move(reason); }
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void run(const Io& io) const = 0;
  [[nodiscard]] virtual std::size_t scratch_bytes() const { return 0; }
  [[nodiscard]] virtual std::string_view implementation() const { return "reference"; }  // for why()
};
using KernelPtr = std::unique_ptr<const Kernel>;

struct KernelCall : OpCall {
  std::span<const ValueType> outputs;
  PackedWeights* packed = nullptr;  // null: do not keep derived weights
  bool batch_invariant = false;     // refuse what may give a row other bits in another batch
  std::size_t threads = 1;          // parts that will run at a time at most, for who gives each a scratch of its own
};

// What a gradient function sees: the forward node, which gradients flow in, which are wanted; it appends nodes.
class GradientCall {
 public:
  GradientCall(Graph& graph, const Node& node, std::span<const ValueType> inputs, std::span<const ValueType> outputs,
               std::vector<std::string> dy, std::vector<bool> wanted);
  [[nodiscard]] const Node& node() const { return node_; }
  [[nodiscard]] const ValueType& input_type(std::size_t i) const { return inputs_[i]; }    // ranks and dtypes hold for every batch;
  [[nodiscard]] const ValueType& output_type(std::size_t i) const { return outputs_[i]; }  // sizes are those of a sample batch
  [[nodiscard]] const std::string& input(std::size_t i) const { return node_.inputs[i]; }
  [[nodiscard]] const std::string& output(std::size_t i) const { return node_.outputs[i]; }
  [[nodiscard]] const std::string& dy(std::size_t i = 0) const { return dy_[i]; }  // "": no gradient reaches this output
  [[nodiscard]] bool wants(std::size_t i) const { return i < wanted_.size() && wanted_[i]; }
  void set(std::size_t i, std::string gradient) { dx_[i] = std::move(gradient); }
  // Appends a node; returns its first output's name.
  std::string add(std::string_view op, std::vector<std::string> inputs, Attributes attributes = {});
  std::string add_falaj(std::string_view op, std::vector<std::string> inputs, Attributes attributes = {});
  std::vector<std::string> add_many(std::string_view domain, std::string_view op, std::vector<std::string> inputs, Attributes attributes,
                                    std::size_t outputs);
  std::string constant(double value, DType dtype);  // a scalar initialiser
  // The gradient is zero, though the output is a float (Sign, Floor): not an op whose gradient nobody has written.
  void stop() { stopped_ = true; }
  [[nodiscard]] bool stopped() const { return stopped_; }
  Graph& graph() { return graph_; }
  [[nodiscard]] const std::vector<std::string>& dx() const { return dx_; }

 private:
  Graph& graph_;
  Node node_;  // a copy: appending moves graph_.nodes
  std::vector<ValueType> inputs_, outputs_;
  std::vector<std::string> dy_, dx_;
  std::vector<bool> wanted_;
  bool stopped_ = false;
};

// A value of any kind. An optional without a value is none; an optional with one is that value.
struct Value {
  enum class Kind : std::uint8_t { none, tensor, sequence };
  Kind kind = Kind::none;
  Tensor tensor;
  std::vector<Value> items;  // of a sequence
  Value() = default;
  Value(Tensor t) : kind(t.empty() ? Kind::none : Kind::tensor), tensor(std::move(t)) {}
  static Value sequence(std::vector<Value> items) {
    Value v;
    v.kind = Kind::sequence;
    v.items = std::move(items);
    return v;
  }
};

// A call of an op that works on values rather than on launches: what its outputs are depends on data (NonZero, Unique), is no tensor
// (sequences), or is computed by a graph (If, Loop, Scan). Run by the interpreter only (interpret.hpp).
class EagerCall {
 public:
  EagerCall(const Node& node, std::span<const Value> inputs, std::int64_t opset) : node_(node), inputs_(inputs), opset_(opset) {}
  virtual ~EagerCall() = default;
  [[nodiscard]] const Node& node() const { return node_; }
  [[nodiscard]] std::int64_t opset() const { return opset_; }
  [[nodiscard]] std::size_t size() const { return inputs_.size(); }
  [[nodiscard]] bool has(std::size_t i) const { return i < inputs_.size() && inputs_[i].kind != Value::Kind::none; }
  [[nodiscard]] const Value& in(std::size_t i) const { return inputs_[i]; }
  [[nodiscard]] Result<Tensor> tensor(std::size_t i) const;  // input i, which must be a tensor
  // Runs a graph of the node's attributes; it sees the values around the node. Counted against the run's bounds.
  virtual Result<std::vector<Value>> run(const Graph& body, std::span<const Value> inputs) = 0;

 private:
  const Node& node_;
  std::span<const Value> inputs_;
  std::int64_t opset_;
};

using EagerFn = Result<std::vector<Value>> (*)(EagerCall&);
using InferFn = Status (*)(InferCall&);
using MakeKernelFn = Result<KernelPtr> (*)(const KernelCall&);
using GradientFn = Status (*)(GradientCall&);

// How the plan may place output 0.
enum class Placement : std::uint8_t {
  own,       // in memory of its own
  in_place,  // may overwrite any dying input of its size and dtype: the kernel reads element i before it writes element i
  alias,     // is input 0 with another shape: no launch at all
};

struct OpDef {
  std::string_view domain;
  std::string_view type;
  int inputs_min, inputs_max;  // kVariadic: no upper bound
  int outputs_min, outputs_max;
  InferFn infer;
  MakeKernelFn reference;
  GradientFn gradient = nullptr;  // null: gradients stop here (integers, comparisons, preprocessing of raw columns)
  Placement placement = Placement::own;
  std::uint32_t shape_only = 0;  // bit i: input i is read for its shape only, its bytes need not exist
  EagerFn eager = nullptr;       // instead of infer and reference: see EagerCall
};
constexpr OpDef eager_op(std::string_view domain, std::string_view type, int inputs_min, int inputs_max, int outputs_min, int outputs_max,
                         EagerFn eager) {
  return {domain, type, inputs_min, inputs_max, outputs_min, outputs_max, nullptr, nullptr, nullptr, Placement::own, 0, eager};
}

// The op's reference kernel. Where it is written for wider types only (f32 for f16, f64 for f32, i32 for i8...), the operands are
// widened before and the results narrowed after it.
Result<KernelPtr> make_reference(const OpDef& op, const KernelCall& call);
constexpr int kVariadic = -1;

std::span<const OpDef* const> all_ops();
const OpDef* find_op(std::string_view domain, std::string_view type);  // null: unknown; "ai.onnx" and "" are one domain

// Types of every value of a graph for given input shapes (in the order of graph.inputs). With `constants`, also values that are
// known then (folded through small shape arithmetic).
struct TypedGraph {
  std::vector<std::size_t> order;
  std::map<std::string, ValueType, std::less<>> types;
  std::vector<std::unique_ptr<Tensor>> constants;  // what ValueType::constant of folded values points to
};
Result<TypedGraph> infer_types(const Graph& graph, std::span<const Shape> input_shapes, std::size_t fold_bytes_max = 1U << 16);
// The same with every unknown size set to `size`.
Result<TypedGraph> infer_types(const Graph& graph, std::int64_t size);
// For who wants what holds for every batch, ranks and which sizes differ: a size that the graph accepts and that hardly another equals.
Result<TypedGraph> infer_types(const Graph& graph);

// One more step of either: the types of a node's outputs (errors name the node), and its value where that is known already.
Result<std::vector<ValueType>> infer_node(const Node& node, std::span<const ValueType> inputs, std::int64_t opset);
// The node's outputs, of the types that infer_node gave, computed now: inputs carry their values as constants.
Result<std::vector<Tensor>> evaluate_node(const Node& node, std::span<const ValueType> inputs, std::int64_t opset,
                                          std::span<const ValueType> outputs);
Status run_kernel(const Kernel& kernel, std::span<const Tensor> inputs, std::span<Tensor> outputs);

// Runs one node by its reference kernel: tests, folding. Absent inputs are empty tensors.
Result<std::vector<Tensor>> run_reference(const Node& node, std::span<const Tensor> inputs, std::int64_t opset = kOpset);

// --- differentiation ------------------------------------------------------------------------------------------------------

// Appends to `graph` the nodes that compute d(sum of target)/d(w) for each w of `wrt` (initialisers, inputs or inner values) and
// returns the gradients' names; "" where target does not depend on w. `seed` names the gradient of target ("" : ones).
Result<std::vector<std::string>> append_gradients(Graph& graph, std::string_view target, std::span<const std::string> wrt,
                                                  std::string_view seed = {});

// Turns initialisers into graph inputs of fixed shape (appended in this order): parameters of a training graph live in the
// caller's memory and are passed as views. Returns their values.
Result<std::vector<Tensor>> promote_to_inputs(Graph& graph, std::span<const std::string> names);

}  // namespace falaj::kernels
