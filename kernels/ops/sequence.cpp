// Sequences and optionals: what holds tensors rather than numbers. Run by the interpreter.
#include <algorithm>
#include <cstring>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

using Values = Result<std::vector<Value>>;

std::vector<Value> one(Value value) {
  std::vector<Value> values;
  values.push_back(std::move(value));
  return values;
}

Status check_sequence(const EagerCall& call, std::size_t i) {
  if (call.has(i) && call.in(i).kind == Value::Kind::sequence) return {};
  return invalid(format("input {} must be a sequence", i));
}

Result<std::int64_t> integer(const EagerCall& call, std::size_t i) {
  FALAJ_ASSIGN(Tensor t, call.tensor(i));
  if (t.elements() != 1 || !is_int(t.dtype())) return invalid(format("input {} must be one integer", i));
  return converted(t, DType::i64).data<std::int64_t>()[0];
}

// A position in [0, size): negative ones count from the end.
Result<std::size_t> position(const EagerCall& call, std::size_t input, std::size_t size) {
  FALAJ_ASSIGN(auto at, integer(call, input));
  auto n = static_cast<std::int64_t>(size);
  if (at < -n || at >= n) return invalid(format("position {} is outside a sequence of {}", at, size));
  return static_cast<std::size_t>(at < 0 ? at + n : at);
}

Values construct(EagerCall& call) {
  std::vector<Value> items;
  for (std::size_t i = 0; i < call.size(); ++i) {
    FALAJ_ASSIGN(Tensor t, call.tensor(i));
    items.emplace_back(std::move(t));
  }
  return one(Value::sequence(std::move(items)));
}
Values empty(EagerCall&) { return one(Value::sequence({})); }
Values length(EagerCall& call) {
  FALAJ_TRY(check_sequence(call, 0));
  return one(Tensor::scalar<std::int64_t>(static_cast<std::int64_t>(call.in(0).items.size())));
}
Values at(EagerCall& call) {
  FALAJ_TRY(check_sequence(call, 0));
  FALAJ_ASSIGN(auto where, position(call, 1, call.in(0).items.size()));
  return one(call.in(0).items[where]);
}
Values insert(EagerCall& call) {
  FALAJ_TRY(check_sequence(call, 0));
  FALAJ_ASSIGN(Tensor t, call.tensor(1));
  std::vector<Value> items = call.in(0).items;
  std::size_t where = items.size();
  if (call.has(2)) {
    FALAJ_ASSIGN(auto given, integer(call, 2));
    auto n = static_cast<std::int64_t>(items.size());
    if (given < -n || given > n) return invalid(format("position {} is outside a sequence of {}", given, items.size()));
    where = static_cast<std::size_t>(given < 0 ? given + n : given);
  }
  items.insert(items.begin() + static_cast<std::ptrdiff_t>(where), Value(std::move(t)));
  return one(Value::sequence(std::move(items)));
}
Values erase(EagerCall& call) {
  FALAJ_TRY(check_sequence(call, 0));
  std::vector<Value> items = call.in(0).items;
  if (items.empty()) return invalid("the sequence is empty");
  std::size_t where = items.size() - 1;
  if (call.has(1)) {
    FALAJ_ASSIGN(where, position(call, 1, items.size()));
  }
  items.erase(items.begin() + static_cast<std::ptrdiff_t>(where));
  return one(Value::sequence(std::move(items)));
}

Node plain_node(std::string_view op, std::size_t inputs, Attributes attributes) {
  Node node{std::string(op), "", {}, {}, {"y"}, std::move(attributes)};
  for (std::size_t i = 0; i < inputs; ++i) node.inputs.push_back(format("x{}", i));
  return node;
}

Values split_to_sequence(EagerCall& call) {
  FALAJ_ASSIGN(Tensor x, call.tensor(0));
  FALAJ_ASSIGN(auto axis, attr_int(call.node(), "axis", 0));
  FALAJ_ASSIGN(auto keep, attr_int(call.node(), "keepdims", 1));
  FALAJ_ASSIGN(axis, normal_axis(axis, x.shape().rank()));
  std::int64_t size = x.shape()[static_cast<std::size_t>(axis)];
  std::vector<std::int64_t> sizes;
  if (call.has(1)) {
    FALAJ_ASSIGN(Tensor given, call.tensor(1));
    if (!is_int(given.dtype())) return invalid("the sizes of the parts must be integers");
    Tensor wide = converted(given, DType::i64);
    auto list = wide.data<std::int64_t>();
    if (given.shape().rank() == 0) {
      if (list[0] < 1) return invalid(format("parts of size {}", list[0]));
      for (std::int64_t left = size; left > 0; left -= list[0]) sizes.push_back(std::min(left, list[0]));
    } else {
      sizes.assign(list.begin(), list.end());
    }
  } else {
    sizes.assign(static_cast<std::size_t>(size), 1);
  }
  if (sizes.empty()) return one(Value::sequence({}));
  Node node = plain_node("Split", 2, attr("axis", axis));
  node.outputs.clear();
  for (std::size_t i = 0; i < sizes.size(); ++i) node.outputs.push_back(format("y{}", i));
  Tensor parts = Tensor::of<std::int64_t>({static_cast<std::int64_t>(sizes.size())}, std::span<const std::int64_t>(sizes));
  FALAJ_ASSIGN(auto tensors, run_reference(node, std::vector<Tensor>{x, parts}));
  std::vector<Value> items;
  for (Tensor& t : tensors) {
    if (keep == 0 && !call.has(1)) {
      Shape shape = t.shape();
      shape.erase(static_cast<std::size_t>(axis));
      t = t.reshaped(shape);
    }
    items.emplace_back(std::move(t));
  }
  return one(Value::sequence(std::move(items)));
}

Values concat_from_sequence(EagerCall& call) {
  FALAJ_TRY(check_sequence(call, 0));
  FALAJ_ASSIGN(auto axis, attr_int(call.node(), "axis"));
  FALAJ_ASSIGN(auto fresh, attr_int(call.node(), "new_axis", 0));
  std::vector<Tensor> parts;
  for (const Value& item : call.in(0).items) {
    if (item.kind != Value::Kind::tensor) return invalid("the sequence must hold tensors");
    Tensor t = item.tensor;
    if (fresh != 0) {
      FALAJ_ASSIGN(auto where, normal_axis(axis, t.shape().rank() + 1));
      if (t.shape().rank() == kRankMax) return invalid("the result has too many dimensions");
      Shape shape = t.shape();
      shape.insert(static_cast<std::size_t>(where), 1);
      t = t.reshaped(shape);
    }
    parts.push_back(std::move(t));
  }
  if (parts.empty()) return invalid("an empty sequence cannot be joined");
  FALAJ_ASSIGN(auto joined, run_reference(plain_node("Concat", parts.size(), attr("axis", axis)), parts));
  return one(Value(std::move(joined[0])));
}

// The body sees one item of each sequence, and the whole of what is no sequence.
Values sequence_map(EagerCall& call) {
  FALAJ_TRY(check_sequence(call, 0));
  FALAJ_ASSIGN(auto body, attr_graph(call.node(), "body"));
  std::vector<std::vector<Value>> results(call.node().outputs.size());
  for (std::size_t k = 0; k < call.in(0).items.size(); ++k) {
    std::vector<Value> inputs;
    for (std::size_t i = 0; i < call.size(); ++i) {
      if (call.in(i).kind != Value::Kind::sequence) {
        inputs.push_back(call.in(i));
      } else if (k < call.in(i).items.size()) {
        inputs.push_back(call.in(i).items[k]);
      } else {
        return invalid("the sequences have different lengths");
      }
    }
    FALAJ_ASSIGN(auto outputs, call.run(*body, inputs));
    if (outputs.size() < results.size()) return invalid("the body has too few outputs");
    for (std::size_t i = 0; i < results.size(); ++i) results[i].push_back(std::move(outputs[i]));
  }
  std::vector<Value> values;
  for (auto& items : results) values.push_back(Value::sequence(std::move(items)));
  return values;
}

// --- optionals: a value, or none ---------------------------------------------------------------------------------------------------

Values optional(EagerCall& call) { return one(call.has(0) ? call.in(0) : Value()); }
Values optional_has(EagerCall& call) { return one(Tensor::scalar<bool>(call.has(0))); }
Values optional_get(EagerCall& call) {
  if (!call.has(0)) return invalid("the optional holds no value");
  return one(call.in(0));
}

constexpr OpDef kOps[] = {
    eager_op(kOnnx, "SequenceConstruct", 1, kVariadic, 1, 1, construct),
    eager_op(kOnnx, "SequenceEmpty", 0, 0, 1, 1, empty),
    eager_op(kOnnx, "SequenceLength", 1, 1, 1, 1, length),
    eager_op(kOnnx, "SequenceAt", 2, 2, 1, 1, at),
    eager_op(kOnnx, "SequenceInsert", 2, 3, 1, 1, insert),
    eager_op(kOnnx, "SequenceErase", 1, 2, 1, 1, erase),
    eager_op(kOnnx, "SplitToSequence", 1, 2, 1, 1, split_to_sequence),
    eager_op(kOnnx, "ConcatFromSequence", 1, 1, 1, 1, concat_from_sequence),
    eager_op(kOnnx, "SequenceMap", 1, kVariadic, 1, kVariadic, sequence_map),
    eager_op(kOnnx, "Optional", 0, 1, 1, 1, optional),
    eager_op(kOnnx, "OptionalHasElement", 0, 1, 1, 1, optional_has),
    eager_op(kOnnx, "OptionalGetElement", 1, 1, 1, 1, optional_get),
};

}  // namespace

std::span<const OpDef> sequence_ops() { return kOps; }

}  // namespace falaj::kernels
