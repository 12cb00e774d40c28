#include "kernels/train/optimizer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "kernels/collective/float_mode.hpp"
#include "kernels/cpu/adam.hpp"
#include "kernels/team.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

namespace {
struct Name {
  OptimizerKind kind;
  std::string_view text;
};
constexpr std::size_t kPiece = std::size_t{1} << 14;  // elements that are worth a thread's turn

template <class Part>
void shared(Team* team, std::size_t parts, Part part) {
  if (team != nullptr) return team->run(parts, part);
  for (std::size_t i = 0; i < parts; ++i) part(i);
}

constexpr Name kNames[] = {
    {OptimizerKind::adamw, "adamw"}, {OptimizerKind::sgd, "sgd"}, {OptimizerKind::adam, "adam"}, {OptimizerKind::lamb, "lamb"}};
}  // namespace

std::string_view to_string(OptimizerKind kind) noexcept { return std::ranges::find(kNames, kind, &Name::kind)->text; }

Result<OptimizerKind> optimizer_kind(std::string_view text) {
  for (const Name& name : kNames) {
    if (name.text == text) return name.kind;
  }
  return invalid(format("optimizer '{}' is not known: use adamw, adam, sgd or lamb", text));
}

OptimizerSpec default_optimizer(OptimizerKind kind) {
  OptimizerSpec spec{.kind = kind};
  if (kind == OptimizerKind::sgd || kind == OptimizerKind::adam) spec.weight_decay = 0.0;
  if (kind == OptimizerKind::lamb) spec.epsilon = 1e-6;
  return spec;
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
  if (kind == ScheduleKind::step) return every == 0 ? 1.0 : std::pow(gamma, static_cast<double>((step - warmup_steps) / every));
  if (total_steps <= warmup_steps) return 1.0;
  const double done = std::min(1.0, static_cast<double>(step - warmup_steps) / static_cast<double>(total_steps - warmup_steps));
  return floor + (1.0 - floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

void Plateau::update(double loss) {
  if (!any || loss < best * (loss >= 0 ? 1.0 - threshold : 1.0 + threshold)) {
    any = true;
    best = loss;
    bad = 0;
  } else if (++bad > patience) {
    factor *= gamma;
    bad = 0;
  }
}

double global_norm(std::span<const float> values, Team* team, float scale) noexcept {
  // Pieces of equal length, each summed apart; so many at most that their sums fit here.
  constexpr std::size_t kPiecesMax = 64;
  const std::size_t length = std::max<std::size_t>((values.size() + kPiecesMax - 1) / kPiecesMax, kPiece);
  const std::size_t pieces = (values.size() + length - 1) / length;
  std::array<double, kPiecesMax> sums{};
  shared(team, pieces, [&](std::size_t i) {
    sums[i] = cpu::sum_of_squares(values.subspan(i * length).first(std::min(length, values.size() - i * length)), scale);
  });
  double sum = 0;
  for (const double s : sums) sum += s;
  return std::sqrt(sum);
}

Optimizer::Optimizer(OptimizerSpec spec, std::size_t parameters, std::vector<std::uint8_t> decay, std::vector<std::size_t> tensors)
    : spec_(spec), size_(parameters), decay_(std::move(decay)), tensors_(std::move(tensors)) {
  if (tensors_.empty()) tensors_ = {size_};
  if (spec_.kind != OptimizerKind::sgd) {
    state_.assign(2 * size_, 0.0F);
  } else if (spec_.momentum != 0) {
    state_.assign(size_, 0.0F);
  }
}

double Optimizer::step(std::span<float> parameters, std::span<float> gradients, double factor, Team* team, float scale) {
  const FlushDenormals mode;
  const double norm = global_norm(gradients, team, scale);
  if (!std::isfinite(norm)) return norm;
  const bool adam = spec_.kind == OptimizerKind::adamw || spec_.kind == OptimizerKind::adam;
  if (scale != 1.0F && !adam) {
    for (float& g : gradients) g *= scale;
    scale = 1.0F;
  }
  if (spec_.clip_norm > 0) {
    const double clip = spec_.clip_norm / (norm + 1e-6);  // PyTorch's clip_grad_norm_
    if (clip < 1.0) {
      for (float& g : gradients) g = g * scale * static_cast<float>(clip);
      scale = 1.0F;
    }
  }
  ++steps_;
  const double rate = spec_.learning_rate * factor;
  switch (spec_.kind) {
    case OptimizerKind::adamw:
    case OptimizerKind::adam:
      adamw(parameters, gradients, rate, scale, team);
      break;
    case OptimizerKind::sgd:
      sgd(parameters, gradients, rate);
      break;
    case OptimizerKind::lamb:
      lamb(parameters, gradients, rate);
      break;
  }
  return norm;
}

void Optimizer::adamw(std::span<float> parameters, std::span<const float> gradients, double rate, float scale, Team* team) {
  const auto steps = static_cast<double>(steps_);
  const double correction1 = 1.0 - std::pow(spec_.beta1, steps);
  const double correction2 = std::sqrt(1.0 - std::pow(spec_.beta2, steps));
  const bool decoupled = spec_.kind == OptimizerKind::adamw;
  const cpu::AdamStep step{.scale = scale,
                           .keep = decoupled ? static_cast<float>(1.0 - rate * spec_.weight_decay) : 1.0F,
                           .added = decoupled ? 0.0F : static_cast<float>(spec_.weight_decay),
                           .beta1_rest = static_cast<float>(1.0 - spec_.beta1),
                           .beta2 = static_cast<float>(spec_.beta2),
                           .beta2_rest = static_cast<float>(1.0 - spec_.beta2),
                           .root_scale = static_cast<float>(1.0 / correction2),
                           .epsilon = static_cast<float>(spec_.epsilon),
                           .rate = static_cast<float>(rate / correction1)};
  const std::size_t length = std::max(kPiece, (size_ / 64 + 63) / 64 * 64);
  shared(team, (size_ + length - 1) / length, [&](std::size_t piece) {
    const std::size_t at = piece * length;
    cpu::adam(step, decay_.empty() ? nullptr : decay_.data() + at, gradients.data() + at, state_.data() + at, state_.data() + size_ + at,
              parameters.data() + at, std::min(length, size_ - at));
  });
}

// Each tensor moves by its own size: the step of Adam, with decay, scaled by |parameters| / |step|.
void Optimizer::lamb(std::span<float> parameters, std::span<const float> gradients, double rate) {
  const auto steps = static_cast<double>(steps_);
  const double correction1 = 1.0 - std::pow(spec_.beta1, steps);
  const double correction2 = std::sqrt(1.0 - std::pow(spec_.beta2, steps));
  float* first = state_.data();
  float* second = state_.data() + size_;
  std::vector<float> move;
  std::size_t begin = 0;
  for (const std::size_t count : tensors_) {
    move.resize(count);
    for (std::size_t k = 0; k < count; ++k) {
      const std::size_t i = begin + k;
      const float g = gradients[i];
      first[i] += (g - first[i]) * static_cast<float>(1.0 - spec_.beta1);
      second[i] = second[i] * static_cast<float>(spec_.beta2) + g * g * static_cast<float>(1.0 - spec_.beta2);
      const double root = std::sqrt(static_cast<double>(second[i])) / correction2;
      const double decay = decays(i) ? spec_.weight_decay * static_cast<double>(parameters[i]) : 0.0;
      move[k] = static_cast<float>(static_cast<double>(first[i]) / correction1 / (root + spec_.epsilon) + decay);
    }
    const double size = global_norm(parameters.subspan(begin, count));
    const double length = global_norm(move);
    const auto scale = static_cast<float>(size > 0 && length > 0 ? rate * size / length : rate);
    for (std::size_t k = 0; k < count; ++k) parameters[begin + k] -= scale * move[k];
    begin += count;
  }
}

void Optimizer::sgd(std::span<float> parameters, std::span<const float> gradients, double rate) {
  const auto decay = static_cast<float>(spec_.weight_decay);
  const auto momentum = static_cast<float>(spec_.momentum);
  const auto step_size = static_cast<float>(rate);
  for (std::size_t i = 0; i < size_; ++i) {
    float g = gradients[i];
    if (decays(i)) g += decay * parameters[i];
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
