// The gradient of a recurrent layer's steps: what goes through time is one op, which computes the steps once more; R's gradient is then
// a product over all rows, B's their sum.
#include "kernels/ops/common.hpp"
#include "kernels/ops/recurrent.hpp"

namespace falaj::kernels {
namespace {

std::string zeros(GradientCall& g, DType dtype, const Shape& shape) {
  return g.graph().add_initializer(g.graph().fresh("grad/zeros"), Tensor(dtype, shape));
}

// Of R: each gate's rows met the state before the step; in a GRU that resets first, the last ones met it reset.
std::string grad_of_r(GradientCall& g, const std::string& dq, const std::string& states, const std::string& reset) {
  const auto product = [&](const std::string& right) { return g.add_falaj("MatMul", {dq, right}, attr("transA", std::int64_t{1})); };
  std::string dr = product(states);
  if (!reset.empty()) {
    const Shape& r = g.input_type(2).shape;
    Tensor first(DType::boolean, {r[1], 1});
    for (std::int64_t i = 0; i < r[1] - r[2]; ++i) first.mutable_data<bool>()[static_cast<std::size_t>(i)] = true;
    const std::string mask = g.graph().add_initializer(g.graph().fresh("grad/rows"), std::move(first));
    dr = g.add("Where", {mask, dr, product(reset)});
  }
  return g.add_falaj("ReshapeLike", {dr, g.input(2)});
}

}  // namespace

Status grad_recurrent_steps(GradientCall& g) {
  const Node& node = g.node();
  const bool gru = node.op.starts_with("GRU");
  FALAJ_ASSIGN(const auto linear, attr_int(node, "linear_before_reset", 0));
  const bool resets_after = gru && linear != 0;
  const auto if_wanted = [&](bool wanted) { return wanted ? g.graph().fresh("grad/" + node.op) : std::string(); };

  Node back{node.op + "Grad", std::string(kFalaj), {}, node.inputs, {}, node.attributes};
  back.inputs.resize(kRecurrentInputs);
  for (std::size_t i = 0; i < 3; ++i) back.inputs.push_back(i < node.outputs.size() ? g.dy(i) : std::string());
  const std::string dz = if_wanted(true);
  const std::string extra = if_wanted(gru && (g.wants(2) || (resets_after && g.wants(3))));
  const std::string states = if_wanted(g.wants(2));
  back.outputs = {dz, extra, states, if_wanted(g.wants(5)), if_wanted(g.wants(6)), if_wanted(g.wants(7))};
  back.name = dz;
  if (g.wants(5)) g.set(5, back.outputs[3]);
  if (g.wants(6)) g.set(6, back.outputs[4]);
  if (g.wants(7)) g.set(7, back.outputs[5]);
  g.graph().add_node(std::move(back));

  g.set(1, dz);
  const std::string& dq = resets_after ? extra : dz;
  if (g.wants(2)) g.set(2, grad_of_r(g, dq, states, gru && !resets_after ? extra : std::string()));
  if (g.wants(3)) {
    const std::string half = zeros(g, g.input_type(3).dtype, {1, g.input_type(2).shape[1]});
    g.set(3, g.add("Concat", {half, g.add_falaj("ReduceLike", {dq, half})}, attr("axis", std::int64_t{1})));
  }
  return {};
}

}  // namespace falaj::kernels
