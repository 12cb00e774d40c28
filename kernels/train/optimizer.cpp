#include "kernels/train/optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/collective/float_mode.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

std::string_view to_string(OptimizerKind kind) noexcept { return kind == OptimizerKind::adamw ? "adamw" : "sgd"; }

Result<OptimizerKind> optimizer_kind(std::string_view text) {
  if (text == "adamw") return OptimizerKind::adamw;
  if (text == "sgd") return OptimizerKind::sgd;
  return invalid(format("optimizer '{}' is not known: use adamw or sgd", text));
}

Status check(const OptimizerSpec& s) {
  const auto bad = [](std::string_view field, double value, std::string_view wanted) {
    return invalid(format("optimizer.{} is {}, it must be {}", field, value, wanted));
  };
  if (!(s.learning_rate > 0) || !std::isfinite(s.learning_rate)) return bad("learning_rate", s.learning_rate, "larger than 0");
  if (!(s.weight_decay >= 0) || !std::isfinite(s.weight_decay)) return bad("weight_decay", s.weight_decay, "0 or larger");
  if (!(s.beta1 >= 0 && s.beta1 < 1)) return bad("beta1", s.beta1, "in [0, 1)");
  if (!(s.beta2 >= 0 && s.beta2 < 1)) return bad("beta2", s.beta2, "in [0, 1)");
  if (!(s.epsilon > 0)) return bad("epsilon", s.epsilon, "larger than 0");
  if (!(s.momentum >= 0 && s.momentum < 1)) return bad("momentum", s.momentum, "in [0, 1)");
  if (s.nesterov && s.momentum == 0) return invalid("optimizer.nesterov needs optimizer.momentum larger than 0");
  if (!(s.clip_norm >= 0)) return bad("clip_norm", s.clip_norm, "0 (off) or larger");
  return {};
}

double Schedule::factor(std::uint64_t step) const noexcept {
  if (step < warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  if (kind == ScheduleKind::constant) return 1.0;
  if (total_steps <= warmup_steps) return 1.0;
  const double done = std::min(1.0, static_cast<double>(step - warmup_steps) / static_cast<double>(total_steps - warmup_steps));
  return floor + (1.0 - floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

double global_norm(std::span<const float> values) noexcept {
  double sum = 0;
  for (const float x : values) sum += static_cast<double>(x) * static_cast<double>(x);
  return std::sqrt(sum);
}

Optimizer::Optimizer(OptimizerSpec spec, std::size_t parameters, std::vector<std::uint8_t> decay)
    : spec_(spec), size_(parameters), decay_(std::move(decay)) {
  if (decay_.empty()) decay_.assign(size_, 1);
  if (spec_.kind == OptimizerKind::adamw) {
    state_.assign(2 * size_, 0.0F);
  } else if (spec_.momentum != 0) {
    state_.assign(size_, 0.0F);
  }
}

double Optimizer::step(std::span<float> parameters, std::span<float> gradients, double factor) {
  const FlushDenormals mode;
  const double norm = global_norm(gradients);
  if (!std::isfinite(norm)) return norm;
  if (spec_.clip_norm > 0) {
    const double scale = spec_.clip_norm / (norm + 1e-6);  // PyTorch's clip_grad_norm_
    if (scale < 1.0) {
      for (float& g : gradients) g *= static_cast<float>(scale);
    }
  }
  ++steps_;
  const double rate = spec_.learning_rate * factor;
  if (spec_.kind == OptimizerKind::adamw) {
    adamw(parameters, gradients, rate);
  } else {
    sgd(parameters, gradients, rate);
  }
  return norm;
}

void Optimizer::adamw(std::span<float> parameters, std::span<const float> gradients, double rate) {
  const auto steps = static_cast<double>(steps_);
  const double correction1 = 1.0 - std::pow(spec_.beta1, steps);
  const double correction2 = std::sqrt(1.0 - std::pow(spec_.beta2, steps));
  const auto keep = static_cast<float>(1.0 - rate * spec_.weight_decay);
  const auto b1 = static_cast<float>(1.0 - spec_.beta1);
  const auto b2 = static_cast<float>(spec_.beta2);
  const auto b2_rest = static_cast<float>(1.0 - spec_.beta2);
  const auto root_scale = static_cast<float>(1.0 / correction2);
  const auto epsilon = static_cast<float>(spec_.epsilon);
  const auto rate1 = static_cast<float>(rate / correction1);
  float* first = state_.data();
  float* second = state_.data() + size_;
  for (std::size_t i = 0; i < size_; ++i) {
    const float g = gradients[i];
    first[i] += (g - first[i]) * b1;
    second[i] = second[i] * b2 + g * g * b2_rest;
    const float kept = decay_[i] != 0 ? parameters[i] * keep : parameters[i];
    parameters[i] = kept - rate1 * (first[i] / (std::sqrt(second[i]) * root_scale + epsilon));
  }
}

void Optimizer::sgd(std::span<float> parameters, std::span<const float> gradients, double rate) {
  const auto decay = static_cast<float>(spec_.weight_decay);
  const auto momentum = static_cast<float>(spec_.momentum);
  const auto step_size = static_cast<float>(rate);
  for (std::size_t i = 0; i < size_; ++i) {
    float g = gradients[i];
    if (decay_[i] != 0) g += decay * parameters[i];
    if (!state_.empty()) {
      state_[i] = steps_ == 1 ? g : momentum * state_[i] + g;
      g = spec_.nesterov ? g + momentum * state_[i] : state_[i];
    }
    parameters[i] -= step_size * g;
  }
}

Status Optimizer::load(std::uint64_t steps, std::span<const float> state) {
  if (state.size() != state_.size()) {
    return invalid(format("optimizer state of {} floats does not fit: {} with {} parameters keeps {}", state.size(), to_string(spec_.kind),
                          size_, state_.size()));
  }
  steps_ = steps;
  std::ranges::copy(state, state_.begin());
  return {};
}

}  // namespace falaj::kernels
