// The target of a model: from raw labels, and back from a model's metadata.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "kernels/train/families.hpp"
#include "kernels/train/json.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

namespace {

constexpr std::size_t kClassesMax = 1000;

bool parse_number(std::string_view text, double& value) {
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  return problem == std::errc() && end == text.data() + text.size() && std::isfinite(value);
}

}  // namespace

std::string_view to_string(Task task) noexcept {
  return task == Task::binary ? "binary" : task == Task::multiclass ? "multiclass" : "regression";
}

Result<Task> parse_task(std::string_view text) {
  for (const Task task : {Task::binary, Task::multiclass, Task::regression}) {
    if (text == to_string(task)) return task;
  }
  return invalid(format("task '{}' is not known: use binary, multiclass or regression", text));
}

Result<TargetSpec> fit_target(std::string_view name, std::span<const std::string> labels, std::span<const std::uint32_t> rows,
                              std::string_view positive, std::size_t classes_max) {
  std::map<std::string, double, std::less<>> distinct;
  bool numeric = true;
  double sum = 0;
  double squares = 0;
  for (const std::uint32_t row : rows) {
    if (row >= labels.size() || labels[row].empty()) return invalid(format("label '{}' is missing in row {}", name, row));
    double value = 0;
    numeric = numeric && parse_number(labels[row], value);
    distinct[labels[row]] = value;
    sum += value;
    squares += value * value;
  }
  if (distinct.size() < 2)
    return invalid(format("label '{}' has {} different value in the training rows: there is nothing to learn", name, distinct.size()));
  TargetSpec target{.name = std::string(name)};
  if (numeric && distinct.size() > classes_max) {
    target.task = Task::regression;
    const auto count = static_cast<double>(rows.size());
    target.mean = sum / count;
    target.scale = std::sqrt(std::max(squares / count - target.mean * target.mean, 0.0));
    if (!(target.scale > 0)) target.scale = 1;
    return target;
  }
  if (distinct.size() > kClassesMax) {
    return invalid(
        format("label '{}' has {} different texts: {} classes are the most, numbers may have more", name, distinct.size(), kClassesMax));
  }
  target.task = distinct.size() == 2 ? Task::binary : Task::multiclass;
  for (const auto& [text, value] : distinct) target.classes.push_back(text);
  if (numeric) {
    std::ranges::sort(target.classes, {}, [&](const std::string& text) { return std::pair(distinct.find(text)->second, text); });
  }
  if (!positive.empty()) {
    if (target.task != Task::binary)
      return invalid(format("a positive class is for two classes, label '{}' has {}", name, distinct.size()));
    const auto found = std::ranges::find(target.classes, positive);
    if (found == target.classes.end()) {
      return invalid(format("positive class '{}' does not occur in label '{}': it has '{}' and '{}'", positive, name, target.classes[0],
                            target.classes[1]));
    }
    if (found == target.classes.begin()) std::swap(target.classes[0], target.classes[1]);
  }
  return target;
}

Result<std::vector<float>> encode_labels(const TargetSpec& target, std::span<const std::string> labels) {
  std::map<std::string_view, std::size_t> numbers;
  for (std::size_t i = 0; i < target.classes.size(); ++i) numbers[target.classes[i]] = i;
  std::vector<float> out(labels.size());
  for (std::size_t row = 0; row < labels.size(); ++row) {
    if (target.task == Task::regression) {
      double value = 0;
      if (!parse_number(labels[row], value))
        return invalid(format("label '{}' in row {} is '{}', not a number", target.name, row, labels[row]));
      out[row] = static_cast<float>(value);
      continue;
    }
    const auto found = numbers.find(labels[row]);
    if (found == numbers.end()) {
      return invalid(format("label '{}' in row {} is '{}', which is no class of the training rows", target.name, row, labels[row]));
    }
    out[row] = static_cast<float>(found->second);
  }
  return out;
}

Result<TargetSpec> read_target(const Graph& graph) {
  const auto text = [&](std::string_view key) -> std::string {
    const auto found = graph.metadata.find(key);
    return found == graph.metadata.end() ? std::string() : found->second;
  };
  if (text(metadata::kTask).empty()) return error(ErrorCode::not_found, format("the model's metadata has no '{}'", metadata::kTask));
  TargetSpec target;
  FALAJ_ASSIGN(target.task, parse_task(text(metadata::kTask)));
  target.name = text(metadata::kTarget);
  if (const std::string classes = text(metadata::kClasses); !classes.empty()) {
    FALAJ_ASSIGN(target.classes, read_json_strings(classes));
  }
  for (auto [key, value] : {std::pair{metadata::kTargetMean, &target.mean}, std::pair{metadata::kTargetScale, &target.scale}}) {
    if (const std::string number = text(key); !number.empty() && !parse_number(number, *value)) {
      return invalid(format("the model's metadata '{}' is '{}', not a number", key, number));
    }
  }
  return target;
}

}  // namespace falaj::kernels
