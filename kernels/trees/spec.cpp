#include "kernels/trees/spec.hpp"

#include <cmath>
#include <string_view>

#include "runtime/base/format.hpp"

namespace falaj::kernels::trees {
namespace {

struct Range {
  std::string_view name;
  double value, low, high;
};

}  // namespace

Status check(const Spec& spec) {
  const Range ranges[] = {{"rounds", static_cast<double>(spec.rounds), 1, kRoundsMax},
                          {"leaves", static_cast<double>(spec.leaves), 2, kLeavesMax},
                          {"learning_rate", spec.learning_rate, 1e-9, 10},
                          {"rows_min", static_cast<double>(spec.rows_min), 1, static_cast<double>(kRowsMax)},
                          {"hessian_min", spec.hessian_min, 0, 1e12},
                          {"l2", spec.l2, 0, 1e12},
                          {"gain_min", spec.gain_min, 0, 1e30},
                          {"column_share", spec.column_share, 1e-6, 1},
                          {"row_share", spec.row_share, 1e-6, 1},
                          {"bins", static_cast<double>(spec.bins), 2, kBinsMax},
                          {"category_smoothing", spec.category_smoothing, 0, 1e12},
                          {"category_l2", spec.category_l2, 0, 1e12}};
  for (const Range& range : ranges) {
    if (!(range.value >= range.low && range.value <= range.high))
      return invalid(format("boosted trees: {} is {}, it must be {:g} to {:g}", range.name, range.value, range.low, range.high));
  }
  return {};
}

}  // namespace falaj::kernels::trees
