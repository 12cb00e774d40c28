// What recurrent layers are called with: RNN, GRU and LSTM of ONNX; their steps alone, which is what they become where they are fast or
// trained (kernels/recurrent.cpp); and the gradient of the steps. `rows` below are steps x batch, in the order of X.
//
//   <L>Steps(X T[steps, batch, width], Z T[rows, gates * hidden], R, B?, sequence_lens?, initial_h?, initial_c?, P?) -> Y, Y_h, Y_c
//     one direction of layer <L>, with its attributes and the shapes that ONNX gives its other operands. Z = X * W + the first half of B,
//     of which only the second half is read here; X is read for its shape only.
//   <L>StepsGrad(what <L>Steps reads, dY?, dY_h?, dY_c?) -> dZ, extra, H T[rows, hidden], dinitial_h, dinitial_c, dP
//     H: the state before each step, zeros where a sequence has ended. extra: of GRU, with linear_before_reset the gradient of H * R + B
//     [rows, gates * hidden], which is dZ for all others; without it H times the reset gate [rows, hidden], which R's last rows were
//     multiplied with.
#pragma once
#include <string>
#include <vector>

#include "kernels/ops.hpp"

namespace falaj::kernels {

struct RecurrentFunction {
  std::string name;
  double alpha = 0, beta = 0;
  [[nodiscard]] double operator()(double x) const;
  [[nodiscard]] double slope(double x) const;
};

struct Recurrent {
  int gates = 1;  // RNN 1, GRU 3 (z r h), LSTM 4 (i o f c)
  std::int64_t steps = 0, batch = 0, width = 0, hidden = 0, directions = 1;
  bool reverse = false;  // the first direction goes backwards
  bool batch_first = false, linear_before_reset = false, input_forget = false;
  double clip = 0;                           // 0: none
  std::vector<RecurrentFunction> functions;  // for each direction
  bool bias = false, lengths = false, wide_lengths = false, h0 = false, c0 = false, peepholes = false;

  [[nodiscard]] std::int64_t rows() const { return steps * batch; }
  [[nodiscard]] std::int64_t sums() const { return gates * hidden; }  // of a row, in one direction
  [[nodiscard]] std::size_t functions_each() const { return gates == 1 ? 1 : (gates == 3 ? 2 : 3); }
  [[nodiscard]] bool backwards(std::int64_t direction) const { return direction == 1 || reverse; }
  // Where things lie: row (t, b) of X, its state in Y in elements, and the states of sample b.
  [[nodiscard]] std::int64_t row(std::int64_t t, std::int64_t b) const { return batch_first ? b * steps + t : t * batch + b; }
  [[nodiscard]] std::int64_t output(std::int64_t t, std::int64_t b, std::int64_t direction) const {
    return (batch_first ? (b * steps + t) * directions + direction : (t * directions + direction) * batch + b) * hidden;
  }
  [[nodiscard]] std::int64_t state(std::int64_t b, std::int64_t direction) const {
    return (batch_first ? b * directions + direction : direction * batch + b) * hidden;
  }
  // The length of sequence b; negative, and the run has failed, where it is none.
  [[nodiscard]] std::int64_t length(const Io& io, std::int64_t b) const;
  // Where the sequence's k-th step is.
  [[nodiscard]] std::int64_t time(std::int64_t k, std::int64_t length, std::int64_t direction) const {
    return backwards(direction) ? length - 1 - k : k;
  }
};
Result<Recurrent> recurrent_spec(const OpCall& call);  // of a layer, its steps, or their gradient

// Places of inputs; the gradient reads those of the steps, then these.
constexpr std::size_t kRecurrentInputs = 8;
constexpr std::size_t kRecurrentDy = 8, kRecurrentDh = 9, kRecurrentDc = 10;

// The names, alphas and betas of functions as a node's attributes, none of them left out.
void put_functions(Attributes& attributes, std::span<const RecurrentFunction> functions);

Status grad_recurrent_steps(GradientCall& g);

}  // namespace falaj::kernels
