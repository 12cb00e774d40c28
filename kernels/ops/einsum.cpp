// Einsum, and Det.
#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

constexpr std::size_t kLabelsMax = 24;

// Every label of the equation is one loop; an operand moves by its stride along each.
struct Contraction {
  std::vector<std::int64_t> sizes;                 // of the loops: the output's first, then those summed over
  std::vector<std::vector<std::int64_t>> strides;  // for each operand, for each loop
  std::size_t outer = 0;                           // loops of the output
  Shape out;
};

// The labels of one operand; the dimensions that "..." stands for are numbered from the back, as broadcasting has them.
Result<std::vector<std::string>> labels_of(std::string_view term, std::size_t rank) {
  std::vector<std::string> labels;
  std::size_t letters = static_cast<std::size_t>(std::ranges::count_if(term, [](char c) { return c != '.'; }));
  for (std::size_t i = 0; i < term.size(); ++i) {
    if (term[i] == '.') {
      if (term.substr(i, 3) != "..." || letters > rank) return invalid(format("the term '{}' does not fit {} dimensions", term, rank));
      for (std::size_t k = rank - letters; k-- > 0;) labels.push_back(format(".{}", k));
      i += 2;
    } else if (std::isalpha(static_cast<unsigned char>(term[i])) != 0) {
      labels.emplace_back(1, term[i]);
    } else {
      return invalid(format("the equation has the character '{}'", term[i]));
    }
  }
  if (labels.size() != rank) return invalid(format("the term '{}' does not fit {} dimensions", term, rank));
  return labels;
}

Result<Contraction> contraction(const OpCall& call) {
  FALAJ_ASSIGN(auto equation, attr_string(call.node, "equation"));
  std::erase(equation, ' ');
  std::size_t arrow = equation.find("->");
  std::string left = equation.substr(0, arrow);
  std::vector<std::string> terms;
  for (std::size_t at = 0; at <= left.size();) {
    std::size_t comma = std::min(left.find(',', at), left.size());
    terms.push_back(left.substr(at, comma - at));
    at = comma + 1;
  }
  if (terms.size() != call.inputs.size())
    return invalid(format("the equation has {} terms for {} inputs", terms.size(), call.inputs.size()));
  std::map<std::string, std::int64_t> sizes;
  std::map<std::string, int> seen;
  std::vector<std::vector<std::string>> labels;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const Shape& shape = call.in(i).shape;
    FALAJ_ASSIGN(auto own, labels_of(terms[i], shape.rank()));
    for (std::size_t d = 0; d < own.size(); ++d) {
      auto [at, fresh] = sizes.try_emplace(own[d], shape[d]);
      if (!fresh && at->second != shape[d] && at->second != 1 && shape[d] != 1)
        return invalid(format("label '{}' has sizes {} and {}", own[d], at->second, shape[d]));
      at->second = at->second == 1 ? shape[d] : at->second;
      ++seen[own[d]];
    }
    labels.push_back(std::move(own));
  }
  std::vector<std::string> order;
  std::size_t dots = 0;
  for (const auto& [label, size] : sizes) dots += label[0] == '.' ? 1 : 0;
  if (arrow != std::string::npos) {
    std::string right = equation.substr(arrow + 2);
    std::size_t letters = static_cast<std::size_t>(std::ranges::count_if(right, [](char c) { return c != '.'; }));
    FALAJ_ASSIGN(order, labels_of(right, letters + (right.find('.') != std::string::npos ? dots : 0)));
  } else {
    for (std::size_t k = dots; k-- > 0;) order.push_back(format(".{}", k));
    for (const auto& [label, count] : seen) {
      if (count == 1 && label[0] != '.') order.push_back(label);
    }
  }
  Contraction c;
  if (order.size() > kRankMax) return invalid("the result has too many dimensions");
  c.outer = order.size();
  for (const auto& label : order) {
    auto found = sizes.find(label);
    if (found == sizes.end() || std::ranges::count(order, label) > 1)
      return invalid(format("the result's label '{}' is in no term, or twice in the result", label));
    c.out.push_back(found->second);
  }
  for (const auto& [label, size] : sizes) {
    if (std::ranges::find(order, label) == order.end()) order.push_back(label);
  }
  if (order.size() > kLabelsMax) return invalid("the equation has too many labels");
  for (const auto& label : order) c.sizes.push_back(sizes.at(label));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    Strides own = row_major(call.in(i).shape);
    std::vector<std::int64_t> steps(order.size(), 0);
    for (std::size_t d = 0; d < labels[i].size(); ++d) {
      auto loop = static_cast<std::size_t>(std::ranges::find(order, labels[i][d]) - order.begin());
      if (call.in(i).shape[d] != 1) steps[loop] += own[d];
    }
    c.strides.push_back(std::move(steps));
  }
  return c;
}

Status infer_einsum(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  for (std::size_t i = 1; i < call.inputs.size(); ++i) FALAJ_TRY(check_same_dtype(call, 0, i));
  FALAJ_ASSIGN(auto c, contraction(call));
  return set_output(call, 0, call.in(0).dtype, c.out);
}

// f(place in the result, offsets in the operands) for each pair of a result's place and a step of its sum.
template <class F>
void for_each_term(const Contraction& c, F f) {
  std::int64_t outer = 1;
  std::int64_t inner = 1;
  for (std::size_t k = 0; k < c.sizes.size(); ++k) (k < c.outer ? outer : inner) *= c.sizes[k];
  std::vector<std::int64_t> base(c.strides.size());
  std::vector<std::int64_t> at(c.strides.size());
  for (std::int64_t o = 0; o < outer; ++o) {
    std::ranges::fill(base, 0);
    std::int64_t rest = o;
    for (std::size_t k = c.outer; k-- > 0;) {
      for (std::size_t i = 0; i < base.size(); ++i) base[i] += rest % c.sizes[k] * c.strides[i][k];
      rest /= c.sizes[k];
    }
    for (std::int64_t s = 0; s < inner; ++s) {
      at = base;
      rest = s;
      for (std::size_t k = c.sizes.size(); k-- > c.outer;) {
        for (std::size_t i = 0; i < at.size(); ++i) at[i] += rest % c.sizes[k] * c.strides[i][k];
        rest /= c.sizes[k];
      }
      f(o, at);
    }
  }
}

template <class T>
void run_einsum(const Contraction& c, const Io& io) {
  std::fill_n(io.output<T>(0), c.out.elements(), T{0});
  for_each_term(c, [&](std::int64_t o, const std::vector<std::int64_t>& at) {
    T product{1};
    for (std::size_t i = 0; i < at.size(); ++i) product = static_cast<T>(product * io.input<T>(i)[at[i]]);
    io.output<T>(0)[o] = static_cast<T>(io.output<T>(0)[o] + product);
  });
}
Result<KernelPtr> make_einsum(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, contraction(call));
  return dispatch<double, std::int64_t>(call.in(0).dtype,
                                        [&]<class T>() { return make_kernel([c](const Io& io) { run_einsum<T>(c, io); }); });
}

// dy, then the operands -> the gradient of the one that the attribute `index` names: each term's other factors.
Result<Contraction> grad_contraction(const OpCall& call) {
  const std::vector<ValueType> forward(call.inputs.begin() + 1, call.inputs.end());
  return contraction(OpCall{call.node, forward, call.opset});
}
Status infer_einsum_grad(InferCall& call) {
  FALAJ_ASSIGN(auto c, grad_contraction(call));
  FALAJ_ASSIGN(auto index, attr_int(call.node, "index"));
  if (index < 0 || index + 1 >= static_cast<std::int64_t>(call.inputs.size())) return invalid("attribute 'index' names no operand");
  if (call.in(0).shape != c.out) return invalid("the gradient does not fit the result");
  return set_output(call, 0, call.in(0).dtype, call.in(static_cast<std::size_t>(index) + 1).shape);
}
Result<KernelPtr> make_einsum_grad(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, grad_contraction(call));
  FALAJ_ASSIGN(auto index, attr_int(call.node, "index"));
  return dispatch<double>(call.in(0).dtype, [&]<class T>() {
    return make_kernel([c, wanted = static_cast<std::size_t>(index), n = call.outputs[0].shape.elements()](const Io& io) {
      std::fill_n(io.output<T>(0), n, T{0});
      for_each_term(c, [&](std::int64_t o, const std::vector<std::int64_t>& at) {
        T product = io.input<T>(0)[o];
        for (std::size_t i = 0; i < at.size(); ++i) product *= i == wanted ? T{1} : io.input<T>(i + 1)[at[i]];
        io.output<T>(0)[at[wanted]] += product;
      });
    });
  });
}
Status grad_einsum(GradientCall& g) {
  for (std::size_t i = 0; i < g.node().inputs.size(); ++i) {
    if (!g.wants(i)) continue;
    std::vector<std::string> inputs = {g.dy()};
    inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
    Attributes attributes = g.node().attributes;
    attributes.insert_or_assign("index", static_cast<std::int64_t>(i));
    g.set(i, g.add_falaj("EinsumGrad", std::move(inputs), std::move(attributes)));
  }
  return {};
}

// --- Det --------------------------------------------------------------------------------------------------------------------

Status infer_det(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  const Shape& in = call.in(0).shape;
  if (in.rank() < 2 || in.back() != in[in.rank() - 2]) return invalid(format("{} are no square matrices", to_string(in)));
  return set_output(call, 0, call.in(0).dtype, Shape(in.dims().first(in.rank() - 2)));
}
double determinant(std::vector<double> a, std::size_t n) {
  double det = 1;
  for (std::size_t k = 0; k < n; ++k) {
    std::size_t pivot = k;
    for (std::size_t r = k + 1; r < n; ++r) pivot = std::abs(a[r * n + k]) > std::abs(a[pivot * n + k]) ? r : pivot;
    if (a[pivot * n + k] == 0) return 0;
    if (pivot != k) {
      std::swap_ranges(a.begin() + static_cast<std::ptrdiff_t>(k * n), a.begin() + static_cast<std::ptrdiff_t>((k + 1) * n),
                       a.begin() + static_cast<std::ptrdiff_t>(pivot * n));
      det = -det;
    }
    det *= a[k * n + k];
    for (std::size_t r = k + 1; r < n; ++r) {
      double factor = a[r * n + k] / a[k * n + k];
      for (std::size_t col = k; col < n; ++col) a[r * n + col] -= factor * a[k * n + col];
    }
  }
  return det;
}
Result<KernelPtr> make_det(const KernelCall& c) {
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.in(0).shape.back(), count = c.outputs[0].shape.elements()](const Io& io) {
      for (std::int64_t k = 0; k < count; ++k) {
        const T* x = io.input<T>(0) + k * n * n;
        io.output<T>(0)[k] = determinant(std::vector<double>(x, x + n * n), static_cast<std::size_t>(n));
      }
    });
  });
}

constexpr OpDef kOps[] = {
    {kOnnx, "Einsum", 1, kVariadic, 1, 1, infer_einsum, make_einsum, grad_einsum},
    {kOnnx, "Det", 1, 1, 1, 1, infer_det, make_det},
    {kFalaj, "EinsumGrad", 2, kVariadic, 1, 1, infer_einsum_grad, make_einsum_grad},
};

}  // namespace

std::span<const OpDef> einsum_ops() { return kOps; }

}  // namespace falaj::kernels
