// Optimizers over one flat vector of parameters: AdamW, Adam and SGD with PyTorch's formulas and defaults, LAMB (You et al., 2020)
// after bias correction, clipping by the global norm, learning-rate schedules. Element by element in a fixed order, denormals flushed: the
// bits depend on nothing but the inputs.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/base/result.hpp"

namespace falaj::kernels {

class Team;

enum class OptimizerKind : std::uint8_t { adamw, sgd, adam, lamb };
std::string_view to_string(OptimizerKind kind) noexcept;
Result<OptimizerKind> optimizer_kind(std::string_view text);

struct OptimizerSpec {
  OptimizerKind kind = OptimizerKind::adamw;
  double learning_rate = 1e-3;
  double weight_decay = 0.01;  // adamw, lamb: decoupled; sgd, adam: added to the gradient
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double momentum = 0.0;   // sgd only
  bool nesterov = false;   // sgd only, needs momentum
  double clip_norm = 0.0;  // 0: no clipping
  bool operator==(const OptimizerSpec&) const = default;
};
Status check(const OptimizerSpec& spec);
OptimizerSpec default_optimizer(OptimizerKind kind);  // PyTorch's defaults; LAMB's are its paper's

enum class ScheduleKind : std::uint8_t { constant, warmup_cosine, step };

struct Schedule {
  ScheduleKind kind = ScheduleKind::constant;
  std::uint64_t warmup_steps = 0;  // linear from 0, reached after so many steps; also with constant
  std::uint64_t total_steps = 0;   // warmup_cosine: the cosine reaches its floor here
  double floor = 0.0;              // share of the learning rate that remains at the end
  std::uint64_t every = 0;         // step: after so many steps (counted without the warm-up)...
  double gamma = 0.1;              // ...the rate is multiplied by this
  // The factor for the step with this number (the first is 0).
  [[nodiscard]] double factor(std::uint64_t step) const noexcept;
  bool operator==(const Schedule&) const = default;
};

// Lowers the rate when the loss of an epoch has not become better for a while: PyTorch's ReduceLROnPlateau, with its defaults.
struct Plateau {
  double gamma = 0.1;
  std::uint32_t patience = 10;
  double threshold = 1e-4;  // relative
  double factor = 1.0;      // of the learning rate, now
  double best = 0;
  std::uint32_t bad = 0;
  bool any = false;
  void update(double loss);
};

class Optimizer {
 public:
  // decay[i] != 0: weight decay applies to element i (empty: to all). tensors: sizes of the tensors that the vector is made of, in
  // order, which LAMB's trust ratios are for (empty: one).
  Optimizer(OptimizerSpec spec, std::size_t parameters, std::vector<std::uint8_t> decay = {}, std::vector<std::size_t> tensors = {});

  // gradients are means over the batch; they are clipped in place first. Returns their norm before clipping. A norm that is not
  // finite changes nothing but the returned value: the caller decides (skip the batch, or fail).
  // Threads of `team` (null: none but the caller's) share the work, and change no bit of it. Gradients that come as sums are taken times
  // `scale`, which need not be a pass over them; what is left in them then is unspecified.
  double step(std::span<float> parameters, std::span<float> gradients, double factor = 1.0, Team* team = nullptr, float scale = 1.0F);

  [[nodiscard]] std::uint64_t steps() const noexcept { return steps_; }
  [[nodiscard]] const OptimizerSpec& spec() const noexcept { return spec_; }
  // Flat, to be stored: adamw, adam, lamb first moments then second moments, sgd momentum (empty without).
  [[nodiscard]] std::span<const float> state() const noexcept { return state_; }
  Status load(std::uint64_t steps, std::span<const float> state);

 private:
  void adamw(std::span<float> parameters, std::span<const float> gradients, double rate, float scale, Team* team);  // and adam
  void lamb(std::span<float> parameters, std::span<const float> gradients, double rate);
  void sgd(std::span<float> parameters, std::span<const float> gradients, double rate);

  [[nodiscard]] bool decays(std::size_t i) const noexcept { return decay_.empty() || decay_[i] != 0; }

  OptimizerSpec spec_;
  std::size_t size_;
  std::vector<std::uint8_t> decay_;
  std::vector<std::size_t> tensors_;
  std::vector<float> state_;
  std::uint64_t steps_ = 0;
};

// The Euclidean norm of the values times `scale`, summed in double in an order that depends on nothing but the number of values.
double global_norm(std::span<const float> values, Team* team = nullptr, float scale = 1.0F) noexcept;

}  // namespace falaj::kernels
