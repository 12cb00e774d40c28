#include "kernels/trees/tree.hpp"

#include <cmath>

#include "kernels/codec.hpp"

namespace falaj::kernels::trees {
namespace {

constexpr std::size_t kRowsEach = 1U << 10;
constexpr std::uint32_t kFormat = 1;

// Nodes come after their parents, so that walks go forward and end.
Status check_tree(const Tree& tree, const Bins& bins) {
  const auto bad = [] { return error(ErrorCode::corrupt, "boosted trees: the nodes form no tree"); };
  if (tree.leaves.size() != tree.nodes.size() + 1) return bad();
  std::vector<bool> node_reached(tree.nodes.size());
  std::vector<bool> leaf_reached(tree.leaves.size());
  for (std::size_t i = 0; i < tree.nodes.size(); ++i) {
    const TreeNode& node = tree.nodes[i];
    if (node.column >= bins.size() || node.edge >= kStride) return bad();
    for (const std::int32_t to : {node.left, node.right}) {
      const auto at = static_cast<std::size_t>(to >= 0 ? to : ~to);
      auto& reached = to >= 0 ? node_reached : leaf_reached;
      if (at >= reached.size() || reached[at] || (to >= 0 && at <= i)) return bad();
      reached[at] = true;
    }
  }
  for (const float value : tree.leaves) {
    if (!std::isfinite(value)) return bad();
  }
  return {};
}

}  // namespace

std::size_t Tree::leaf(const Matrix& matrix, std::size_t row) const noexcept {
  if (nodes.empty()) return 0;
  std::int32_t at = 0;
  while (at >= 0) {
    const TreeNode& node = nodes[static_cast<std::size_t>(at)];
    at = node.goes_left.has(matrix.column(node.column)[row]) ? node.left : node.right;
  }
  return static_cast<std::size_t>(~at);
}

std::vector<double> scores(const Forest& forest, const Matrix& matrix, std::span<const std::uint32_t> rows, Team& team) {
  const std::size_t outputs = forest.outputs();
  std::vector<double> out(rows.size() * outputs);
  team.ranges(rows.size(), kRowsEach, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      double* to = out.data() + i * outputs;
      for (std::size_t k = 0; k < outputs; ++k) to[k] = static_cast<double>(forest.base[k]);
    }
    for (std::size_t t = 0; t < forest.trees.size(); ++t) {
      const Tree& tree = forest.trees[t];
      for (std::size_t i = begin; i < end; ++i)
        out[i * outputs + t % outputs] += static_cast<double>(tree.leaves[tree.leaf(matrix, rows[i])]);
    }
  });
  return out;
}

Bytes encode(std::span<const Tree> trees) {
  Writer writer;
  writer.number(kFormat);
  writer.number(static_cast<std::uint64_t>(trees.size()));
  for (const Tree& tree : trees) {
    writer.number(static_cast<std::uint32_t>(tree.nodes.size()));
    for (const TreeNode& node : tree.nodes) {
      writer.number(node.column);
      writer.number(node.edge);
      writer.number(static_cast<std::uint8_t>(node.missing_left ? 1 : 0));
      for (const std::uint64_t word : node.goes_left.words) writer.number(word);
      writer.number(node.left);
      writer.number(node.right);
      writer.number(node.gain);
    }
    writer.floats(tree.leaves);
  }
  return writer.finish();
}

Result<std::vector<Tree>> decode_trees(ByteView bytes, const Bins& bins) {
  FALAJ_ASSIGN(Reader reader, Reader::open(bytes, "boosted trees"));
  if (const auto version = reader.number<std::uint32_t>(); version != kFormat)
    return error(ErrorCode::corrupt, format("boosted trees: format {} is not known here (this build reads {})", version, kFormat));
  const auto count = reader.number<std::uint64_t>();
  std::vector<Tree> out;
  for (std::uint64_t t = 0; t < count && reader.ok(); ++t) {
    Tree tree;
    const auto nodes = reader.number<std::uint32_t>();
    for (std::uint32_t n = 0; n < nodes && reader.ok(); ++n) {
      TreeNode node;
      node.column = reader.number<std::uint32_t>();
      node.edge = reader.number<std::uint32_t>();
      node.missing_left = reader.number<std::uint8_t>() != 0;
      for (std::uint64_t& word : node.goes_left.words) word = reader.number<std::uint64_t>();
      node.left = reader.number<std::int32_t>();
      node.right = reader.number<std::int32_t>();
      node.gain = reader.number<double>();
      tree.nodes.push_back(node);
    }
    tree.leaves = reader.floats();
    if (reader.ok()) FALAJ_TRY(check_tree(tree, bins));
    out.push_back(std::move(tree));
  }
  FALAJ_TRY(reader.finish());
  return out;
}

}  // namespace falaj::kernels::trees
