#include "kernels/compress/prune.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

#include "kernels/compress/channels.hpp"
#include "kernels/ops.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

bool is_kept(const PruneSpec& spec, std::string_view name) {
  return std::ranges::any_of(spec.keep, [name](std::string_view pattern) {
    return pattern.ends_with('*') ? name.starts_with(pattern.substr(0, pattern.size() - 1)) : name == pattern;
  });
}

// The `count` smallest of these go; a stable order makes ties go the same way everywhere.
std::vector<std::size_t> smallest(const std::vector<double>& values, std::size_t count) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto middle = order.begin() + static_cast<std::ptrdiff_t>(count);
  std::ranges::nth_element(order, middle, [&](std::size_t a, std::size_t b) { return std::pair(values[a], b) < std::pair(values[b], a); });
  order.resize(count);
  return order;
}

// Every element of `axis` that belongs to a kept channel.
Tensor sliced(const Tensor& tensor, std::size_t axis, std::int64_t block, std::span<const std::int64_t> kept) {
  const Shape& from = tensor.shape();
  Shape to = from;
  to[axis] = static_cast<std::int64_t>(kept.size()) * block;
  Tensor out = Tensor::uninitialised(tensor.dtype(), to);
  const auto outer = static_cast<std::size_t>(from.elements(0, axis));
  const std::size_t inner = static_cast<std::size_t>(from.elements(axis + 1, from.rank())) * static_cast<std::size_t>(block) *
                            size_of(tensor.dtype());  // bytes of one channel
  const std::size_t stride = inner * static_cast<std::size_t>(from[axis] / block);
  const auto* source = static_cast<const std::byte*>(tensor.raw());
  auto* target = static_cast<std::byte*>(out.mutable_raw());
  for (std::size_t i = 0; i < outer; ++i) {
    for (const std::int64_t channel : kept) {
      std::memcpy(target, source + i * stride + static_cast<std::size_t>(channel) * inner, inner);
      target += inner;
    }
  }
  return out;
}

// Sum of absolute weights of each output channel.
std::vector<double> channel_norms(const Tensor& weights, std::size_t axis) {
  const Shape& shape = weights.shape();
  const auto channels = static_cast<std::size_t>(shape[axis]);
  const auto inner = static_cast<std::size_t>(shape.elements(axis + 1, shape.rank()));
  std::vector<double> norms(channels);
  const auto values = weights.data<float>();
  for (std::size_t i = 0; i < values.size(); ++i) norms[i / inner % channels] += std::abs(static_cast<double>(values[i]));
  return norms;
}

}  // namespace

Status check(const PruneSpec& spec) {
  if (spec.amount > 0 && spec.amount < 1) return {};
  return invalid(format("the amount that is pruned is {}, it must be larger than 0 and smaller than 1", spec.amount));
}

std::vector<LayerWeights> layer_weights(const Graph& graph) {
  std::vector<LayerWeights> out;
  std::set<std::string, std::less<>> seen;
  for (const LayerUse& use : layers_of(graph)) {
    if (!seen.insert(use.weights).second) continue;
    const Tensor& value = graph.initializers.find(use.weights)->second;
    out.push_back({use.weights, value.shape(), value.elements(), static_cast<std::size_t>(std::ranges::count(value.data<float>(), 0.0F))});
  }
  return out;
}

Result<std::vector<WeightMask>> magnitude_masks(const Graph& graph, const PruneSpec& spec) {
  FALAJ_TRY(check(spec));
  std::vector<WeightMask> masks;
  std::vector<double> values;  // of all masks, one after the other
  for (const LayerWeights& layer : layer_weights(graph)) {
    if (is_kept(spec, layer.name)) continue;
    masks.push_back({layer.name, std::vector<std::uint8_t>(layer.elements, 1)});
    for (const float x : graph.initializers.find(layer.name)->second.data<float>()) values.push_back(std::abs(static_cast<double>(x)));
    if (spec.scope == PruneScope::global) continue;
    for (const std::size_t i : smallest(values, static_cast<std::size_t>(spec.amount * static_cast<double>(values.size()))))
      masks.back().kept[i] = 0;
    values.clear();
  }
  if (masks.empty()) return invalid("the model has no weights that can be pruned: no Gemm, MatMul or Conv by a constant");
  if (spec.scope == PruneScope::layer) return masks;
  auto gone = smallest(values, static_cast<std::size_t>(spec.amount * static_cast<double>(values.size())));
  std::ranges::sort(gone);
  std::size_t mask = 0;
  std::size_t first = 0;
  for (const std::size_t i : gone) {
    while (i >= first + masks[mask].kept.size()) first += masks[mask++].kept.size();
    masks[mask].kept[i - first] = 0;
  }
  return masks;
}

Status apply_masks(Graph& graph, const std::vector<WeightMask>& masks) {
  for (const WeightMask& mask : masks) {
    const auto found = graph.initializers.find(mask.name);
    if (found == graph.initializers.end() || found->second.elements() != mask.kept.size())
      return invalid(format("the mask of '{}' does not fit the graph", mask.name));
    found->second = found->second.clone();
    const auto values = found->second.mutable_data<float>();
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = mask.kept[i] != 0 ? values[i] : 0.0F;
  }
  return {};
}

Result<ChannelReport> prune_channels(Graph& graph, const PruneSpec& spec) {
  FALAJ_TRY(check(spec));
  ChannelReport report;
  for (const LayerUse& layer : layers_of(graph)) {
    if (is_kept(spec, layer.weights)) {
      report.whole.push_back({layer.weights, "it is to be kept"});
      continue;
    }
    const auto group = channel_group(graph, layer);
    if (!group) {
      report.whole.push_back({layer.weights, group.error().message});
      continue;
    }
    const auto norms = channel_norms(graph.initializers.find(group->weights)->second, group->axis);
    const auto count = std::min(static_cast<std::size_t>(spec.amount * static_cast<double>(norms.size())), norms.size() - 1);
    const auto gone = smallest(norms, count);
    std::vector<std::int64_t> kept;
    for (std::int64_t channel = 0; channel < group->channels; ++channel) {
      if (std::ranges::find(gone, static_cast<std::size_t>(channel)) == gone.end()) kept.push_back(channel);
    }
    for (const ChannelSlice& slice : group->slices) {
      Tensor& tensor = graph.initializers.find(slice.name)->second;
      tensor = sliced(tensor, slice.axis, slice.block, kept);
    }
    report.pruned.push_back({group->weights, group->channels, static_cast<std::int64_t>(kept.size())});
  }
  if (report.pruned.empty()) {
    std::string why;
    for (const KeptLayer& layer : report.whole) why += format("{}{}: {}", why.empty() ? "" : "; ", layer.name, layer.reason);
    return invalid(format("no layer's channels can be removed{}{}", why.empty() ? ": the model has no layers" : ": ", why));
  }
  graph.origin.reset();
  FALAJ_TRY(validate(graph));
  FALAJ_ASSIGN([[maybe_unused]] const auto types, infer_types(graph, 2));
  return report;
}

}  // namespace falaj::kernels
