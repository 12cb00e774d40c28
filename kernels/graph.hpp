// A model as data: nodes that name their inputs and outputs, constants (initialisers), typed inputs and outputs, metadata.
// A Graph is a value: it copies (tensors share bytes), compares by nothing, and knows nothing of execution. What runs is a
// Compiled (plan.hpp). Training graphs are Graphs too.
//
// Invariants are not kept by construction but checked by validate(): every name is defined exactly once, nothing dangles, no
// cycle, every op is known, sizes are bounded. compile() and import_onnx() call it.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/tensor.hpp"
#include "runtime/base/bytes.hpp"

namespace falaj::kernels {

inline constexpr std::string_view kOnnx = "";  // the domain ai.onnx
inline constexpr std::string_view kOnnxMl = "ai.onnx.ml";
inline constexpr std::string_view kOnnxTraining = "ai.onnx.preview.training";
inline constexpr std::string_view kFalaj = "ai.falaj";  // ours: gradients, losses, fused ops; never exported
constexpr std::int64_t kOpset = 17;                     // what graphs built here declare
constexpr std::int64_t kOpsetMin = 6;                   // what an imported model must at least declare; tested from 13 on
constexpr std::int64_t kOpsetMl = 3;

constexpr std::size_t kNodesMax = 1U << 18;
constexpr std::size_t kNameBytesMax = 4096;

struct Graph;
using Subgraph = std::shared_ptr<const Graph>;  // the branch of an If, the body of a Loop or a Scan
using Attribute = std::variant<std::int64_t, float, std::string, std::vector<std::int64_t>, std::vector<float>, std::vector<std::string>,
                               Tensor, Subgraph>;
using Attributes = std::map<std::string, Attribute, std::less<>>;

struct Node {
  std::string op;                    // "Gemm"
  std::string domain;                // "" is ai.onnx
  std::string name;                  // for people; may be empty
  std::vector<std::string> inputs;   // "" is an optional input that is absent
  std::vector<std::string> outputs;  // "" is an optional output that nobody wants
  Attributes attributes;
  std::vector<std::string> captures = {};  // values of the enclosing graphs that the attributes' graphs read
};

enum class ValueKind : std::uint8_t { tensor, sequence, optional };  // of an optional or a sequence: `dtype` is that of the tensors in it

// The type of a graph's input or output. Unknown sizes are -1 in `shape`; `symbols` names them ("N"; "" is anonymous), equal
// names are equal sizes. Empty symbols: no names.
struct ValueInfo {
  std::string name;
  DType dtype = DType::undefined;
  Shape shape;
  std::vector<std::string> symbols = {};
  bool has_shape = true;  // an output may come without
  ValueKind kind = ValueKind::tensor;
};

struct Graph {
  std::string name;
  std::vector<ValueInfo> inputs;  // initialisers are not listed here
  std::vector<ValueInfo> outputs;
  std::vector<Node> nodes;  // any order; imported ones keep the file's
  std::map<std::string, Tensor, std::less<>> initializers;
  std::map<std::string, std::string, std::less<>> metadata;
  std::map<std::string, std::int64_t, std::less<>> opsets = {{"", kOpset}, {"ai.onnx.ml", kOpsetMl}};
  std::shared_ptr<const ByteView> origin;  // the ModelProto this was imported from: export changes only initialisers and metadata of it

  // --- building ---
  ValueInfo& add_input(std::string_view input, DType dtype, const Shape& shape, std::string_view batch_symbol = "N");  // -1 gets the symbol
  ValueInfo& add_output(std::string_view output, DType dtype, const Shape& shape, std::string_view batch_symbol = "N");
  std::string add_initializer(std::string_view initializer, Tensor value);
  // Appends a node and returns the name of its first output. Names that are not given are made fresh from `op`.
  std::string add(std::string_view op, std::vector<std::string> node_inputs, Attributes attributes = {}, std::string_view output = {});
  std::string add(std::string_view domain, std::string_view op, std::vector<std::string> node_inputs, Attributes attributes = {},
                  std::string_view output = {});
  Node& add_node(Node node);
  std::string fresh(std::string_view stem);  // a value name not yet used in this graph: stem, stem_1, ...

  [[nodiscard]] std::int64_t opset(std::string_view domain) const;  // 0: not imported
  [[nodiscard]] const ValueInfo* find_input(std::string_view input) const;
  [[nodiscard]] const ValueInfo* find_output(std::string_view output) const;

 private:
  std::map<std::string, std::uint64_t, std::less<>> next_;  // suffix of fresh names, for each stem
  std::set<std::string, std::less<>> taken_;
  bool collected_ = false;
};

// Where a node is, for messages: node 12 'fc1' (Gemm).
std::string describe(const Graph& graph, std::size_t node);
std::string describe(const Node& node);

// Names, ops, arity, bounds and cycles; each error names the node or value and the remedy. Graphs in attributes are validated too.
Status validate(const Graph& graph);
constexpr int kSubgraphDepthMax = 8;
// What the graph and the graphs in it read from outside.
std::vector<std::string> free_names(const Graph& graph);

// An order in which every node comes after what it reads; stable (file order where that is one). The error names a cycle.
Result<std::vector<std::size_t>> topological_order(const Graph& graph);

// Attribute readers: the value, the fallback when absent, or an error when it has another type.
Result<std::int64_t> attr_int(const Node& node, std::string_view name, std::optional<std::int64_t> fallback = {});
Result<double> attr_float(const Node& node, std::string_view name, std::optional<double> fallback = {});
Result<std::string> attr_string(const Node& node, std::string_view name, std::optional<std::string> fallback = {});
Result<std::vector<std::int64_t>> attr_ints(const Node& node, std::string_view name,
                                            std::optional<std::vector<std::int64_t>> fallback = {});
Result<std::vector<float>> attr_floats(const Node& node, std::string_view name, std::optional<std::vector<float>> fallback = {});
Result<std::vector<std::string>> attr_strings(const Node& node, std::string_view name,
                                              std::optional<std::vector<std::string>> fallback = {});
const Tensor* attr_tensor(const Node& node, std::string_view name);  // null: absent or of another type
Result<Subgraph> attr_graph(const Node& node, std::string_view name);

}  // namespace falaj::kernels
