#include "kernels/trees/export.hpp"

#include <limits>
#include <map>
#include <numeric>

namespace falaj::kernels::trees {
namespace {

using Ints = std::vector<std::int64_t>;
using Floats = std::vector<float>;

// A set of a column's categories and its complement are one feature: the one without category 0 (missing, rare, unknown).
struct Membership {
  BinSet set;
  bool turned = false;  // it was the complement
};
Membership membership(const ColumnBins& bins, const BinSet& left) {
  Membership out{.set = {}, .turned = left.has(0)};
  for (std::size_t b = 0; b < bins.bins(); ++b) {
    if (left.has(b) != out.turned) out.set.add(b);
  }
  return out;
}

class Exporter {
 public:
  Exporter(const Forest& forest, const Preprocessing& fitted, const TargetSpec& target)
      : forest_(forest), fitted_(fitted), target_(target) {}

  Result<Graph> build() {
    graph_.name = std::string(to_string(Family::boosted_trees));
    if (fitted_.columns.size() != forest_.bins.size()) return invalid("the trees were grown on other columns");
    FALAJ_TRY(declare_columns(graph_, fitted_));
    number_features();
    ensemble(features());
    declare_outputs(graph_, target_);
    describe(graph_, Family::boosted_trees, fitted_, target_);
    return std::move(graph_);
  }

 private:
  // Features of the ensemble: first all numeric columns, then the sets of one categorical column after the other.
  void number_features() {
    sets_.resize(forest_.bins.size());
    for (std::size_t i = 0; i < forest_.bins.size(); ++i) {
      if (!forest_.bins[i].categorical) numeric_feature_[i] = static_cast<std::int64_t>(numeric_feature_.size());
    }
    for (const Tree& tree : forest_.trees) {
      for (const TreeNode& node : tree.nodes) {
        const ColumnBins& bins = forest_.bins[node.column];
        if (!bins.categorical) continue;
        const BinSet set = membership(bins, node.goes_left).set;
        auto& known = sets_[node.column];
        known.emplace(set.words, static_cast<std::int64_t>(known.size()));
      }
    }
    auto next = static_cast<std::int64_t>(numeric_feature_.size());
    for (std::size_t i = 0; i < sets_.size(); ++i) {
      first_set_.push_back(next);
      next += static_cast<std::int64_t>(sets_[i].size());
    }
  }

  std::string features() {
    std::vector<std::string> parts;
    for (const auto& [column, feature] : numeric_feature_) parts.push_back(forest_.bins[column].name);
    for (std::size_t i = 0; i < sets_.size(); ++i) {
      if (!sets_[i].empty()) parts.push_back(memberships(i));
    }
    if (parts.empty()) parts.push_back(code_of(0, "float"));  // categories only, and no split of any: something must be there
    if (parts.size() == 1) return parts.front();
    return graph_.add("Concat", std::move(parts), {{"axis", std::int64_t{1}}}, "falaj/features");
  }

  // A category's row in the tables of its column.
  std::string code_of(std::size_t column, const std::string& kind) {
    const ColumnBins& bins = forest_.bins[column];
    std::vector<std::string> keys = bins.vocabulary;
    Ints codes(keys.size());
    std::iota(codes.begin(), codes.end(), std::int64_t{1});
    if (keys.empty()) {  // runtimes want at least one key
      keys.emplace_back();
      codes.push_back(0);
    }
    Attributes attributes{{"keys_strings", std::move(keys)}};
    if (kind == "float") {
      attributes["values_floats"] = Floats(codes.begin(), codes.end());
      attributes["default_float"] = 0.0F;
    } else {
      attributes["values_int64s"] = std::move(codes);
      attributes["default_int64"] = std::int64_t{0};
    }
    return graph_.add(kOnnxMl, "LabelEncoder", {bins.name}, std::move(attributes), "falaj/code/" + bins.name);
  }

  std::string memberships(std::size_t column) {
    const ColumnBins& bins = forest_.bins[column];
    const auto rows = static_cast<std::int64_t>(bins.bins());
    const auto width = static_cast<std::int64_t>(sets_[column].size());
    Tensor table(DType::f32, {rows, width});
    for (const auto& [words, at] : sets_[column]) {
      const BinSet set{words};
      for (std::int64_t b = 0; b < rows; ++b) {
        if (set.has(static_cast<std::size_t>(b))) table.mutable_data<float>()[static_cast<std::size_t>(b * width + at)] = 1;
      }
    }
    const std::string name = graph_.add_initializer("falaj/sets/" + bins.name, std::move(table));
    const std::string taken =
        graph_.add("Gather", {name, code_of(column, "int64")}, Attributes{{"axis", std::int64_t{0}}});  // [N, 1, sets]
    return graph_.add("Flatten", {taken}, {{"axis", std::int64_t{1}}}, "falaj/member/" + bins.name);
  }

  struct Nodes {
    Ints trees, ids, features, yes, no, missing;
    Floats values;
    std::vector<std::string> modes;
    Ints leaf_trees, leaf_nodes, leaf_targets;
    Floats leaf_values;
  };

  // Branch nodes keep their numbers, leaf i comes behind them as nodes + i.
  void add_tree(const Tree& tree, std::int64_t number, std::int64_t target, Nodes& out) const {
    const auto branches = static_cast<std::int64_t>(tree.nodes.size());
    const auto id = [&](std::int32_t to) { return to >= 0 ? std::int64_t{to} : branches + ~to; };
    const auto node = [&](std::int64_t at, std::string mode, std::int64_t feature, float value, std::int64_t yes, std::int64_t no,
                          bool missing) {
      out.trees.push_back(number);
      out.ids.push_back(at);
      out.modes.push_back(std::move(mode));
      out.features.push_back(feature);
      out.values.push_back(value);
      out.yes.push_back(yes);
      out.no.push_back(no);
      out.missing.push_back(missing ? 1 : 0);
    };
    for (std::int64_t i = 0; i < branches; ++i) {
      const TreeNode& from = tree.nodes[static_cast<std::size_t>(i)];
      const ColumnBins& bins = forest_.bins[from.column];
      if (bins.categorical) {
        const Membership member = membership(bins, from.goes_left);
        const std::int64_t feature = first_set_[from.column] + sets_[from.column].at(member.set.words);
        const std::int32_t inside = member.turned ? from.right : from.left;
        const std::int32_t outside = member.turned ? from.left : from.right;
        node(i, "BRANCH_LEQ", feature, 0.5F, id(outside), id(inside), false);
      } else {
        const float edge = from.edge < bins.upper.size() ? bins.upper[from.edge] : std::numeric_limits<float>::infinity();
        node(i, "BRANCH_LEQ", numeric_feature_.at(from.column), edge, id(from.left), id(from.right), from.missing_left);
      }
    }
    for (std::size_t leaf = 0; leaf < tree.leaves.size(); ++leaf) {
      const std::int64_t at = branches + static_cast<std::int64_t>(leaf);
      node(at, "LEAF", 0, 0, 0, 0, false);
      out.leaf_trees.push_back(number);
      out.leaf_nodes.push_back(at);
      out.leaf_targets.push_back(target);
      out.leaf_values.push_back(tree.leaves[leaf]);
    }
  }

  void ensemble(const std::string& input) {
    Nodes nodes;
    const std::size_t outputs = forest_.outputs();
    for (std::size_t t = 0; t < forest_.trees.size(); ++t)
      add_tree(forest_.trees[t], static_cast<std::int64_t>(t), static_cast<std::int64_t>(t % outputs), nodes);
    if (forest_.trees.empty()) add_tree(Tree{.nodes = {}, .leaves = {0.0F}}, 0, 0, nodes);
    graph_.add(kOnnxMl, "TreeEnsembleRegressor", {input},
               {{"nodes_treeids", std::move(nodes.trees)},
                {"nodes_nodeids", std::move(nodes.ids)},
                {"nodes_featureids", std::move(nodes.features)},
                {"nodes_values", std::move(nodes.values)},
                {"nodes_modes", std::move(nodes.modes)},
                {"nodes_truenodeids", std::move(nodes.yes)},
                {"nodes_falsenodeids", std::move(nodes.no)},
                {"nodes_missing_value_tracks_true", std::move(nodes.missing)},
                {"target_treeids", std::move(nodes.leaf_trees)},
                {"target_nodeids", std::move(nodes.leaf_nodes)},
                {"target_ids", std::move(nodes.leaf_targets)},
                {"target_weights", std::move(nodes.leaf_values)},
                {"base_values", forest_.base},
                {"n_targets", static_cast<std::int64_t>(outputs)},
                {"aggregate_function", std::string("SUM")},
                {"post_transform", std::string("NONE")}},
               kLogits);
  }

  const Forest& forest_;
  const Preprocessing& fitted_;
  const TargetSpec& target_;
  Graph graph_;
  std::map<std::size_t, std::int64_t> numeric_feature_;                     // of a column
  std::vector<std::map<std::array<std::uint64_t, 4>, std::int64_t>> sets_;  // of a column, with their numbers
  Ints first_set_;                                                          // feature of a column's set 0
};

}  // namespace

Result<Graph> export_forest(const Forest& forest, const Preprocessing& fitted, const TargetSpec& target) {
  return Exporter(forest, fitted, target).build();
}

}  // namespace falaj::kernels::trees
