// Recurrent layers: RNN GRU LSTM, in one or both directions, with sequence lengths, initial states, clipping and a choice of
// activations; their steps, and the gradient of these. Computed in double.
#include "kernels/ops/recurrent.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }

struct Known {
  std::string_view name;
  bool alpha, beta;
  double a, b;
};
constexpr Known kKnown[] = {{"Sigmoid", false, false, 0, 0},  {"Tanh", false, false, 0, 0},          {"Relu", false, false, 0, 0},
                            {"Affine", true, true, 1, 0},     {"LeakyRelu", true, false, 0.01, 0},   {"ThresholdedRelu", true, false, 1, 0},
                            {"ScaledTanh", true, true, 1, 1}, {"HardSigmoid", true, true, 0.2, 0.5}, {"Elu", true, false, 1, 0},
                            {"Softsign", false, false, 0, 0}, {"Softplus", false, false, 0, 0}};
const Known* known(std::string_view name) {
  const auto* found = std::ranges::find(kKnown, name, &Known::name);
  return found == std::end(kKnown) ? nullptr : found;
}

Status read_functions(const OpCall& call, Recurrent& l) {
  const std::vector<std::string> standard = l.gates == 1   ? std::vector<std::string>{"Tanh"}
                                            : l.gates == 3 ? std::vector<std::string>{"Sigmoid", "Tanh"}
                                                           : std::vector<std::string>{"Sigmoid", "Tanh", "Tanh"};
  auto both = standard;
  if (l.directions == 2) both.insert(both.end(), standard.begin(), standard.end());
  FALAJ_ASSIGN(auto names, attr_strings(call.node, "activations", both));
  FALAJ_ASSIGN(auto alphas, attr_floats(call.node, "activation_alpha", std::vector<float>{}));
  FALAJ_ASSIGN(auto betas, attr_floats(call.node, "activation_beta", std::vector<float>{}));
  if (names.size() != both.size()) return invalid(format("{} activations are given; {} are needed", names.size(), both.size()));
  std::size_t next_alpha = 0;
  std::size_t next_beta = 0;
  for (const auto& name : names) {
    const Known* row = known(name);
    if (row == nullptr) return Error{ErrorCode::unimplemented, format("activation '{}' is not supported", name)};
    RecurrentFunction f{name, row->a, row->b};
    if (row->alpha && next_alpha < alphas.size()) f.alpha = static_cast<double>(alphas[next_alpha++]);
    if (row->beta && next_beta < betas.size()) f.beta = static_cast<double>(betas[next_beta++]);
    l.functions.push_back(std::move(f));
  }
  return {};
}

}  // namespace

double RecurrentFunction::operator()(double x) const {
  if (name == "Sigmoid") return sigmoid(x);
  if (name == "Tanh") return std::tanh(x);
  if (name == "Relu") return std::max(x, 0.0);
  if (name == "Affine") return alpha * x + beta;
  if (name == "LeakyRelu") return x < 0 ? alpha * x : x;
  if (name == "ThresholdedRelu") return x > alpha ? x : 0;
  if (name == "ScaledTanh") return alpha * std::tanh(beta * x);
  if (name == "HardSigmoid") return std::clamp(alpha * x + beta, 0.0, 1.0);
  if (name == "Elu") return x < 0 ? alpha * std::expm1(x) : x;
  if (name == "Softsign") return x / (1 + std::abs(x));
  return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));  // Softplus
}

double RecurrentFunction::slope(double x) const {
  const auto tanh_slope = [](double at) { return 1 - std::tanh(at) * std::tanh(at); };
  if (name == "Sigmoid") return sigmoid(x) * (1 - sigmoid(x));
  if (name == "Tanh") return tanh_slope(x);
  if (name == "Relu") return x > 0 ? 1 : 0;
  if (name == "Affine") return alpha;
  if (name == "LeakyRelu") return x < 0 ? alpha : 1;
  if (name == "ThresholdedRelu") return x > alpha ? 1 : 0;
  if (name == "ScaledTanh") return alpha * beta * tanh_slope(beta * x);
  if (name == "HardSigmoid") return alpha * x + beta > 0 && alpha * x + beta < 1 ? alpha : 0;
  if (name == "Elu") return x < 0 ? alpha * std::exp(x) : 1;
  if (name == "Softsign") return 1 / ((1 + std::abs(x)) * (1 + std::abs(x)));
  return sigmoid(x);  // Softplus
}

void put_functions(Attributes& attributes, std::span<const RecurrentFunction> functions) {
  std::vector<std::string> names;
  std::vector<float> alphas;
  std::vector<float> betas;
  for (const auto& f : functions) {
    names.push_back(f.name);
    if (known(f.name)->alpha) alphas.push_back(static_cast<float>(f.alpha));
    if (known(f.name)->beta) betas.push_back(static_cast<float>(f.beta));
  }
  attributes.insert_or_assign("activations", std::move(names));
  attributes.insert_or_assign("activation_alpha", std::move(alphas));
  attributes.insert_or_assign("activation_beta", std::move(betas));
}

std::int64_t Recurrent::length(const Io& io, std::int64_t b) const {
  if (!lengths) return steps;
  const std::int64_t n = index_at(io, 4, wide_lengths, b);
  if (n >= 0 && n <= steps) return n;
  io.fail(format("length {} of sequence {} is outside [0, {}]", n, b, steps));
  return -1;
}

Result<Recurrent> recurrent_spec(const OpCall& call) {
  Recurrent l;
  const std::string& op = call.node.op;
  const bool steps_alone = op.find("Steps") != std::string::npos;
  l.gates = op.starts_with("RNN") ? 1 : (op.starts_with("GRU") ? 3 : 4);
  FALAJ_ASSIGN(auto direction, attr_string(call.node, "direction", "forward"));
  FALAJ_ASSIGN(auto layout, attr_int(call.node, "layout", 0));
  FALAJ_ASSIGN(l.clip, attr_float(call.node, "clip", 0.0));
  FALAJ_ASSIGN(auto linear, attr_int(call.node, "linear_before_reset", 0));
  FALAJ_ASSIGN(auto forget, attr_int(call.node, "input_forget", 0));
  if (direction != "forward" && direction != "reverse" && direction != "bidirectional")
    return invalid(format("attribute 'direction' is '{}'", direction));
  const Shape& x = call.in(0).shape;
  const Shape& w = call.in(1).shape;
  const Shape& r = call.in(2).shape;
  if (x.rank() != 3 || w.rank() != (steps_alone ? 2 : 3) || r.rank() != 3) return invalid("input and weights must have 3 dimensions");
  l.batch_first = layout != 0;
  l.linear_before_reset = l.gates == 3 && linear != 0;
  l.input_forget = forget != 0;
  l.reverse = direction == "reverse";
  l.directions = direction == "bidirectional" ? 2 : 1;
  if (steps_alone && l.directions != 1) return invalid("steps go one way");
  l.steps = x[l.batch_first ? 1 : 0];
  l.batch = x[l.batch_first ? 0 : 1];
  l.width = x[2];
  l.hidden = r[2];
  FALAJ_ASSIGN(auto hidden, attr_int(call.node, "hidden_size", l.hidden));
  const Shape wanted = steps_alone ? Shape{l.rows(), l.sums()} : Shape{l.directions, l.sums(), l.width};
  if (hidden != l.hidden || w != wanted || r != Shape{l.directions, l.sums(), l.hidden})
    return invalid(format("weights {} and {} do not fit an input of {}", to_string(w), to_string(r), to_string(x)));
  l.bias = call.has(3);
  l.lengths = call.has(4);
  l.h0 = call.has(5);
  l.c0 = call.has(6);
  l.peepholes = call.has(7);
  Shape state = l.batch_first ? Shape{l.batch, l.directions, l.hidden} : Shape{l.directions, l.batch, l.hidden};
  auto fits = [&](std::size_t i, const Shape& shape) { return !call.has(i) || call.in(i).shape == shape; };
  if (!fits(3, {l.directions, 2 * l.sums()}) || !fits(4, {l.batch}) || !fits(5, state) || !fits(6, state) ||
      !fits(7, {l.directions, 3 * l.hidden}))
    return invalid("a bias, length or initial state does not fit");
  if (l.lengths && !is_signed_int(call.in(4).dtype)) return invalid("sequence_lens must be int32");
  l.wide_lengths = l.lengths && call.in(4).dtype == DType::i64;
  FALAJ_TRY(read_functions(call, l));
  return l;
}

namespace {

Shape output_shape(const Recurrent& l) {
  return l.batch_first ? Shape{l.batch, l.steps, l.directions, l.hidden} : Shape{l.steps, l.directions, l.batch, l.hidden};
}
Shape state_shape(const Recurrent& l) {
  return l.batch_first ? Shape{l.batch, l.directions, l.hidden} : Shape{l.directions, l.batch, l.hidden};
}

Result<Recurrent> checked_spec(const OpCall& call) {
  FALAJ_TRY(check_float(call, 0));
  for (std::size_t i : {1U, 2U, 3U, 5U, 6U, 7U}) {
    if (call.has(i)) FALAJ_TRY(check_same_dtype(call, 0, i));
  }
  return recurrent_spec(call);
}

Status infer_recurrent(InferCall& call) {
  FALAJ_ASSIGN(const auto l, checked_spec(call));
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, output_shape(l)));
  FALAJ_TRY(set_output(call, 1, call.in(0).dtype, state_shape(l)));
  return set_output(call, 2, call.in(0).dtype, state_shape(l));
}

Status infer_steps_grad(InferCall& call) {
  if (call.inputs.size() <= kRecurrentDc) return invalid("the places of the gradients are missing");
  FALAJ_ASSIGN(const auto l, checked_spec(call));
  const DType dtype = call.in(0).dtype;
  const auto fits = [&](std::size_t i, const Shape& shape) {
    return !call.has(i) || (call.in(i).dtype == dtype && call.in(i).shape == shape);
  };
  if (!fits(kRecurrentDy, output_shape(l)) || !fits(kRecurrentDh, state_shape(l)) || !fits(kRecurrentDc, state_shape(l)))
    return invalid("a gradient does not fit what it is the gradient of");
  const Shape sums{l.rows(), l.sums()};
  const Shape states{l.rows(), l.hidden};
  FALAJ_TRY(set_output(call, 0, dtype, sums));
  FALAJ_TRY(set_output(call, 1, dtype, l.linear_before_reset ? sums : states));
  FALAJ_TRY(set_output(call, 2, dtype, states));
  FALAJ_TRY(set_output(call, 3, dtype, state_shape(l)));
  FALAJ_TRY(set_output(call, 4, dtype, state_shape(l)));
  return set_output(call, 5, dtype, Shape{1, 3 * l.hidden});
}

using Row = std::vector<double>;
double& at(Row& v, std::int64_t i) { return v[static_cast<std::size_t>(i)]; }
double at(const Row& v, std::int64_t i) { return v[static_cast<std::size_t>(i)]; }

// What a step computed: what its gates' functions were given (before clipping) and gave, and the states after it.
struct Step {
  explicit Step(const Recurrent& l)
      : sum(static_cast<std::size_t>(l.sums())),
        gate(sum.size()),
        extra(static_cast<std::size_t>(l.hidden)),
        h(extra.size()),
        c(extra.size()) {}
  Row sum, gate;
  Row extra;  // of GRU: what the reset gate multiplies, or has multiplied
  Row h, c;
};

// One direction.
class Cell {
 public:
  Cell(const Recurrent& l, const Io& io, std::int64_t direction)
      : l_(l),
        f_(l.functions.data() + static_cast<std::size_t>(direction) * l.functions_each()),
        r_(io.input<double>(2) + direction * l.sums() * l.hidden),
        bias_(l.bias ? io.input<double>(3) + (direction * 2 + 1) * l.sums() : nullptr),
        peepholes_(l.peepholes ? io.input<double>(7) + direction * 3 * l.hidden : nullptr) {}

  // `z`: what the input adds to each gate's sum.
  void step(const double* z, const Row& h, const Row& c, Step& to) const {
    switch (l_.gates) {
      case 1:
        for (std::int64_t i = 0; i < l_.hidden; ++i) at(to.h, i) = gate(to, 0, i, f_[0], z[i] + recurrent(i, h));
        break;
      case 3:
        gru(z, h, to);
        break;
      default:
        lstm(z, h, c, to);
        break;
    }
  }

  // Gradients through a step that read `h` and `c`: dh and dc come in as those of the states after it and leave as those of the states
  // before; dz [gates * hidden], dq likewise, of what R and its bias added; dp [3 * hidden] is added to, null: not wanted.
  void back(const Row& h, const Row& c, const Step& s, Row& dh, Row& dc, double* dz, double* dq, double* dp) const {
    switch (l_.gates) {
      case 1:
        for (std::int64_t i = 0; i < l_.hidden; ++i) dz[i] = at(dh, i) * slope(s, 0, i, f_[0]);
        std::ranges::fill(dh, 0.0);
        break;
      case 3:
        return gru_back(h, s, dh, dz, dq);
      default:
        lstm_back(c, s, dh, dc, dz, dp);
        break;
    }
    std::copy_n(dz, l_.sums(), dq);
    for (std::int64_t row = 0; row < l_.sums(); ++row) spread(row, dq[row], dh);
  }

 private:
  [[nodiscard]] double gate(Step& s, std::int64_t k, std::int64_t i, const RecurrentFunction& f, double sum) const {
    at(s.sum, k * l_.hidden + i) = sum;
    return at(s.gate, k * l_.hidden + i) = f(l_.clip > 0 ? std::clamp(sum, -l_.clip, l_.clip) : sum);
  }
  [[nodiscard]] double slope(const Step& s, std::int64_t k, std::int64_t i, const RecurrentFunction& f) const {
    const double sum = at(s.sum, k * l_.hidden + i);
    return l_.clip > 0 && std::abs(sum) > l_.clip ? 0 : f.slope(sum);
  }
  [[nodiscard]] double recurrent(std::int64_t row, const Row& h) const {
    double sum = bias_ == nullptr ? 0 : bias_[row];
    for (std::int64_t k = 0; k < l_.hidden; ++k) sum += r_[row * l_.hidden + k] * at(h, k);
    return sum;
  }
  void spread(std::int64_t row, double dq, Row& dh) const {
    for (std::int64_t k = 0; k < l_.hidden; ++k) at(dh, k) += r_[row * l_.hidden + k] * dq;
  }

  void gru(const double* z, const Row& h, Step& s) const {
    const std::int64_t n = l_.hidden;
    for (std::int64_t i = 0; i < n; ++i) {
      const double reset = gate(s, 1, i, f_[0], z[n + i] + recurrent(n + i, h));
      at(s.extra, i) = l_.linear_before_reset ? recurrent(2 * n + i, h) : reset * at(h, i);
    }
    for (std::int64_t i = 0; i < n; ++i) {
      const double update = gate(s, 0, i, f_[0], z[i] + recurrent(i, h));
      const double candidate = l_.linear_before_reset ? at(s.gate, n + i) * at(s.extra, i) : recurrent(2 * n + i, s.extra);
      at(s.h, i) = (1 - update) * gate(s, 2, i, f_[1], z[2 * n + i] + candidate) + update * at(h, i);
    }
  }
  void gru_back(const Row& h, const Step& s, Row& dh, double* dz, double* dq) const {
    const std::int64_t n = l_.hidden;
    Row before(dh.size());
    Row gated(dh.size());  // gradient of the reset gate's product
    for (std::int64_t i = 0; i < n; ++i) {
      const double update = at(s.gate, i);
      dz[i] = at(dh, i) * (at(h, i) - at(s.gate, 2 * n + i)) * slope(s, 0, i, f_[0]);
      dz[2 * n + i] = at(dh, i) * (1 - update) * slope(s, 2, i, f_[1]);
      at(before, i) = at(dh, i) * update;
    }
    if (l_.linear_before_reset) {
      for (std::int64_t i = 0; i < n; ++i) {
        at(gated, i) = dz[2 * n + i];
        dq[2 * n + i] = dz[2 * n + i] * at(s.gate, n + i);
        spread(2 * n + i, dq[2 * n + i], before);
      }
    } else {
      for (std::int64_t i = 0; i < n; ++i) {
        dq[2 * n + i] = dz[2 * n + i];
        spread(2 * n + i, dz[2 * n + i], gated);
      }
      for (std::int64_t i = 0; i < n; ++i) at(before, i) += at(gated, i) * at(s.gate, n + i);
    }
    for (std::int64_t i = 0; i < n; ++i)
      dz[n + i] = at(gated, i) * (l_.linear_before_reset ? at(s.extra, i) : at(h, i)) * slope(s, 1, i, f_[0]);
    std::copy_n(dz, 2 * n, dq);
    for (std::int64_t row = 0; row < 2 * n; ++row) spread(row, dq[row], before);
    dh.swap(before);
  }

  [[nodiscard]] double peephole(std::int64_t k, std::int64_t i) const { return peepholes_ == nullptr ? 0 : peepholes_[k * l_.hidden + i]; }
  void lstm(const double* z, const Row& h, const Row& c, Step& s) const {
    const std::int64_t n = l_.hidden;
    for (std::int64_t i = 0; i < n; ++i) {
      const double before = at(c, i);
      const double in = gate(s, 0, i, f_[0], z[i] + recurrent(i, h) + peephole(0, i) * before);
      const double forget =
          l_.input_forget ? 1 - in : gate(s, 2, i, f_[0], z[2 * n + i] + recurrent(2 * n + i, h) + peephole(2, i) * before);
      at(s.c, i) = forget * before + in * gate(s, 3, i, f_[1], z[3 * n + i] + recurrent(3 * n + i, h));
      at(s.h, i) = gate(s, 1, i, f_[0], z[n + i] + recurrent(n + i, h) + peephole(1, i) * at(s.c, i)) * f_[2](at(s.c, i));
    }
  }
  void lstm_back(const Row& c, const Step& s, Row& dh, Row& dc, double* dz, double* dp) const {
    const std::int64_t n = l_.hidden;
    for (std::int64_t i = 0; i < n; ++i) {
      const double in = at(s.gate, i);
      dz[n + i] = at(dh, i) * f_[2](at(s.c, i)) * slope(s, 1, i, f_[0]);
      const double cell = at(dc, i) + at(dh, i) * at(s.gate, n + i) * f_[2].slope(at(s.c, i)) + dz[n + i] * peephole(1, i);
      const double forget = cell * at(c, i);
      dz[i] = (cell * at(s.gate, 3 * n + i) - (l_.input_forget ? forget : 0)) * slope(s, 0, i, f_[0]);
      dz[2 * n + i] = l_.input_forget ? 0 : forget * slope(s, 2, i, f_[0]);
      dz[3 * n + i] = cell * in * slope(s, 3, i, f_[1]);
      at(dc, i) = cell * (l_.input_forget ? 1 - in : at(s.gate, 2 * n + i)) + dz[i] * peephole(0, i) + dz[2 * n + i] * peephole(2, i);
      at(dh, i) = 0;
      if (dp == nullptr) continue;
      dp[i] += dz[i] * at(c, i);
      dp[n + i] += dz[n + i] * at(s.c, i);
      dp[2 * n + i] += dz[2 * n + i] * at(c, i);
    }
  }

  const Recurrent& l_;
  const RecurrentFunction* f_;
  const double* r_;
  const double* bias_;
  const double* peepholes_;
};

// Initial states of a sequence; zeros where there are none.
Row initial(const Recurrent& l, const Io& io, std::size_t input, bool given, std::int64_t b, std::int64_t direction) {
  Row state(static_cast<std::size_t>(l.hidden), 0.0);
  if (given) std::copy_n(io.input<double>(input) + l.state(b, direction), l.hidden, state.begin());
  return state;
}

// What the input adds to the sums of row `row`: given to the steps, computed by a layer.
class FromInput {
 public:
  FromInput(const Recurrent& l, const Io& io, bool given, std::int64_t direction)
      : l_(l),
        z_(given ? io.input<double>(1) : nullptr),
        x_(io.input<double>(0)),
        w_(given ? nullptr : io.input<double>(1) + direction * l.sums() * l.width),
        bias_(l.bias ? io.input<double>(3) + direction * 2 * l.sums() : nullptr),
        sums_(static_cast<std::size_t>(l.sums())) {}
  const double* of(std::int64_t row) {
    if (z_ != nullptr) return z_ + row * l_.sums();
    for (std::int64_t i = 0; i < l_.sums(); ++i) {
      double sum = bias_ == nullptr ? 0 : bias_[i];
      for (std::int64_t k = 0; k < l_.width; ++k) sum += w_[i * l_.width + k] * x_[row * l_.width + k];
      at(sums_, i) = sum;
    }
    return sums_.data();
  }

 private:
  const Recurrent& l_;
  const double* z_;
  const double* x_;
  const double* w_;
  const double* bias_;
  Row sums_;
};

void run_layer(const Recurrent& l, const Io& io, std::size_t outputs, bool steps_alone) {
  auto output = [&](std::size_t i) { return i < outputs ? io.output<double>(i) : nullptr; };
  if (auto* y = output(0)) std::fill_n(y, l.rows() * l.directions * l.hidden, 0.0);
  for (std::int64_t d = 0; d < l.directions; ++d) {
    const Cell cell(l, io, d);
    FromInput input(l, io, steps_alone, d);
    Step to(l);
    for (std::int64_t b = 0; b < l.batch; ++b) {
      Row h = initial(l, io, 5, l.h0, b, d);
      Row c = initial(l, io, 6, l.c0, b, d);
      const std::int64_t length = l.length(io, b);
      for (std::int64_t k = 0; k < length; ++k) {
        const std::int64_t t = l.time(k, length, d);
        cell.step(input.of(l.row(t, b)), h, c, to);
        h = to.h;
        c = to.c;
        if (auto* y = output(0)) std::ranges::copy(h, y + l.output(t, b, d));
      }
      if (length < 0) return;
      if (auto* y = output(1)) std::ranges::copy(h, y + l.state(b, d));
      if (auto* y = output(2)) std::ranges::copy(c, y + l.state(b, d));
    }
  }
}

void run_steps_grad(const Recurrent& l, const Io& io, std::size_t outputs) {
  const auto output = [&](std::size_t i) { return i < outputs ? io.output<double>(i) : nullptr; };
  const auto zeros = [&](std::size_t i, std::int64_t n) {
    if (auto* y = output(i)) std::fill_n(y, n, 0.0);
  };
  zeros(0, l.rows() * l.sums());
  zeros(1, l.rows() * (l.linear_before_reset ? l.sums() : l.hidden));
  zeros(2, l.rows() * l.hidden);
  zeros(5, 3 * l.hidden);
  const Cell cell(l, io, 0);
  FromInput input(l, io, true, 0);
  Row dz(static_cast<std::size_t>(l.sums()));
  Row dq(dz.size());
  for (std::int64_t b = 0; b < l.batch; ++b) {
    const std::int64_t length = l.length(io, b);
    if (length < 0) return;
    // steps[k + 1] is what step k computed; steps[0] holds the initial states.
    std::vector<Step> steps(static_cast<std::size_t>(length + 1), Step(l));
    steps[0].h = initial(l, io, 5, l.h0, b, 0);
    steps[0].c = initial(l, io, 6, l.c0, b, 0);
    for (std::size_t k = 0; k + 1 < steps.size(); ++k)
      cell.step(input.of(l.row(l.time(static_cast<std::int64_t>(k), length, 0), b)), steps[k].h, steps[k].c, steps[k + 1]);
    Row dh = initial(l, io, kRecurrentDh, io.in[kRecurrentDh] != nullptr, b, 0);
    Row dc = initial(l, io, kRecurrentDc, io.in[kRecurrentDc] != nullptr, b, 0);
    for (std::size_t k = steps.size() - 1; k-- > 0;) {
      const std::int64_t t = l.time(static_cast<std::int64_t>(k), length, 0);
      const std::int64_t row = l.row(t, b);
      if (const auto* dy = io.input<double>(kRecurrentDy)) {
        for (std::int64_t i = 0; i < l.hidden; ++i) at(dh, i) += dy[l.output(t, b, 0) + i];
      }
      cell.back(steps[k].h, steps[k].c, steps[k + 1], dh, dc, dz.data(), dq.data(), output(5));
      if (auto* y = output(0)) std::ranges::copy(dz, y + row * l.sums());
      if (auto* y = output(1)) {
        if (l.linear_before_reset) {
          std::ranges::copy(dq, y + row * l.sums());
        } else {
          std::ranges::copy(steps[k + 1].extra, y + row * l.hidden);
        }
      }
      if (auto* y = output(2)) std::ranges::copy(steps[k].h, y + row * l.hidden);
    }
    if (auto* y = output(3)) std::ranges::copy(dh, y + l.state(b, 0));
    if (auto* y = output(4)) std::ranges::copy(dc, y + l.state(b, 0));
  }
}

Result<KernelPtr> make_recurrent(const KernelCall& c) {
  FALAJ_ASSIGN(auto l, recurrent_spec(c));
  const bool steps_alone = c.node.domain == kFalaj;
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([l, steps_alone, outputs = c.outputs.size()](const Io& io) { run_layer(l, io, outputs, steps_alone); });
  });
}
Result<KernelPtr> make_steps_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto l, recurrent_spec(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([l, outputs = c.outputs.size()](const Io& io) { run_steps_grad(l, io, outputs); });
  });
}

// append_gradients() writes a layer as its steps before it asks anybody.
Status grad_layer(GradientCall& /*g*/) { return failed("a recurrent layer was not written as its steps"); }

constexpr std::uint32_t kShapeOfFirst = 1;
constexpr OpDef kOps[] = {
    {kOnnx, "RNN", 3, 6, 1, 2, infer_recurrent, make_recurrent, grad_layer},
    {kOnnx, "GRU", 3, 6, 1, 2, infer_recurrent, make_recurrent, grad_layer},
    {kOnnx, "LSTM", 3, 8, 1, 3, infer_recurrent, make_recurrent, grad_layer},
    {kFalaj, "RNNSteps", 3, 8, 1, 3, infer_recurrent, make_recurrent, grad_recurrent_steps, Placement::own, kShapeOfFirst},
    {kFalaj, "GRUSteps", 3, 8, 1, 3, infer_recurrent, make_recurrent, grad_recurrent_steps, Placement::own, kShapeOfFirst},
    {kFalaj, "LSTMSteps", 3, 8, 1, 3, infer_recurrent, make_recurrent, grad_recurrent_steps, Placement::own, kShapeOfFirst},
    {kFalaj, "RNNStepsGrad", 3, 11, 1, 6, infer_steps_grad, make_steps_grad, nullptr, Placement::own, kShapeOfFirst},
    {kFalaj, "GRUStepsGrad", 3, 11, 1, 6, infer_steps_grad, make_steps_grad, nullptr, Placement::own, kShapeOfFirst},
    {kFalaj, "LSTMStepsGrad", 3, 11, 1, 6, infer_steps_grad, make_steps_grad, nullptr, Placement::own, kShapeOfFirst},
};

}  // namespace

std::span<const OpDef> recurrent_ops() { return kOps; }

}  // namespace falaj::kernels
