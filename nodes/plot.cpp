#include "nodes/plot.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/base/format.hpp"

namespace falaj::nodes {

std::string plot(std::span<const double> values, std::string_view what, std::size_t width, std::size_t height) {
  width = std::min(width, values.size());
  if (width == 0 || height < 2) return {};
  std::vector<double> columns(width);
  for (std::size_t c = 0; c < width; ++c) {
    const std::size_t first = values.size() * c / width;
    const std::size_t end = values.size() * (c + 1) / width;
    for (std::size_t i = first; i < end; ++i) columns[c] += values[i] / static_cast<double>(end - first);
  }
  const auto [low, high] = std::ranges::minmax(columns);
  if (!std::isfinite(low) || !std::isfinite(high)) return {};
  const double range = high > low ? high - low : 1.0;
  std::vector<std::string> lines(height, std::string(width, ' '));
  for (std::size_t c = 0; c < width; ++c) {
    const auto level = static_cast<std::size_t>(std::lround((columns[c] - low) / range * static_cast<double>(height - 1)));
    lines[height - 1 - level][c] = '*';
  }
  std::string out = format("{}\n", what);
  for (std::size_t row = 0; row < height; ++row) {
    const bool labelled = row == 0 || row + 1 == height;
    out += format("{:>10} |{}\n", labelled ? format("{:.4g}", row == 0 ? high : low) : std::string(), lines[row]);
  }
  return out + format("{:>10} +{}\n{:>12}{}{:>{}}", "", std::string(width, '-'), "", 1, values.size(), width - 1);
}

}  // namespace falaj::nodes
