// Random tree ensembles: both fast kernels give the reference's bits for every comparison, number of rows, and place of a missing value.
#include <gtest/gtest.h>

#include <limits>

#include "kernels/cpu/isa.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;
using Floats = std::vector<float>;
using Strings = std::vector<std::string>;

constexpr std::int64_t kColumns = 5;

// Attributes of random trees, of one leaf up to some dozens.
struct Forest {
  Ints trees, nodes, features, yes, no, missing, leaf_trees, leaf_nodes, leaf_ids;
  Floats splits, leaf_values;
  Strings modes;

  Forest(Random& random, std::string_view mode, bool with_missing, std::int64_t targets, std::int64_t columns = kColumns) {
    for (std::int64_t t = 0; t < 21; ++t) {
      std::int64_t made = 1;
      for (std::int64_t at = 0; at < made; ++at) {
        const bool leaf = made > 60 || (made > at + 1 ? random.chance(0.45) : random.chance(0.1));
        trees.push_back(t);
        nodes.push_back(at);
        features.push_back(static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(columns))));
        splits.push_back(static_cast<float>(random.below(9)) / 4 - 1);  // values meet splits
        modes.emplace_back(leaf ? "LEAF" : mode);
        missing.push_back(with_missing && random.chance(0.5) ? 1 : 0);
        yes.push_back(leaf ? 0 : made);
        no.push_back(leaf ? 0 : made + 1);
        if (!leaf) made += 2;
        for (std::int64_t target = 0; leaf && target < targets; ++target) {
          if (targets > 1 && random.chance(0.5)) continue;
          leaf_trees.push_back(t);
          leaf_nodes.push_back(at);
          leaf_ids.push_back(target);
          leaf_values.push_back(static_cast<float>(random.normal()));
        }
      }
    }
  }
  [[nodiscard]] Attributes attributes(const std::string& stem) const {
    Attributes a = {
        {"nodes_treeids", trees}, {"nodes_nodeids", nodes},   {"nodes_featureids", features}, {"nodes_values", splits},
        {"nodes_modes", modes},   {"nodes_truenodeids", yes}, {"nodes_falsenodeids", no},     {"nodes_missing_value_tracks_true", missing}};
    a[stem + "_treeids"] = leaf_trees;
    a[stem + "_nodeids"] = leaf_nodes;
    a[stem + "_ids"] = leaf_ids;
    a[stem + "_weights"] = leaf_values;
    return a;
  }
};

class Trees : public ::testing::Test {
 protected:
  Trees() : seed_(testing::test_seed()), random_(seed_) { RecordProperty("seed", std::to_string(seed_)); }

  Tensor rows(std::int64_t count) {
    Tensor x(DType::f32, {count, columns_});
    for (float& v : x.mutable_data<float>())
      v = random_.chance(0.1) ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(random_.below(9)) / 4 - 1;
    return x;
  }
  void agree(const Graph& g, const std::string& what) {
    agree(g, what, cpu::has_avx512() ? "trees by masks of leaves" : "flat trees, eight walks");
    const cpu::WithoutAvx512 limit;
    agree(g, what, "flat trees, eight walks");
  }
  void agree(const Graph& g, const std::string& what, std::string_view kernel) {
    auto fast = compile(g);
    auto plain = compile(g, {.backends = {&reference_backend()}});
    ASSERT_TRUE(fast.has_value() && plain.has_value());
    const auto why = (*fast)->why(1);
    ASSERT_TRUE(why.has_value());
    EXPECT_NE(why->find(kernel), std::string::npos) << what << "\n" << *why;
    Executor one(*fast);
    Executor other(*plain);
    for (const std::int64_t count : {1, 7, 8, 9, 64, 71, 137}) {
      const std::vector<Tensor> inputs = {rows(count)};
      std::vector<Tensor> a;
      std::vector<Tensor> b;
      ASSERT_TRUE(one.run(inputs, a).has_value());
      ASSERT_TRUE(other.run(inputs, b).has_value());
      for (std::size_t i = 0; i < a.size(); ++i)
        EXPECT_TRUE(equal_bits(a[i], b[i])) << what << ", " << count << " rows, output " << i << ", seed " << seed_;
    }
  }

  std::uint64_t seed_;
  Random random_;
  std::int64_t columns_ = kColumns;
};

TEST_F(Trees, FlatOnesGiveTheReferencesBits) {
  for (const char* mode : {"BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"}) {
    for (const bool missing : {false, true}) {
      for (const std::int64_t targets : {1, 3}) {
        Attributes a = Forest(random_, mode, missing, targets).attributes("target");
        a["n_targets"] = targets;
        a["base_values"] = Floats(static_cast<std::size_t>(targets), 0.25F);
        if (missing) a["aggregate_function"] = std::string("AVERAGE");
        Graph g;
        g.add_input("x", DType::f32, {-1, kColumns});
        g.add(kOnnxMl, "TreeEnsembleRegressor", {"x"}, a, "y");
        g.outputs.push_back({"y", DType::f32, {}, {}, false});
        agree(g, format("regressor {} {} {}", mode, missing, targets));
      }
    }
  }
}

// More columns than registers hold.
TEST_F(Trees, WideRowsGiveTheReferencesBits) {
  for (const std::int64_t columns : {17, 32, 33, 70}) {
    Attributes a = Forest(random_, "BRANCH_LEQ", true, 1, columns).attributes("target");
    a["n_targets"] = std::int64_t{1};
    Graph g;
    g.add_input("x", DType::f32, {-1, columns});
    g.add(kOnnxMl, "TreeEnsembleRegressor", {"x"}, a, "y");
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    columns_ = columns;
    agree(g, format("{} columns", columns));
  }
}

TEST_F(Trees, ClassifiersGiveTheReferencesBits) {
  for (const std::int64_t classes : {1, 3}) {  // weights for one class only: two labels
    Attributes a = Forest(random_, "BRANCH_LEQ", true, classes).attributes("class");
    a["classlabels_int64s"] = classes == 1 ? Ints{0, 1} : Ints{4, 5, 6};
    a["post_transform"] = std::string(classes == 1 ? "LOGISTIC" : "SOFTMAX");
    Graph g;
    g.add_input("x", DType::f32, {-1, kColumns});
    g.add_node({"TreeEnsembleClassifier", std::string(kOnnxMl), {}, {"x"}, {"label", "scores"}, a});
    g.outputs.push_back({"label", DType::i64, {}, {}, false});
    g.outputs.push_back({"scores", DType::f32, {}, {}, false});
    agree(g, format("classifier of {}", classes));
  }
}

}  // namespace
}  // namespace falaj::kernels
