// What boosting minimises, by the task: log-loss of two classes, of several (softmax, one score for each class), or half the squared
// error. Scores are sums of leaves; labels are class numbers or, for a regression, standardised numbers.
#pragma once
#include <span>
#include <vector>

#include "kernels/team.hpp"
#include "kernels/train/families.hpp"

namespace falaj::kernels::trees {

struct Problem {
  Task task = Task::binary;
  std::size_t outputs = 1;    // scores of a row
  std::vector<float> labels;  // of each row
};

// Labels as encode_labels gives them. Refused with the row: not a number, no class of the target; refused: training rows of one class.
Result<Problem> make_problem(const TargetSpec& target, std::span<const float> labels, std::span<const std::uint32_t> train);

// The best constant scores.
std::vector<float> base_scores(const Problem& problem, std::span<const std::uint32_t> train);

// First and second derivatives by each score; all arrays are [outputs][rows of the table], `rows` are filled.
void slopes(const Problem& problem, std::span<const double> scores, std::span<const std::uint32_t> rows, std::vector<float>& gradients,
            std::vector<float>& hessians, Team& team);

// Mean loss of the rows; for a regression the squared error itself, as elsewhere. The same for any number of threads.
double mean_loss(const Problem& problem, std::span<const double> scores, std::span<const std::uint32_t> rows, Team& team);

}  // namespace falaj::kernels::trees
