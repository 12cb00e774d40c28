// Control flow: If Loop Scan. Their graphs are run by the interpreter, which bounds how long and how large they may get.
#include <cstring>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

using Values = Result<std::vector<Value>>;

Result<bool> condition(const Value& value) {
  if (value.kind != Value::Kind::tensor || value.tensor.dtype() != DType::boolean || value.tensor.elements() != 1)
    return invalid("a condition must be one bool");
  return value.tensor.data<bool>()[0];
}

Values run_if(EagerCall& call) {
  FALAJ_ASSIGN(bool yes, condition(call.in(0)));
  FALAJ_ASSIGN(auto branch, attr_graph(call.node(), yes ? "then_branch" : "else_branch"));
  FALAJ_ASSIGN(auto outputs, call.run(*branch, {}));
  if (outputs.size() < call.node().outputs.size()) return invalid("the branch has too few outputs");
  return outputs;
}

// Tensors of one shape and type, one behind the other (or the other way round) along a new axis 0.
Result<Tensor> stack(std::span<const Value> parts, bool reversed) {
  if (parts.empty()) return Tensor(DType::f32, {0});
  const Tensor& first = parts[0].tensor;
  if (first.shape().rank() == kRankMax) return invalid("the stacked result has too many dimensions");
  Shape shape = first.shape();
  shape.insert(0, static_cast<std::int64_t>(parts.size()));
  if (auto bytes = byte_size(first.dtype(), shape); !bytes) return std::move(bytes).error();
  Tensor out(first.dtype(), shape);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Value& part = parts[reversed ? parts.size() - 1 - i : i];
    if (part.kind != Value::Kind::tensor || part.tensor.dtype() != first.dtype() || part.tensor.shape() != first.shape())
      return invalid("the iterations' results differ in shape or type");
    Tensor slot = out.rows(static_cast<std::int64_t>(i), 1);
    if (first.dtype() == DType::string) {
      std::ranges::copy(part.tensor.data<std::string>(), slot.mutable_data<std::string>().begin());
    } else if (part.tensor.bytes() > 0) {
      std::memcpy(slot.mutable_raw(), part.tensor.raw(), part.tensor.bytes());
    }
  }
  return out;
}

// The element type of what no iteration has made, from the body's declaration.
Tensor nothing(const ValueInfo& info) {
  Shape shape{0};
  for (std::int64_t d : info.shape) {
    if (shape.rank() < kRankMax) shape.push_back(d < 0 ? 0 : d);
  }
  return Tensor(info.dtype == DType::undefined ? DType::f32 : info.dtype, shape);
}

// Inputs: trip count?, condition?, carried values. Body: iteration, condition, carried -> condition, carried, scanned.
Values run_loop(EagerCall& call) {
  FALAJ_ASSIGN(auto body, attr_graph(call.node(), "body"));
  std::int64_t trips = std::numeric_limits<std::int64_t>::max();
  if (call.has(0)) {
    FALAJ_ASSIGN(Tensor t, call.tensor(0));
    if (t.dtype() != DType::i64 || t.elements() != 1) return invalid("the trip count must be one int64");
    trips = t.data<std::int64_t>()[0];
  }
  bool go = true;
  if (call.has(1)) {
    FALAJ_ASSIGN(go, condition(call.in(1)));
  }
  std::size_t carried = call.size() > 2 ? call.size() - 2 : 0;
  if (body->outputs.size() < 1 + carried || call.node().outputs.size() > body->outputs.size() - 1)
    return invalid("the body's outputs do not fit the loop");
  std::vector<Value> state;
  for (std::size_t i = 0; i < carried; ++i) state.push_back(call.in(i + 2));
  std::vector<std::vector<Value>> scanned(body->outputs.size() - 1 - carried);
  for (std::int64_t k = 0; go && k < trips; ++k) {
    std::vector<Value> inputs = {Value(Tensor::scalar<std::int64_t>(k)), Value(Tensor::scalar<bool>(go))};
    inputs.insert(inputs.end(), state.begin(), state.end());
    FALAJ_ASSIGN(auto outputs, call.run(*body, inputs));
    FALAJ_ASSIGN(go, condition(outputs[0]));
    for (std::size_t i = 0; i < carried; ++i) state[i] = std::move(outputs[i + 1]);
    for (std::size_t i = 0; i < scanned.size(); ++i) scanned[i].push_back(std::move(outputs[1 + carried + i]));
  }
  for (std::size_t i = 0; i < scanned.size(); ++i) {
    if (scanned[i].empty()) {
      state.emplace_back(nothing(body->outputs[1 + carried + i]));
      continue;
    }
    FALAJ_ASSIGN(Tensor t, stack(scanned[i], false));
    state.emplace_back(std::move(t));
  }
  return state;
}

// x with `axis` first.
Result<Tensor> to_front(const Tensor& x, std::int64_t axis) {
  if (axis == 0) return x;
  std::vector<std::int64_t> perm = {axis};
  for (std::int64_t d = 0; d < static_cast<std::int64_t>(x.shape().rank()); ++d) {
    if (d != axis) perm.push_back(d);
  }
  FALAJ_ASSIGN(auto out, run_reference(Node{"Transpose", "", {}, {"x"}, {"y"}, attr("perm", perm)}, std::vector<Tensor>{x}));
  return out[0];
}
Result<Tensor> from_front(const Tensor& x, std::int64_t axis) {
  if (axis == 0) return x;
  std::vector<std::int64_t> perm;
  for (std::int64_t d = 1; d < static_cast<std::int64_t>(x.shape().rank()); ++d) perm.push_back(d);
  perm.insert(perm.begin() + axis, 0);
  FALAJ_ASSIGN(auto out, run_reference(Node{"Transpose", "", {}, {"x"}, {"y"}, attr("perm", perm)}, std::vector<Tensor>{x}));
  return out[0];
}

Values run_scan(EagerCall& call) {
  if (call.opset() < 9) return Error{ErrorCode::unimplemented, "Scan of opset 8 is not supported: convert the model to opset 9 or newer"};
  FALAJ_ASSIGN(auto body, attr_graph(call.node(), "body"));
  FALAJ_ASSIGN(auto count, attr_int(call.node(), "num_scan_inputs"));
  if (count < 1 || count > static_cast<std::int64_t>(call.size())) return invalid(format("num_scan_inputs is {}", count));
  auto scans = static_cast<std::size_t>(count);
  std::size_t carried = call.size() - scans;
  if (body->outputs.size() < carried || call.node().outputs.size() > body->outputs.size()) return invalid("the body's outputs do not fit");
  std::size_t results = body->outputs.size() - carried;
  FALAJ_ASSIGN(auto in_axes, attr_ints(call.node(), "scan_input_axes", std::vector<std::int64_t>(scans, 0)));
  FALAJ_ASSIGN(auto in_back, attr_ints(call.node(), "scan_input_directions", std::vector<std::int64_t>(scans, 0)));
  FALAJ_ASSIGN(auto out_axes, attr_ints(call.node(), "scan_output_axes", std::vector<std::int64_t>(results, 0)));
  FALAJ_ASSIGN(auto out_back, attr_ints(call.node(), "scan_output_directions", std::vector<std::int64_t>(results, 0)));
  if (in_axes.size() != scans || in_back.size() != scans || out_axes.size() != results || out_back.size() != results)
    return invalid("axes or directions do not fit the scanned values");
  std::vector<Value> state;
  for (std::size_t i = 0; i < carried; ++i) state.push_back(call.in(i));
  std::vector<Tensor> sources;
  for (std::size_t i = 0; i < scans; ++i) {
    FALAJ_ASSIGN(Tensor t, call.tensor(carried + i));
    FALAJ_ASSIGN(auto axis, normal_axis(in_axes[i], t.shape().rank()));
    FALAJ_ASSIGN(t, to_front(t, axis));
    if (!sources.empty() && sources[0].shape()[0] != t.shape()[0]) return invalid("the scanned inputs have different lengths");
    sources.push_back(std::move(t));
  }
  std::int64_t steps = sources[0].shape()[0];
  std::vector<std::vector<Value>> scanned(results);
  for (std::int64_t k = 0; k < steps; ++k) {
    std::vector<Value> inputs = state;
    for (std::size_t i = 0; i < scans; ++i) {
      Tensor slice = sources[i].rows(in_back[i] != 0 ? steps - 1 - k : k, 1);
      Shape shape = slice.shape();
      shape.erase(0);
      inputs.emplace_back(slice.reshaped(shape));
    }
    FALAJ_ASSIGN(auto outputs, call.run(*body, inputs));
    for (std::size_t i = 0; i < carried; ++i) state[i] = std::move(outputs[i]);
    for (std::size_t i = 0; i < results; ++i) scanned[i].push_back(std::move(outputs[carried + i]));
  }
  for (std::size_t i = 0; i < results; ++i) {
    if (scanned[i].empty()) {
      state.emplace_back(nothing(body->outputs[carried + i]));
      continue;
    }
    FALAJ_ASSIGN(Tensor t, stack(scanned[i], out_back[i] != 0));
    FALAJ_ASSIGN(auto axis, normal_axis(out_axes[i], t.shape().rank()));
    FALAJ_ASSIGN(t, from_front(t, axis));
    state.emplace_back(std::move(t));
  }
  return state;
}

constexpr OpDef kOps[] = {
    eager_op(kOnnx, "If", 1, 1, 1, kVariadic, run_if),
    eager_op(kOnnx, "Loop", 2, kVariadic, 1, kVariadic, run_loop),
    eager_op(kOnnx, "Scan", 1, kVariadic, 1, kVariadic, run_scan),
};

}  // namespace

std::span<const OpDef> control_ops() { return kOps; }

}  // namespace falaj::kernels
