// Tree ensembles of ai.onnx.ml: TreeEnsembleRegressor and TreeEnsembleClassifier as skl2onnx and onnxmltools write them, and the newer
// TreeEnsemble; Binarizer.
#include "kernels/ops/tree.hpp"

#include <map>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

Result<TreeMode> mode_of(std::string_view text) {
  constexpr std::pair<std::string_view, TreeMode> kModes[] = {
      {"LEAF", TreeMode::leaf},    {"BRANCH_LEQ", TreeMode::leq}, {"BRANCH_LT", TreeMode::lt},  {"BRANCH_GTE", TreeMode::gte},
      {"BRANCH_GT", TreeMode::gt}, {"BRANCH_EQ", TreeMode::eq},   {"BRANCH_NEQ", TreeMode::neq}};
  for (const auto& [name, mode] : kModes) {
    if (name == text) return mode;
  }
  return invalid(format("a tree node has the mode '{}'", text));
}
Result<TreeAggregate> aggregate_of(std::string_view text) {
  if (text == "SUM") return TreeAggregate::sum;
  if (text == "AVERAGE") return TreeAggregate::average;
  if (text == "MIN") return TreeAggregate::min;
  if (text == "MAX") return TreeAggregate::max;
  return invalid(format("attribute 'aggregate_function' is '{}'", text));
}

// Every branch leads on to nodes that no other branch leads to: then each walk ends.
Status check_trees(const Ensemble& e) {
  std::vector<std::uint8_t> reached(e.nodes.size(), 0);
  auto reach = [&](std::size_t at) -> Status {
    if (at >= e.nodes.size()) return invalid("a branch leads to no node");
    if (reached[at]++ != 0) return invalid(format("tree node {} is reached on two ways: the nodes form no trees", at));
    return {};
  };
  for (std::size_t root : e.roots) FALAJ_TRY(reach(root));
  for (const TreeNode& node : e.nodes) {
    if (node.mode == TreeMode::leaf) continue;
    FALAJ_TRY(reach(node.yes));
    FALAJ_TRY(reach(node.no));
    if (node.feature < 0 || node.feature >= e.features) return invalid(format("a tree reads column {} of {}", node.feature, e.features));
  }
  for (const LeafWeight& w : e.weights) {
    if (w.target < 0 || w.target >= e.targets) return invalid(format("a leaf has a weight for target {} of {}", w.target, e.targets));
  }
  return {};
}

Status set_rows(const OpCall& call, Ensemble& e) {
  FALAJ_TRY(check_number(call, 0));
  const Shape& in = call.in(0).shape;
  if (in.rank() != 1 && in.rank() != 2) return invalid(format("the input {} must be [features] or [rows, features]", to_string(in)));
  e.rows = in.rank() == 1 ? 1 : in[0];
  e.features = in.back();
  return {};
}

// A list of floats, or a tensor of doubles in its place.
Result<std::vector<double>> reals(const Node& node, const std::string& name, bool needed) {
  if (const Tensor* tensor = attr_tensor(node, name + "_as_tensor"); tensor != nullptr) {
    std::vector<double> values(tensor->elements());
    if (!is_float(tensor->dtype())) return invalid(format("attribute '{}_as_tensor' must be floats", name));
    to_doubles(tensor->dtype(), tensor->raw(), values.data(), tensor->shape().elements());
    return values;
  }
  if (!needed && !node.attributes.contains(name)) return std::vector<double>{};
  FALAJ_ASSIGN(auto list, attr_floats(node, name));
  return std::vector<double>(list.begin(), list.end());
}

// The attributes nodes_*; `stem` is "target" or "class".
Result<Ensemble> old_ensemble(const OpCall& call, const std::string& stem, std::int64_t targets) {
  const Node& node = call.node;
  Ensemble e;
  FALAJ_TRY(set_rows(call, e));
  e.targets = targets;
  FALAJ_ASSIGN(auto trees, attr_ints(node, "nodes_treeids"));
  FALAJ_ASSIGN(auto ids, attr_ints(node, "nodes_nodeids"));
  FALAJ_ASSIGN(auto features, attr_ints(node, "nodes_featureids"));
  FALAJ_ASSIGN(auto splits, reals(node, "nodes_values", true));
  FALAJ_ASSIGN(auto modes, attr_strings(node, "nodes_modes"));
  FALAJ_ASSIGN(auto yes, attr_ints(node, "nodes_truenodeids"));
  FALAJ_ASSIGN(auto no, attr_ints(node, "nodes_falsenodeids"));
  FALAJ_ASSIGN(auto missing, attr_ints(node, "nodes_missing_value_tracks_true", std::vector<std::int64_t>(trees.size(), 0)));
  std::size_t n = trees.size();
  if (missing.empty()) missing.assign(n, 0);
  if (ids.size() != n || features.size() != n || splits.size() != n || modes.size() != n || yes.size() != n || no.size() != n ||
      missing.size() != n)
    return invalid("the attributes nodes_* differ in length");
  std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> index;
  for (std::size_t i = 0; i < n; ++i) {
    if (!index.emplace(std::pair{trees[i], ids[i]}, i).second)
      return invalid(format("node {} of tree {} is given twice", ids[i], trees[i]));
    if (i == 0 || trees[i] != trees[i - 1]) e.roots.push_back(i);
  }
  auto find = [&](std::int64_t tree, std::int64_t id) {
    auto found = index.find({tree, id});
    return found == index.end() ? n : found->second;
  };
  for (std::size_t i = 0; i < n; ++i) {
    TreeNode t;
    FALAJ_ASSIGN(t.mode, mode_of(modes[i]));
    t.feature = features[i];
    t.split = splits[i];
    t.missing_true = missing[i] != 0;
    if (t.mode != TreeMode::leaf) {
      t.yes = find(trees[i], yes[i]);
      t.no = find(trees[i], no[i]);
    }
    e.nodes.push_back(std::move(t));
  }
  FALAJ_ASSIGN(auto w_trees, attr_ints(node, stem + "_treeids"));
  FALAJ_ASSIGN(auto w_nodes, attr_ints(node, stem + "_nodeids"));
  FALAJ_ASSIGN(auto w_ids, attr_ints(node, stem + "_ids"));
  FALAJ_ASSIGN(auto w_values, reals(node, stem + "_weights", true));
  if (w_nodes.size() != w_trees.size() || w_ids.size() != w_trees.size() || w_values.size() != w_trees.size())
    return invalid(format("the attributes {}_* differ in length", stem));
  std::vector<std::vector<LeafWeight>> of_node(n);
  for (std::size_t i = 0; i < w_trees.size(); ++i) {
    std::size_t at = find(w_trees[i], w_nodes[i]);
    if (at == n) return invalid(format("a weight belongs to node {} of tree {}, which is not there", w_nodes[i], w_trees[i]));
    of_node[at].push_back({w_ids[i], w_values[i]});
  }
  for (std::size_t i = 0; i < n; ++i) {
    e.nodes[i].first = e.weights.size();
    e.nodes[i].count = of_node[i].size();
    e.weights.insert(e.weights.end(), of_node[i].begin(), of_node[i].end());
  }
  FALAJ_ASSIGN(e.base, reals(node, "base_values", false));
  if (e.base.size() > 1 && static_cast<std::int64_t>(e.base.size()) != targets) return invalid("base_values does not fit the targets");
  FALAJ_ASSIGN(auto aggregate, attr_string(node, "aggregate_function", "SUM"));
  FALAJ_ASSIGN(e.aggregate, aggregate_of(aggregate));
  FALAJ_ASSIGN(e.post, post_transform(node));
  FALAJ_TRY(check_trees(e));
  return e;
}

template <class T>
RowScores plain_scores(const Ensemble& e, const T* x) {
  return [&e, x, seen = std::vector<bool>(static_cast<std::size_t>(e.targets))](std::int64_t row, std::vector<double>& out) mutable {
    e.scores(x + row * e.features, out, seen);
  };
}

Result<Ensemble> regressor(const OpCall& call) {
  FALAJ_ASSIGN(auto targets, attr_int(call.node, "n_targets", 1));
  if (targets < 1 || targets > (1 << 24)) return invalid(format("attribute 'n_targets' is {}", targets));
  return old_ensemble(call, "target", targets);
}
Status infer_regressor(InferCall& call) {
  FALAJ_ASSIGN(auto e, regressor(call));
  return set_output(call, 0, DType::f32, {e.rows, e.targets});
}
Result<KernelPtr> make_regressor(const KernelCall& c) {
  FALAJ_ASSIGN(auto e, regressor(c));
  return dispatch<float, double, std::int64_t, std::int32_t>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([e](const Io& io) { write_scores(e, plain_scores(e, io.input<T>(0)), io.output<float>(0)); });
  });
}

// --- TreeEnsembleClassifier: labels and scores ---------------------------------------------------------------------------------------

Result<Classifier> classifier(const OpCall& call) {
  Classifier c;
  FALAJ_ASSIGN(c.labels, class_labels(call.node, "classlabels_int64s"));
  auto classes = static_cast<std::int64_t>(c.labels.elements());
  if (classes < 1) return invalid("there are no classes");
  FALAJ_ASSIGN(c.trees, old_ensemble(call, "class", classes));
  FALAJ_ASSIGN(auto ids, attr_ints(call.node, "class_ids"));
  c.binary = classes == 2 && std::ranges::all_of(ids, [&](auto id) { return id == ids.front(); });
  for (const LeafWeight& w : c.trees.weights) c.positive = c.positive && w.value >= 0;
  return c;
}
Status infer_classifier(InferCall& call) {
  FALAJ_ASSIGN(auto c, classifier(call));
  FALAJ_TRY(set_output(call, 0, c.labels.dtype(), {c.trees.rows}));
  return set_output(call, 1, DType::f32, {c.trees.rows, c.trees.targets});
}
// With weights for one class only, its score decides: a probability against 1/2, a margin against 0.
std::int64_t decide_binary(const Classifier& c, std::vector<double>& sums) {
  auto given = static_cast<std::size_t>(c.trees.weights.empty() ? 1 : c.trees.weights[0].target);
  double score = c.trees.weights.empty() ? 0 : sums[given];
  if (c.trees.base.size() == 2) score = sums[given];
  bool yes = c.positive ? score > 0.5 : score > 0;
  if (c.positive) {
    sums = {1 - score, score};
  } else if (c.trees.post == PostTransform::logistic) {
    double p = 1 / (1 + std::exp(-score));
    sums = {1 - p, p};
  } else {
    sums = {-score, score};
  }
  return yes ? 1 : 0;
}
Result<KernelPtr> make_classifier(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, classifier(call));
  return dispatch<float, double, std::int64_t, std::int32_t>(call.in(0).dtype, [&]<class T>() {
    return make_kernel(
        [c, two = call.outputs.size() > 1](const Io& io) { write_classes(c, plain_scores(c.trees, io.input<T>(0)), io, two); });
  });
}

// --- TreeEnsemble (ai.onnx.ml 5): one node table, leaves apart -----------------------------------------------------------------------

Status read_roots_and_ends(const Node& node, std::size_t n, Ensemble& e) {
  FALAJ_ASSIGN(auto roots, attr_ints(node, "tree_roots"));
  // A tree of one leaf is written as a node both branches of which lead to the same leaf.
  for (auto root : roots) {
    if (root < 0 || static_cast<std::size_t>(root) >= n) return invalid("a tree's root is no node");
    e.roots.push_back(static_cast<std::size_t>(root));
  }
  FALAJ_ASSIGN(auto aggregate, attr_int(node, "aggregate_function", 1));
  constexpr std::array kAggregates = {TreeAggregate::average, TreeAggregate::sum, TreeAggregate::min, TreeAggregate::max};
  if (aggregate < 0 || aggregate > 3) return invalid(format("attribute 'aggregate_function' is {}", aggregate));
  e.aggregate = kAggregates[static_cast<std::size_t>(aggregate)];
  FALAJ_ASSIGN(auto post, attr_int(node, "post_transform", 0));
  constexpr std::array kPosts = {PostTransform::none, PostTransform::softmax, PostTransform::logistic, PostTransform::softmax_zero,
                                 PostTransform::probit};
  if (post < 0 || post > 4) return invalid(format("attribute 'post_transform' is {}", post));
  e.post = kPosts[static_cast<std::size_t>(post)];
  return {};
}
Result<Ensemble> new_ensemble(const OpCall& call) {
  const Node& node = call.node;
  Ensemble e;
  FALAJ_TRY(set_rows(call, e));
  FALAJ_ASSIGN(e.targets, attr_int(node, "n_targets", 1));
  if (e.targets < 1 || e.targets > (1 << 24)) return invalid(format("attribute 'n_targets' is {}", e.targets));
  FALAJ_ASSIGN(auto features, attr_ints(node, "nodes_featureids"));
  FALAJ_ASSIGN(auto yes, attr_ints(node, "nodes_truenodeids"));
  FALAJ_ASSIGN(auto no, attr_ints(node, "nodes_falsenodeids"));
  FALAJ_ASSIGN(auto yes_leaf, attr_ints(node, "nodes_trueleafs"));
  FALAJ_ASSIGN(auto no_leaf, attr_ints(node, "nodes_falseleafs"));
  FALAJ_ASSIGN(auto missing, attr_ints(node, "nodes_missing_value_tracks_true", std::vector<std::int64_t>(features.size(), 0)));
  FALAJ_ASSIGN(auto targets, attr_ints(node, "leaf_targetids"));
  const Tensor* modes = attr_tensor(node, "nodes_modes");
  const Tensor* splits = attr_tensor(node, "nodes_splits");
  const Tensor* weights = attr_tensor(node, "leaf_weights");
  const Tensor* members = attr_tensor(node, "membership_values");
  std::size_t n = features.size();
  bool fits = modes != nullptr && modes->dtype() == DType::u8 && modes->elements() == n && splits != nullptr && is_float(splits->dtype()) &&
              splits->elements() == n && weights != nullptr && is_float(weights->dtype()) && weights->elements() == targets.size() &&
              yes.size() == n && no.size() == n && yes_leaf.size() == n && no_leaf.size() == n && missing.size() == n;
  if (!fits) return invalid("the attributes of the nodes or leaves differ in length, or have a wrong type");
  Tensor split = converted(*splits, DType::f64);
  Tensor weight = converted(*weights, DType::f64);
  Tensor member = members == nullptr ? Tensor(DType::f32, {0}) : converted(*members, DType::f32);
  std::size_t next_member = 0;
  // Leaves come behind the nodes, one for each branch that ends.
  for (std::size_t i = 0; i < n; ++i) {
    TreeNode t;
    std::uint8_t mode = modes->data<std::uint8_t>()[i];
    if (mode > 6) return invalid(format("a tree node has the mode {}", mode));
    t.mode = static_cast<TreeMode>(mode + 1);
    t.feature = features[i];
    t.split = split.data<double>()[i];
    t.missing_true = missing[i] != 0;
    if (t.mode == TreeMode::member) {
      for (; next_member < member.elements() && !std::isnan(member.data<float>()[next_member]); ++next_member)
        t.members.push_back(member.data<float>()[next_member]);
      ++next_member;
    }
    e.nodes.push_back(std::move(t));
  }
  auto branch = [&](std::int64_t to, bool leaf) -> Result<std::size_t> {
    if (to < 0 || static_cast<std::size_t>(to) >= (leaf ? targets.size() : n)) return invalid("a branch leads to no node");
    if (!leaf) return static_cast<std::size_t>(to);
    TreeNode t;
    t.first = e.weights.size();
    t.count = 1;
    e.weights.push_back({targets[static_cast<std::size_t>(to)], weight.data<double>()[static_cast<std::size_t>(to)]});
    e.nodes.push_back(std::move(t));
    return e.nodes.size() - 1;
  };
  for (std::size_t i = 0; i < n; ++i) {
    FALAJ_ASSIGN(std::size_t to_yes, branch(yes[i], yes_leaf[i] != 0));
    FALAJ_ASSIGN(std::size_t to_no, branch(no[i], no_leaf[i] != 0));
    e.nodes[i].yes = to_yes;
    e.nodes[i].no = to_no;
  }
  FALAJ_TRY(read_roots_and_ends(node, n, e));
  FALAJ_TRY(check_trees(e));
  return e;
}
Status infer_trees(InferCall& call) {
  FALAJ_ASSIGN(auto e, new_ensemble(call));
  return set_output(call, 0, call.in(0).dtype, {e.rows, e.targets});
}
Result<KernelPtr> make_trees(const KernelCall& c) {
  FALAJ_ASSIGN(auto e, new_ensemble(c));
  return dispatch<float, double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([e](const Io& io) {
      std::vector<float> scores(static_cast<std::size_t>(e.rows * e.targets));
      write_scores(e, plain_scores(e, io.input<T>(0)), scores.data());
      std::ranges::transform(scores, io.output<T>(0), [](float v) { return static_cast<T>(v); });
    });
  });
}

// --- Binarizer --------------------------------------------------------------------------------------------------------------

Result<KernelPtr> make_binarizer(const KernelCall& c) {
  FALAJ_ASSIGN(double threshold, attr_float(c.node, "threshold", 0.0));
  return dispatch<double, std::int64_t>(c.in(0).dtype, [&]<class T>() {
    return unary_kernel<T>(c, [threshold](T x) -> T { return static_cast<double>(x) > threshold ? T{1} : T{0}; });
  });
}

constexpr OpDef kOps[] = {
    {kOnnxMl, "TreeEnsembleRegressor", 1, 1, 1, 1, infer_regressor, make_regressor},
    {kOnnxMl, "TreeEnsembleClassifier", 1, 1, 1, 2, infer_classifier, make_classifier},
    {kOnnxMl, "TreeEnsemble", 1, 1, 1, 1, infer_trees, make_trees},
    {kOnnxMl, "Binarizer", 1, 1, 1, 1, infer_numeric, make_binarizer},
};

}  // namespace

std::span<const OpDef> tree_ops() { return kOps; }

// Scores of all rows, after base values; then as floats through the post transform.
void write_scores(const Ensemble& e, const RowScores& scores, float* y) {
  std::vector<double> sums(static_cast<std::size_t>(e.targets));
  for (std::int64_t r = 0; r < e.rows; ++r) {
    scores(r, sums);
    for (std::size_t t = 0; t < sums.size(); ++t) y[r * e.targets + static_cast<std::int64_t>(t)] = static_cast<float>(sums[t]);
    apply(e.post, y + r * e.targets, e.targets);
  }
}

void write_classes(const Classifier& c, const RowScores& row_scores, const Io& io, bool two) {
  const Ensemble& e = c.trees;
  std::vector<double> sums(static_cast<std::size_t>(e.targets));
  std::vector<float> scores(sums.size());
  for (std::int64_t r = 0; r < e.rows; ++r) {
    row_scores(r, sums);
    std::int64_t best = 0;
    if (c.binary) {
      best = decide_binary(c, sums);
    } else {
      best = std::ranges::max_element(sums) - sums.begin();
    }
    std::ranges::transform(sums, scores.begin(), [](double v) { return static_cast<float>(v); });
    if (!c.binary) apply(e.post, scores.data(), e.targets);
    if (io.out[0] != nullptr) {
      if (c.labels.dtype() == DType::string) {
        io.output<std::string>(0)[r] = c.labels.data<std::string>()[static_cast<std::size_t>(best)];
      } else {
        io.output<std::int64_t>(0)[r] = c.labels.data<std::int64_t>()[static_cast<std::size_t>(best)];
      }
    }
    if (two && io.out[1] != nullptr) std::ranges::copy(scores, io.output<float>(1) + r * e.targets);
  }
}

Result<Ensemble> scoring_trees(const OpCall& call) { return call.node.op == "TreeEnsemble" ? new_ensemble(call) : regressor(call); }
Result<Classifier> classifying_trees(const OpCall& call) { return classifier(call); }

}  // namespace falaj::kernels
