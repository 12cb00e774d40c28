#include "kernels/train/recompute.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "kernels/ops.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

// A value that is computed again is computed from kept ones, or by way of at most so many others that are computed again.
constexpr int kDepthMax = 2;

class Recompute {
 public:
  Recompute(Graph& graph, std::size_t forward) : graph_(graph), forward_(forward) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      const Node& node = graph.nodes[i];
      const OpDef* op = find_op(node.domain, node.op);
      for (std::size_t k = 0; k < node.inputs.size(); ++k) {
        const bool only_shape = op != nullptr && k < 32 && ((op->shape_only >> k) & 1U) != 0;
        if (!node.inputs[k].empty() && !only_shape) readers_[node.inputs[k]].push_back(i);
      }
      for (const auto& name : node.outputs) makers_[name] = i;
    }
  }

  void run() {
    for (std::size_t i = 0; i < forward_; ++i) choose(i);
    if (again_.empty()) return;
    // What is needed to compute a value again is there by then; needs point to earlier ones.
    for (std::size_t i = again_.size(); i-- > 0;) {
      for (const std::size_t need : again_[i].needs) again_[need].before = std::min(again_[need].before, again_[i].before);
    }
    rewrite();
  }

 private:
  struct Again {
    std::string value;
    std::vector<std::size_t> nodes;  // that make it, in their order
    std::vector<std::size_t> needs;  // of again_
    std::size_t before = 0;          // the node that it must be there for
    int depth = 0;
  };

  [[nodiscard]] std::size_t first_behind(const std::string& value) const {
    const auto found = readers_.find(value);
    if (found == readers_.end()) return graph_.nodes.size();
    const auto at = std::ranges::find_if(found->second, [&](std::size_t i) { return i >= forward_; });
    return at == found->second.end() ? graph_.nodes.size() : *at;
  }
  // Weights and inputs are always there, and so is what the backward pass reads and nothing makes anew.
  [[nodiscard]] bool is_kept(const std::string& value) const {
    return !makers_.contains(value) || (first_behind(value) < graph_.nodes.size() && !index_.contains(value));
  }

  void choose(std::size_t at) {
    const Node& node = graph_.nodes[at];
    if (node.op != "Relu" || graph_.find_output(node.outputs[0]) != nullptr) return;
    Again again{node.outputs[0], {}, {}, first_behind(node.outputs[0])};
    if (again.before == graph_.nodes.size() || !trace(node.inputs[0], again) || again.nodes.empty() || again.depth > kDepthMax) return;
    again.nodes.push_back(at);
    index_[again.value] = again_.size();
    again_.push_back(std::move(again));
  }

  // Whether the value is there, or can be made by cheap nodes, which are noted.
  bool trace(const std::string& value, Again& again) const {
    if (is_kept(value)) return true;
    if (const auto found = index_.find(value); found != index_.end()) {
      again.needs.push_back(found->second);
      again.depth = std::max(again.depth, again_[found->second].depth + 1);
      return true;
    }
    const std::size_t maker = makers_.find(value)->second;
    const Node& node = graph_.nodes[maker];
    const bool sum = node.op == "Add" && node.domain == kOnnx;
    const bool norm = node.op == "BatchNormalization" && node.domain == kFalaj;
    if ((!sum && !norm) || readers_.find(value)->second.size() != 1 || graph_.find_output(value) != nullptr) return false;
    for (const std::string& input : node.inputs) {
      if (!(norm ? is_kept(input) : trace(input, again))) return false;
    }
    again.nodes.push_back(maker);
    return true;
  }

  void rewrite() {
    std::map<std::string, std::string, std::less<>> names;  // of values to what they are called the second time
    std::multimap<std::size_t, std::size_t> due;            // by node: of again_, in the order of the forward pass
    for (std::size_t i = 0; i < again_.size(); ++i) {
      for (const std::size_t at : again_[i].nodes) {
        const std::string& value = graph_.nodes[at].outputs[0];
        names[value] = graph_.fresh(value + "/again");
      }
      due.emplace(again_[i].before, i);
    }
    const auto renamed = [&](Node& node, const auto& reads) {
      for (std::size_t k = 0; k < node.inputs.size(); ++k) {
        const auto found = names.find(node.inputs[k]);
        if (found != names.end() && reads(k)) node.inputs[k] = found->second;
      }
    };
    std::vector<Node> nodes;
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      const auto [first, last] = due.equal_range(i);
      for (auto it = first; it != last; ++it) {
        for (const std::size_t at : again_[it->second].nodes) {
          Node node = graph_.nodes[at];
          node.name += "/again";
          node.outputs = {names.find(node.outputs[0])->second};
          renamed(node, [](std::size_t) { return true; });
          nodes.push_back(std::move(node));
        }
      }
      Node node = graph_.nodes[i];
      const OpDef& op = *find_op(node.domain, node.op);
      if (i >= forward_) renamed(node, [&](std::size_t k) { return k >= 32 || ((op.shape_only >> k) & 1U) == 0; });
      nodes.push_back(std::move(node));
    }
    graph_.nodes = std::move(nodes);
  }

  Graph& graph_;
  std::size_t forward_;
  std::map<std::string, std::vector<std::size_t>, std::less<>> readers_;  // of bytes, in the order of nodes
  std::map<std::string, std::size_t, std::less<>> makers_;
  std::vector<Again> again_;  // in the order of the forward pass
  std::map<std::string, std::size_t, std::less<>> index_;
};

}  // namespace

void recompute(Graph& graph, std::size_t forward) { Recompute(graph, forward).run(); }

}  // namespace falaj::kernels
