// What training minimises when it is named as such (falaj model train) rather than by a task of columns: a loss of the logits, or of
// whatever value is trained, and labels. Means are over all that is compared, as PyTorch's losses have it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/graph.hpp"
#include "kernels/train/metrics.hpp"

namespace falaj::kernels {

struct Evaluation;

enum class Loss : std::uint8_t { cross_entropy, bce, mse, l1, huber };
std::string_view to_string(Loss loss) noexcept;
Result<Loss> parse_loss(std::string_view text);

struct Distillation {
  double temperature = 4;
  double share = 0.5;  // of the loss: the teacher's; the labels have the rest
};

struct Objective {
  Loss loss = Loss::cross_entropy;
  double huber_delta = 1.0;
  Shape label_row = {};                           // the shape of a row's labels
  std::optional<Distillation> distillation = {};  // the labels are those of soft_targets.hpp
};
constexpr std::int64_t kIgnoredLabel = -100;  // of cross-entropy: counts as nothing

// How logits [rows, ...] and labels [rows, label_row...] are compared.
struct Comparison {
  Objective objective;
  Shape logits_row;
  bool classes_last = false;  // cross-entropy over three dimensions and more: classes behind the positions, rather than first
  std::int64_t classes = 0;   // of cross-entropy
  std::int64_t per_row = 1;   // numbers or classes that a row is compared at
};
// Cross-entropy: logits are [rows, classes], [rows, classes, positions...] or [rows, positions..., classes], labels [rows, positions...];
// where both readings fit, classes come first, as in PyTorch. The others: labels are as many as logits.
Result<Comparison> compare(const Objective& objective, const Shape& logits_row);

// Labels as the loss reads them: i64, one number for each position, or f32. Bad ones are errors that name the row.
Result<Tensor> read_labels(const Comparison& comparison, const Tensor& labels);
ValueInfo label_input(const Comparison& comparison, std::string_view name);
// Appends the sum of the losses; returns its name.
std::string append_loss(Graph& graph, const Comparison& comparison, const std::string& logits, const std::string& labels);
// What a mean divides by.
double compared(const Comparison& comparison, const Tensor& labels);

// Loss and metrics of computed logits (f32); labels as read_labels gives them.
Result<Evaluation> measure(const Comparison& comparison, const Tensor& logits, const Tensor& labels);

}  // namespace falaj::kernels
