#include "kernels/trees/objective.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/trees/spec.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::trees {
namespace {

constexpr std::size_t kRowsEach = 1U << 12;
constexpr double kShareMin = 1e-12;  // of a class that no training row has

void softmax(const double* scores, std::size_t stride, std::size_t classes, double* out) {
  double top = scores[0];
  for (std::size_t k = 1; k < classes; ++k) top = std::max(top, scores[k * stride]);
  double sum = 0;
  for (std::size_t k = 0; k < classes; ++k) sum += out[k] = std::exp(scores[k * stride] - top);
  for (std::size_t k = 0; k < classes; ++k) out[k] /= sum;
}

double loss_of(const Problem& problem, const double* scores, std::size_t stride, float label) {
  const double x = scores[0];
  const auto y = static_cast<double>(label);
  if (problem.task == Task::regression) return (x - y) * (x - y);
  if (problem.task == Task::binary) return std::max(x, 0.0) - x * y + std::log1p(std::exp(-std::abs(x)));
  double top = scores[0];
  for (std::size_t k = 1; k < problem.outputs; ++k) top = std::max(top, scores[k * stride]);
  double sum = 0;
  for (std::size_t k = 0; k < problem.outputs; ++k) sum += std::exp(scores[k * stride] - top);
  return top + std::log(sum) - scores[static_cast<std::size_t>(label) * stride];
}

}  // namespace

Result<Problem> make_problem(const TargetSpec& target, std::span<const float> labels, std::span<const std::uint32_t> train) {
  Problem out{.task = target.task, .outputs = target.task == Task::multiclass ? target.classes.size() : 1, .labels = {}};
  if (train.empty()) return invalid("boosted trees: there are no training rows");
  if (train.size() > kRowsMax) return invalid(format("boosted trees: {} training rows, {} are the most", train.size(), kRowsMax));
  if (std::ranges::max(train) >= labels.size())
    return invalid(format("boosted trees: row {} of {} labels", std::ranges::max(train), labels.size()));
  if (target.task == Task::regression && !(std::isfinite(target.mean) && std::isfinite(target.scale) && target.scale > 0))
    return invalid(format("boosted trees: label '{}' has mean {} and scale {}", target.name, target.mean, target.scale));
  std::vector<std::size_t> rows_of_class(target.task == Task::binary ? 2 : target.classes.size());
  out.labels.reserve(labels.size());
  for (std::size_t row = 0; row < labels.size(); ++row) {
    const float label = labels[row];
    if (!std::isfinite(label)) return invalid(format("row {}: label '{}' is {}, not a number", row, target.name, label));
    if (target.task == Task::regression) {
      out.labels.push_back(static_cast<float>((static_cast<double>(label) - target.mean) / target.scale));
      continue;
    }
    if (!(label >= 0 && label < static_cast<float>(rows_of_class.size())) || label != std::floor(label))
      return invalid(format("row {}: label {} is not the number of one of {} classes", row, label, rows_of_class.size()));
    out.labels.push_back(label);
  }
  if (target.task == Task::regression) return out;
  for (const std::uint32_t row : train) ++rows_of_class[static_cast<std::size_t>(out.labels[row])];
  if (std::ranges::count_if(rows_of_class, [](std::size_t rows) { return rows > 0; }) < 2)
    return invalid(format("label '{}' has one class only in the training rows: there is nothing to learn", target.name));
  return out;
}

std::vector<float> base_scores(const Problem& problem, std::span<const std::uint32_t> train) {
  const auto rows = static_cast<double>(train.size());
  if (problem.task == Task::multiclass) {
    std::vector<double> counts(problem.outputs);
    for (const std::uint32_t row : train) ++counts[static_cast<std::size_t>(problem.labels[row])];
    std::vector<float> out;
    for (const double count : counts) out.push_back(static_cast<float>(std::log(std::max(count / rows, kShareMin))));
    return out;
  }
  double sum = 0;
  for (const std::uint32_t row : train) sum += static_cast<double>(problem.labels[row]);
  const double mean = sum / rows;
  return {static_cast<float>(problem.task == Task::regression ? mean : std::log(mean / (1 - mean)))};
}

void slopes(const Problem& problem, std::span<const double> scores, std::span<const std::uint32_t> rows, std::vector<float>& gradients,
            std::vector<float>& hessians, Team& team) {
  const std::size_t stride = problem.labels.size();
  gradients.resize(problem.outputs * stride);
  hessians.resize(problem.outputs * stride);
  team.ranges(rows.size(), kRowsEach, [&](std::size_t begin, std::size_t end) {
    const auto part = rows.subspan(begin, end - begin);
    if (problem.task == Task::regression) {
      for (const std::uint32_t row : part) {
        gradients[row] = static_cast<float>(scores[row] - static_cast<double>(problem.labels[row]));
        hessians[row] = 1;
      }
    } else if (problem.task == Task::binary) {
      for (const std::uint32_t row : part) {
        const float p = 1 / (1 + std::exp(-static_cast<float>(scores[row])));
        gradients[row] = p - problem.labels[row];
        hessians[row] = p * (1 - p);
      }
    } else {
      // K / (K - 1) makes up for the scores' common part, which no loss depends on.
      const auto classes = static_cast<double>(problem.outputs);
      std::vector<double> p(problem.outputs);
      for (const std::uint32_t row : part) {
        softmax(scores.data() + row, stride, problem.outputs, p.data());
        for (std::size_t k = 0; k < problem.outputs; ++k) {
          const bool own = static_cast<std::size_t>(problem.labels[row]) == k;
          gradients[k * stride + row] = static_cast<float>(p[k] - (own ? 1 : 0));
          hessians[k * stride + row] = static_cast<float>(p[k] * (1 - p[k]) * classes / (classes - 1));
        }
      }
    }
  });
}

double mean_loss(const Problem& problem, std::span<const double> scores, std::span<const std::uint32_t> rows, Team& team) {
  if (rows.empty()) return 0;
  std::vector<double> parts((rows.size() + kRowsEach - 1) / kRowsEach);
  team.run(parts.size(), [&](std::size_t i) {
    double sum = 0;
    for (const std::uint32_t row : rows.subspan(i * kRowsEach, std::min(kRowsEach, rows.size() - i * kRowsEach)))
      sum += loss_of(problem, scores.data() + row, problem.labels.size(), problem.labels[row]);
    parts[i] = sum;
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum / static_cast<double>(rows.size());
}

}  // namespace falaj::kernels::trees
