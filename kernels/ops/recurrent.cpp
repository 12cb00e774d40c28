// Recurrent layers: RNN GRU LSTM, in one or both directions, with sequence lengths, initial states, clipping and a choice of
// activations. Computed in double.
#include <algorithm>
#include <cmath>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

struct Activate {
  std::string name;
  double alpha = 0, beta = 0;
  [[nodiscard]] double operator()(double x) const {
    if (name == "Sigmoid") return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
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
};

struct Layer {
  int gates = 1;  // RNN 1, GRU 3 (z r h), LSTM 4 (i o f c)
  std::int64_t steps = 0, batch = 0, width = 0, hidden = 0, directions = 1;
  bool backward = false;  // the first direction
  bool batch_first = false, linear_before_reset = false, input_forget = false;
  double clip = 0;
  std::vector<Activate> activations;  // for each direction
  bool bias = false, lengths = false, wide_lengths = false, h0 = false, c0 = false, peepholes = false;

  [[nodiscard]] std::size_t functions() const { return gates == 1 ? 1 : (gates == 3 ? 2 : 3); }
};

Status read_activations(const OpCall& call, Layer& l) {
  std::vector<std::string> standard = l.gates == 1   ? std::vector<std::string>{"Tanh"}
                                      : l.gates == 3 ? std::vector<std::string>{"Sigmoid", "Tanh"}
                                                     : std::vector<std::string>{"Sigmoid", "Tanh", "Tanh"};
  auto both = standard;
  if (l.directions == 2) both.insert(both.end(), standard.begin(), standard.end());
  FALAJ_ASSIGN(auto names, attr_strings(call.node, "activations", both));
  FALAJ_ASSIGN(auto alphas, attr_floats(call.node, "activation_alpha", std::vector<float>{}));
  FALAJ_ASSIGN(auto betas, attr_floats(call.node, "activation_beta", std::vector<float>{}));
  if (names.size() != both.size()) return invalid(format("{} activations are given; {} are needed", names.size(), both.size()));
  struct Known {
    std::string_view name;
    bool alpha, beta;
    double a, b;
  };
  constexpr Known kKnown[] = {
      {"Sigmoid", false, false, 0, 0},  {"Tanh", false, false, 0, 0},          {"Relu", false, false, 0, 0},
      {"Affine", true, true, 1, 0},     {"LeakyRelu", true, false, 0.01, 0},   {"ThresholdedRelu", true, false, 1, 0},
      {"ScaledTanh", true, true, 1, 1}, {"HardSigmoid", true, true, 0.2, 0.5}, {"Elu", true, false, 1, 0},
      {"Softsign", false, false, 0, 0}, {"Softplus", false, false, 0, 0}};
  std::size_t next_alpha = 0;
  std::size_t next_beta = 0;
  for (const auto& name : names) {
    auto known = std::ranges::find(kKnown, std::string_view(name), &Known::name);
    if (known == std::end(kKnown)) return Error{ErrorCode::unimplemented, format("activation '{}' is not supported", name)};
    Activate f{name, known->a, known->b};
    if (known->alpha && next_alpha < alphas.size()) f.alpha = static_cast<double>(alphas[next_alpha++]);
    if (known->beta && next_beta < betas.size()) f.beta = static_cast<double>(betas[next_beta++]);
    l.activations.push_back(std::move(f));
  }
  return {};
}

Result<Layer> layer(const OpCall& call) {
  Layer l;
  l.gates = call.node.op == "RNN" ? 1 : (call.node.op == "GRU" ? 3 : 4);
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
  if (x.rank() != 3 || w.rank() != 3 || r.rank() != 3) return invalid("input and weights must have 3 dimensions");
  l.batch_first = layout != 0;
  l.linear_before_reset = linear != 0;
  l.input_forget = forget != 0;
  l.backward = direction == "reverse";
  l.directions = direction == "bidirectional" ? 2 : 1;
  l.steps = x[l.batch_first ? 1 : 0];
  l.batch = x[l.batch_first ? 0 : 1];
  l.width = x[2];
  l.hidden = r[2];
  FALAJ_ASSIGN(auto hidden, attr_int(call.node, "hidden_size", l.hidden));
  std::int64_t rows = l.gates * l.hidden;
  if (hidden != l.hidden || w != Shape{l.directions, rows, l.width} || r != Shape{l.directions, rows, l.hidden})
    return invalid(format("weights {} and {} do not fit an input of {}", to_string(w), to_string(r), to_string(x)));
  l.bias = call.has(3);
  l.lengths = call.has(4);
  l.h0 = call.has(5);
  l.c0 = call.has(6);
  l.peepholes = call.has(7);
  Shape state = l.batch_first ? Shape{l.batch, l.directions, l.hidden} : Shape{l.directions, l.batch, l.hidden};
  auto fits = [&](std::size_t i, const Shape& wanted) { return !call.has(i) || call.in(i).shape == wanted; };
  if (!fits(3, {l.directions, 2 * rows}) || !fits(4, {l.batch}) || !fits(5, state) || !fits(6, state) ||
      !fits(7, {l.directions, 3 * l.hidden}))
    return invalid("a bias, length or initial state does not fit");
  if (l.lengths && !is_signed_int(call.in(4).dtype)) return invalid("sequence_lens must be int32");
  l.wide_lengths = l.lengths && call.in(4).dtype == DType::i64;
  FALAJ_TRY(read_activations(call, l));
  return l;
}

Status infer_recurrent(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  for (std::size_t i : {1U, 2U, 3U, 5U, 6U, 7U}) {
    if (call.has(i)) FALAJ_TRY(check_same_dtype(call, 0, i));
  }
  FALAJ_ASSIGN(auto l, layer(call));
  Shape all = l.batch_first ? Shape{l.batch, l.steps, l.directions, l.hidden} : Shape{l.steps, l.directions, l.batch, l.hidden};
  Shape last = l.batch_first ? Shape{l.batch, l.directions, l.hidden} : Shape{l.directions, l.batch, l.hidden};
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, all));
  FALAJ_TRY(set_output(call, 1, call.in(0).dtype, last));
  return set_output(call, 2, call.in(0).dtype, last);
}

// One direction of one sample.
class Cell {
 public:
  Cell(const Layer& l, const Io& io, std::int64_t direction)
      : l_(l), f_(l.activations.data() + static_cast<std::size_t>(direction) * l.functions()) {
    std::int64_t rows = l.gates * l.hidden;
    w_ = io.input<double>(1) + direction * rows * l.width;
    r_ = io.input<double>(2) + direction * rows * l.hidden;
    bias_ = l.bias ? io.input<double>(3) + direction * 2 * rows : nullptr;
    peepholes_ = l.peepholes ? io.input<double>(7) + direction * 3 * l.hidden : nullptr;
  }

  void step(const double* x, std::vector<double>& h, std::vector<double>& c) {
    next_ = h;
    switch (l_.gates) {
      case 1:
        for (std::int64_t i = 0; i < l_.hidden; ++i) at(next_, i) = f_[0](clipped(input(0, i, x) + hidden(0, i, h)));
        break;
      case 3:
        gru(x, h);
        break;
      default:
        lstm(x, h, c);
        break;
    }
    h.swap(next_);
  }

 private:
  static double& at(std::vector<double>& v, std::int64_t i) { return v[static_cast<std::size_t>(i)]; }
  [[nodiscard]] double clipped(double v) const { return l_.clip > 0 ? std::clamp(v, -l_.clip, l_.clip) : v; }
  [[nodiscard]] double input(std::int64_t gate, std::int64_t i, const double* x) const {
    std::int64_t row = gate * l_.hidden + i;
    double sum = bias_ == nullptr ? 0 : bias_[row];
    for (std::int64_t k = 0; k < l_.width; ++k) sum += w_[row * l_.width + k] * x[k];
    return sum;
  }
  [[nodiscard]] double hidden(std::int64_t gate, std::int64_t i, const std::vector<double>& h) const {
    std::int64_t row = gate * l_.hidden + i;
    double sum = bias_ == nullptr ? 0 : bias_[l_.gates * l_.hidden + row];
    for (std::int64_t k = 0; k < l_.hidden; ++k) sum += r_[row * l_.hidden + k] * h[static_cast<std::size_t>(k)];
    return sum;
  }
  void gru(const double* x, std::vector<double>& h) {
    std::vector<double> reset(h.size());
    std::vector<double> gated(h.size());
    for (std::int64_t i = 0; i < l_.hidden; ++i) {
      at(reset, i) = f_[0](clipped(input(1, i, x) + hidden(1, i, h)));
      at(gated, i) = at(reset, i) * at(h, i);
    }
    for (std::int64_t i = 0; i < l_.hidden; ++i) {
      double update = f_[0](clipped(input(0, i, x) + hidden(0, i, h)));
      double candidate = l_.linear_before_reset ? at(reset, i) * hidden(2, i, h) : hidden(2, i, gated);
      at(next_, i) = (1 - update) * f_[1](clipped(input(2, i, x) + candidate)) + update * at(h, i);
    }
  }
  void lstm(const double* x, std::vector<double>& h, std::vector<double>& c) {
    for (std::int64_t i = 0; i < l_.hidden; ++i) {
      auto peep = [&](std::int64_t k, double cell) { return peepholes_ == nullptr ? 0 : peepholes_[k * l_.hidden + i] * cell; };
      double before = at(c, i);
      double in = f_[0](clipped(input(0, i, x) + hidden(0, i, h) + peep(0, before)));
      double forget = l_.input_forget ? 1 - in : f_[0](clipped(input(2, i, x) + hidden(2, i, h) + peep(2, before)));
      double candidate = f_[1](clipped(input(3, i, x) + hidden(3, i, h)));
      at(c, i) = forget * before + in * candidate;
      double out = f_[0](clipped(input(1, i, x) + hidden(1, i, h) + peep(1, at(c, i))));
      at(next_, i) = out * f_[2](at(c, i));
    }
  }

  const Layer& l_;
  const Activate* f_;
  const double* w_;
  const double* r_;
  const double* bias_;
  const double* peepholes_;
  std::vector<double> next_;
};

void run_layer(const Layer& l, const Io& io, std::size_t outputs) {
  auto state_at = [&](std::int64_t d, std::int64_t b) { return (l.batch_first ? b * l.directions + d : d * l.batch + b) * l.hidden; };
  auto output = [&](std::size_t i) { return i < outputs ? io.output<double>(i) : nullptr; };
  auto size = static_cast<std::size_t>(l.hidden);
  if (auto* y = output(0)) std::fill_n(y, l.steps * l.directions * l.batch * l.hidden, 0.0);
  for (std::int64_t d = 0; d < l.directions; ++d) {
    bool backward = d == 1 || l.backward;
    Cell cell(l, io, d);
    for (std::int64_t b = 0; b < l.batch; ++b) {
      std::vector<double> h(size, 0.0);
      std::vector<double> c(size, 0.0);
      if (l.h0) std::copy_n(io.input<double>(5) + state_at(d, b), size, h.begin());
      if (l.c0) std::copy_n(io.input<double>(6) + state_at(d, b), size, c.begin());
      std::int64_t length = l.lengths ? index_at(io, 4, l.wide_lengths, b) : l.steps;
      if (length < 0 || length > l.steps) return io.fail(format("length {} of sequence {} is outside [0, {}]", length, b, l.steps));
      for (std::int64_t k = 0; k < length; ++k) {
        std::int64_t t = backward ? length - 1 - k : k;
        cell.step(io.input<double>(0) + (l.batch_first ? b * l.steps + t : t * l.batch + b) * l.width, h, c);
        std::int64_t to = l.batch_first ? (b * l.steps + t) * l.directions + d : (t * l.directions + d) * l.batch + b;
        if (auto* y = output(0)) std::ranges::copy(h, y + to * l.hidden);
      }
      if (auto* y = output(1)) std::ranges::copy(h, y + state_at(d, b));
      if (auto* y = output(2)) std::ranges::copy(c, y + state_at(d, b));
    }
  }
}

Result<KernelPtr> make_recurrent(const KernelCall& c) {
  FALAJ_ASSIGN(auto l, layer(c));
  return dispatch<double>(
      c.in(0).dtype, [&]<class T>() { return make_kernel([l, outputs = c.outputs.size()](const Io& io) { run_layer(l, io, outputs); }); });
}

constexpr OpDef kOps[] = {
    {kOnnx, "RNN", 3, 6, 1, 2, infer_recurrent, make_recurrent},
    {kOnnx, "GRU", 3, 6, 1, 2, infer_recurrent, make_recurrent},
    {kOnnx, "LSTM", 3, 8, 1, 3, infer_recurrent, make_recurrent},
};

}  // namespace

std::span<const OpDef> recurrent_ops() { return kOps; }

}  // namespace falaj::kernels
