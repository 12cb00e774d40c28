// Where training by steps stands (steps.hpp): all that it needs to go on with the same bits as if it had never stopped. Rows, masks and
// rates are functions of the step and the settings, so that the step's number says where they are.
//
// As bytes: magic "FALAJSTP", version (u32), then by codec.hpp (little endian, CRC-32C at the end) the identity, the numbers, the
// parameters, the optimizer's state, the running statistics and what was reported of each step.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/train/optimizer.hpp"
#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

struct StepReport {
  std::uint64_t step = 0;  // the first is 1
  double loss = 0;         // mean over what the step's batches compare, before the update
  double learning_rate = 0;
  double gradient_norm = 0;  // before clipping
  // Left out, for its loss or gradient is no number: nothing moved.
  [[nodiscard]] bool skipped() const { return !std::isfinite(loss) || !std::isfinite(gradient_norm); }
  bool operator==(const StepReport&) const = default;
};

struct StepsState {
  std::uint64_t step = 0;  // optimizer steps done
  std::vector<float> parameters;
  std::vector<float> optimizer;
  std::vector<float> statistics;  // running ones
  Plateau plateau;
  double epoch_loss = 0;  // of the epoch so far, for the plateau
  double epoch_count = 0;
  std::vector<StepReport> reports;  // of all steps done
};

// What a state belongs to: names and values, of which each must be the same where it is taken up (a digest of the model, of the data,
// each setting that changes a bit).
using StepsIdentity = std::vector<std::pair<std::string, std::string>>;

Bytes encode(const StepsState& state, const StepsIdentity& identity);
// corrupt: no such file, cut or changed; unimplemented: of a newer version; conflict: of another identity, naming what differs.
Result<StepsState> decode_steps(ByteView bytes, const StepsIdentity& identity);

}  // namespace falaj::kernels
