#include "kernels/train/forms.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "kernels/convert.hpp"
#include "kernels/train/families.hpp"
#include "kernels/train/json.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

namespace {

std::set<std::string, std::less<>> read_values(const Graph& graph) {
  std::set<std::string, std::less<>> read;
  for (const Node& node : graph.nodes) {
    read.insert(node.inputs.begin(), node.inputs.end());
    read.insert(node.captures.begin(), node.captures.end());
  }
  for (const ValueInfo& output : graph.outputs) read.insert(output.name);
  return read;
}

// A number that the graph holds: an initialiser, or what a Constant makes.
std::optional<double> held_number(const Graph& graph, const std::string& name) {
  const Tensor* value = nullptr;
  if (const auto found = graph.initializers.find(name); found != graph.initializers.end()) value = &found->second;
  for (const Node& node : graph.nodes) {
    if (value == nullptr && node.op == "Constant" && node.outputs[0] == name) value = attr_tensor(node, "value");
  }
  if (value == nullptr || value->elements() != 1 || !is_float(value->dtype())) return std::nullopt;
  double number = 0;
  to_doubles(value->dtype(), value->raw(), &number, 1);
  return number;
}

// Matrices of which a transposed copy could be told from a coincidence.
bool telling(const Tensor& value) {
  if (value.dtype() != DType::f32 || value.shape().rank() != 2 || value.elements() < 2) return false;
  const auto data = value.data<float>();
  return std::ranges::any_of(data, [&](float x) { return x != data[0]; });
}

bool is_transposed(const Tensor& a, const Tensor& b) {
  const std::int64_t rows = a.shape()[0];
  const std::int64_t cols = a.shape()[1];
  if (b.shape() != Shape{cols, rows}) return false;
  const float* x = a.data<float>().data();
  const float* y = b.data<float>().data();
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      if (x[i * cols + j] != y[j * rows + i]) return false;
    }
  }
  return true;
}

void find_ties(TrainableForm& form) {
  Graph& graph = form.graph;
  std::set<std::string> tables;
  std::set<std::string> factors;
  for (const Node& node : graph.nodes) {
    const auto held = [&](std::size_t i) {
      const auto found = graph.initializers.find(node.inputs[i]);
      return found != graph.initializers.end() && telling(found->second);
    };
    if (node.op == "Gather" && held(0)) tables.insert(node.inputs[0]);
    if ((node.op == "MatMul" || node.op == "Gemm") && held(1)) factors.insert(node.inputs[1]);
  }
  for (const std::string& factor : factors) {
    if (tables.contains(factor)) continue;
    for (const std::string& table : tables) {
      if (!is_transposed(graph.initializers.find(table)->second, graph.initializers.find(factor)->second)) continue;
      form.ties.push_back({factor, table});
      graph.initializers.erase(factor);
      graph.add_node({"Transpose", "", factor, {table}, {factor}, {{"perm", std::vector<std::int64_t>{1, 0}}}});
      break;
    }
  }
}

// A product by a transposed matrix of the graph reads it as it lies, and so gets its gradient: exporters that fold no constants write the
// transposition of each Linear's weights as a node.
void read_turned(Graph& graph) {
  std::map<std::string, std::string> turned;
  for (const Node& node : graph.nodes) {
    const bool swaps =
        node.op == "Transpose" &&
        attr_ints(node, "perm", std::vector<std::int64_t>{1, 0}).value_or(std::vector<std::int64_t>{}) == std::vector<std::int64_t>{1, 0};
    const auto found = swaps ? graph.initializers.find(node.inputs[0]) : graph.initializers.end();
    if (found != graph.initializers.end() && found->second.shape().rank() == 2) turned.emplace(node.outputs[0], node.inputs[0]);
  }
  for (Node& node : graph.nodes) {
    if (node.op != "MatMul" || node.domain != kOnnx) continue;
    const auto found = turned.find(node.inputs[1]);
    if (found == turned.end() || turned.contains(node.inputs[0])) continue;
    node.domain = kFalaj;
    node.inputs[1] = found->second;
    node.attributes["transB"] = std::int64_t{1};
  }
}

}  // namespace

Result<TrainableForm> trainable_form(const Graph& graph) {
  TrainableForm form{graph, {}, {}};
  const auto read = read_values(graph);
  for (Node& node : form.graph.nodes) {
    if (!node.domain.empty() || node.inputs.empty()) continue;
    const bool alone = std::all_of(node.outputs.begin() + 1, node.outputs.end(), [&](const auto& name) { return !read.contains(name); });
    if (node.op == "Dropout" && alone) {
      DropoutPlace place{node.outputs[0]};
      if (node.inputs.size() > 1 && !node.inputs[1].empty()) {
        place.share = held_number(graph, node.inputs[1]).value_or(place.share);
      } else {
        FALAJ_ASSIGN(place.share, attr_float(node, "ratio", place.share));
      }
      form.dropouts.push_back(place);
      node.inputs.resize(1);
      node.outputs.resize(1);
    }
    if (node.op == "BatchNormalization" && alone && node.outputs.size() > 1) {
      node.attributes.erase("training_mode");
      node.outputs.resize(1);
    }
  }
  find_ties(form);
  read_turned(form.graph);
  return form;
}

Result<std::vector<DropoutPlace>> dropouts_of_family(const Graph& graph) {
  std::vector<DropoutPlace> places;
  const auto names = graph.metadata.find(metadata::kDropout);
  if (names == graph.metadata.end()) return places;
  FALAJ_ASSIGN(const auto values, read_json_strings(names->second));
  const std::string share = graph.metadata.contains(metadata::kDropoutShare) ? graph.metadata.find(metadata::kDropoutShare)->second : "";
  float dropout = 0;
  std::from_chars(share.data(), share.data() + share.size(), dropout);
  for (const std::string& value : values) places.push_back({value, dropout});
  return places;
}

std::vector<Running> use_batch_statistics(Graph& graph) {
  std::vector<Running> running;
  std::set<std::string> seen;
  for (Node& node : graph.nodes) {
    if (node.op != "BatchNormalization" || !node.domain.empty() || node.inputs.size() != 5) continue;
    const bool held = graph.initializers.contains(node.inputs[3]) && graph.initializers.contains(node.inputs[4]);
    if (!held || !seen.insert(node.inputs[3]).second) continue;
    node.domain = kFalaj;
    node.outputs.resize(1);
    for (const std::size_t i : {3U, 4U}) {
      node.outputs.push_back(graph.fresh(node.inputs[i] + "/next"));
      running.push_back({node.inputs[i], node.outputs.back()});
    }
  }
  return running;
}

Tensor transposed(const Tensor& matrix) {
  const std::int64_t rows = matrix.shape()[0];
  const std::int64_t cols = matrix.shape()[1];
  Tensor out(DType::f32, {cols, rows});
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j)
      out.mutable_data<float>()[static_cast<std::size_t>(j * rows + i)] = matrix.data<float>()[static_cast<std::size_t>(i * cols + j)];
  }
  return out;
}

namespace {

// The first element that is not finite.
std::optional<std::size_t> bad_element(const Tensor& value) {
  if (value.empty() || !is_float(value.dtype())) return std::nullopt;
  std::vector<double> numbers(value.elements());
  to_doubles(value.dtype(), value.raw(), numbers.data(), static_cast<std::int64_t>(numbers.size()));
  const auto found = std::ranges::find_if(numbers, [](double x) { return !std::isfinite(x); });
  if (found == numbers.end()) return std::nullopt;
  return static_cast<std::size_t>(found - numbers.begin());
}

}  // namespace

Result<std::string> first_not_finite(const Graph& graph, std::span<const Tensor> inputs, std::span<const std::uint32_t> rows) {
  FALAJ_ASSIGN(const auto order, topological_order(graph));
  std::map<std::string, Tensor, std::less<>> values(graph.initializers.begin(), graph.initializers.end());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const auto at = bad_element(inputs[i]);
    const Shape& shape = inputs[i].shape();
    const bool by_row =
        !graph.inputs[i].shape.empty() && graph.inputs[i].shape[0] < 0 && shape[0] == static_cast<std::int64_t>(rows.size());
    if (at && by_row)
      return format("input '{}', row {} of the data", graph.inputs[i].name, rows[*at / (inputs[i].elements() / rows.size())]);
    if (at) return format("parameter '{}'", graph.inputs[i].name);
    values[graph.inputs[i].name] = inputs[i];
  }
  for (const std::size_t index : order) {
    const Node& node = graph.nodes[index];
    std::vector<Tensor> operands;
    for (const std::string& name : node.inputs) operands.push_back(name.empty() ? Tensor() : values.find(name)->second);
    FALAJ_ASSIGN(auto results, run_reference(node, operands, graph.opset(node.domain)));
    for (std::size_t k = 0; k < results.size() && k < node.outputs.size(); ++k) {
      if (node.outputs[k].empty()) continue;
      // Masks are infinite by intent: what only passes them on is not where it began.
      const bool inherited = std::ranges::any_of(operands, [](const Tensor& t) { return bad_element(t).has_value(); });
      if (!inherited && bad_element(results[k])) return format("'{}', made by {}", node.outputs[k], describe(node));
      values[node.outputs[k]] = std::move(results[k]);
    }
  }
  return std::string();
}

}  // namespace falaj::kernels
