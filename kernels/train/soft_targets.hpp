// Distillation (Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015): a model learns from the labels and from what
// another model, its teacher, says of the same rows. With temperature T and the teacher's share s the loss of a row is
//   cross-entropy  s T^2 H(softmax(t / T), softmax(z / T)) + (1 - s) H(label, softmax(z))
//   bce            the same with sigmoids, for each logit by itself
//   mse            s (z - t)^2 + (1 - s) (z - label)^2; there is no temperature
// where z are the logits of the model, t those of the teacher and H is cross-entropy.
//
// For training, a row of labels is a row of floats: the teacher's K logits, then K numbers for the labels (cross-entropy: one-hot).
#pragma once
#include <string>

#include "kernels/train/objective.hpp"

namespace falaj::kernels {

// The objective with which a Trainer takes such labels. `hard`: as without a teacher; one row of logits has `logits_row`.
Result<Objective> distilled(const Objective& hard, const Distillation& how, const Shape& logits_row);
// The labels: teacher [rows, K...] f32; labels as of `hard`. Errors name the row.
Result<Tensor> distilled_labels(const Objective& hard, const Tensor& teacher, const Tensor& labels);

// For objective.cpp, which hands over whatever has a teacher.
Result<Comparison> compare_distilled(const Objective& objective, const Shape& logits_row);
Result<Tensor> read_distilled_labels(const Comparison& comparison, const Tensor& labels);
std::string append_distilled_loss(Graph& graph, const Comparison& comparison, const std::string& logits, const std::string& labels);

}  // namespace falaj::kernels
