// Losses of ai.onnx: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss, with class weights, ignored labels and reductions.
#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

enum class Reduce : std::uint8_t { none, sum, mean };
struct Criterion {
  std::int64_t batch = 0, classes = 0, inner = 1;  // scores are [batch, classes, inner], labels [batch, inner]
  Shape labels;
  Reduce reduce = Reduce::mean;
  std::optional<std::int64_t> ignore;
  bool i64 = true, weighted = false;
};
Result<Criterion> criterion(const OpCall& call) {
  const Shape& x = call.in(0).shape;
  Criterion c;
  FALAJ_TRY(check_dtype(call, 1, {DType::i64, DType::i32}));
  if (x.rank() < 2 || x[1] < 1) return invalid(format("the scores {} need a batch and classes", to_string(x)));
  c.batch = x[0];
  c.classes = x[1];
  c.inner = x.elements(2, x.rank());
  c.labels = x;
  c.labels.erase(1);
  if (call.in(1).shape != c.labels)
    return invalid(format("the labels are {}; they must be {}", to_string(call.in(1).shape), to_string(c.labels)));
  c.weighted = call.has(2);
  if (c.weighted && call.in(2).shape != Shape{c.classes}) return invalid("one weight for each class is needed");
  c.i64 = call.in(1).dtype == DType::i64;
  FALAJ_ASSIGN(auto text, attr_string(call.node, "reduction", "mean"));
  if (text != "mean" && text != "sum" && text != "none") return invalid(format("attribute 'reduction' is '{}'", text));
  c.reduce = text == "mean" ? Reduce::mean : (text == "sum" ? Reduce::sum : Reduce::none);
  if (call.node.attributes.contains("ignore_index")) {
    FALAJ_ASSIGN(c.ignore, attr_int(call.node, "ignore_index"));
  }
  return c;
}

Status infer_criterion(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_ASSIGN(auto c, criterion(call));
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, c.reduce == Reduce::none ? c.labels : Shape{}));
  return set_output(call, 1, call.in(0).dtype, call.in(0).shape);
}

// From log-probabilities [batch, classes, inner].
void run_loss(const Criterion& c, const Io& io, const double* logs) {
  double total = 0;
  double weights = 0;
  for (std::int64_t i = 0; i < c.batch * c.inner; ++i) {
    std::int64_t label = index_at(io, 1, c.i64, i);
    double loss = 0;
    double weight = 0;
    if (!(c.ignore && *c.ignore == label)) {
      if (label < 0 || label >= c.classes) return io.fail(format("label {} at position {} is outside [0, {})", label, i, c.classes));
      weight = c.weighted ? io.input<double>(2)[label] : 1;
      loss = -weight * logs[(i / c.inner * c.classes + label) * c.inner + i % c.inner];
    }
    total += loss;
    weights += weight;
    if (c.reduce == Reduce::none) io.output<double>(0)[i] = loss;
  }
  if (c.reduce != Reduce::none) *io.output<double>(0) = c.reduce == Reduce::sum ? total : total / weights;
}

Result<KernelPtr> make_likelihood(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, criterion(call));
  return dispatch<double>(call.in(0).dtype, [&]<class T>() { return make_kernel([c](const Io& io) { run_loss(c, io, io.input<T>(0)); }); });
}
Result<KernelPtr> make_cross_entropy(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, criterion(call));
  auto bytes = static_cast<std::size_t>(call.in(0).shape.elements()) * sizeof(double);
  return dispatch<double>(call.in(0).dtype, [&]<class T>() {
    return make_kernel(
        [c, two = call.outputs.size() > 1](const Io& io) {
          auto* logs = reinterpret_cast<double*>(io.scratch);
          for (std::int64_t i = 0; i < c.batch * c.inner; ++i) {
            std::int64_t first = i / c.inner * c.classes * c.inner + i % c.inner;
            const double* x = io.input<double>(0) + first;
            double top = x[0];
            for (std::int64_t k = 1; k < c.classes; ++k) top = std::max(top, x[k * c.inner]);
            double sum = 0;
            for (std::int64_t k = 0; k < c.classes; ++k) sum += std::exp(x[k * c.inner] - top);
            for (std::int64_t k = 0; k < c.classes; ++k) logs[first + k * c.inner] = x[k * c.inner] - top - std::log(sum);
          }
          if (two && io.out[1] != nullptr) std::copy_n(logs, c.batch * c.classes * c.inner, io.output<double>(1));
          run_loss(c, io, logs);
        },
        bytes);
  });
}

constexpr OpDef kOps[] = {
    {kOnnx, "NegativeLogLikelihoodLoss", 2, 3, 1, 1, infer_criterion, make_likelihood},
    {kOnnx, "SoftmaxCrossEntropyLoss", 2, 3, 1, 2, infer_criterion, make_cross_entropy},
};

}  // namespace

std::span<const OpDef> criterion_ops() { return kOps; }

}  // namespace falaj::kernels
