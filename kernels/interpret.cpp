#include "kernels/interpret.hpp"

#include <map>
#include <unordered_map>
#include <unordered_set>

#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

std::size_t bytes_of(const Value& value) {
  std::size_t total = value.kind == Value::Kind::tensor ? value.tensor.bytes() : 0;
  for (const Value& item : value.items) total += sizeof(Value) + bytes_of(item);
  return total;
}

// The values of one graph in one run; those of the graphs around it are seen through it.
struct Scope {
  const Scope* outer = nullptr;
  std::unordered_map<std::string_view, Value> values;

  [[nodiscard]] const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer) {
      if (auto found = scope->values.find(name); found != scope->values.end()) return &found->second;
    }
    return nullptr;
  }
};

// What is worked out once for a graph, however often a loop runs it.
struct Prepared {
  std::vector<std::size_t> order;
  std::vector<std::vector<std::string_view>> dying;  // after each step of the order: values that nothing reads any more
};

class Interpreter {
 public:
  explicit Interpreter(const InterpretLimits& limits) : limits_(limits) {}

  Result<std::vector<Value>> run(const Graph& graph, std::span<const Value> inputs, const Scope* outer, const Graph& model) {
    FALAJ_ASSIGN(const Prepared* prepared, prepare(graph));
    if (inputs.size() != graph.inputs.size())
      return invalid(format("graph '{}' takes {} inputs; {} are given", graph.name, graph.inputs.size(), inputs.size()));
    Scope scope{outer, {}};
    for (const auto& [name, value] : graph.initializers) scope.values.emplace(name, Value(value));
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      alive_ += bytes_of(inputs[i]);
      scope.values.insert_or_assign(graph.inputs[i].name, inputs[i]);
    }
    for (std::size_t step = 0; step < prepared->order.size(); ++step) {
      FALAJ_TRY(run_node(graph.nodes[prepared->order[step]], scope, model));
      for (auto name : prepared->dying[step]) release(scope, name);
    }
    std::vector<Value> outputs;
    for (const auto& output : graph.outputs) {
      const Value* value = scope.find(output.name);
      if (value == nullptr) return invalid(format("output '{}' of graph '{}' has no value", output.name, graph.name));
      outputs.push_back(*value);
    }
    for (const auto& input : graph.inputs) release(scope, input.name);
    for (const auto& node : graph.nodes) {
      for (const auto& name : node.outputs) release(scope, name);
    }
    return outputs;
  }

 private:
  class Call final : public EagerCall {
   public:
    Call(const Node& node, std::span<const Value> inputs, std::int64_t opset, Interpreter& self, const Scope& scope, const Graph& model)
        : EagerCall(node, inputs, opset), self_(self), scope_(scope), model_(model) {}
    Result<std::vector<Value>> run(const Graph& body, std::span<const Value> inputs) override {
      return self_.run(body, inputs, &scope_, model_);
    }

   private:
    Interpreter& self_;
    const Scope& scope_;
    const Graph& model_;
  };

  void release(Scope& scope, std::string_view name) {
    auto found = scope.values.find(name);
    if (found == scope.values.end()) return;
    alive_ -= std::min(alive_, bytes_of(found->second));
    scope.values.erase(found);
  }

  Result<const Prepared*> prepare(const Graph& graph) {
    auto [at, fresh] = prepared_.try_emplace(&graph);
    if (!fresh) return &at->second;
    Prepared& p = at->second;
    FALAJ_ASSIGN(p.order, topological_order(graph));
    p.dying.resize(p.order.size());
    std::unordered_set<std::string_view> needed;
    for (const auto& output : graph.outputs) needed.insert(output.name);
    for (std::size_t step = p.order.size(); step-- > 0;) {
      const Node& node = graph.nodes[p.order[step]];
      for (const auto* names : {&node.inputs, &node.captures, &node.outputs}) {
        for (const auto& name : *names) {
          if (!name.empty() && needed.insert(name).second && !graph.initializers.contains(name)) p.dying[step].push_back(name);
        }
      }
    }
    return &p;
  }

  Status run_node(const Node& node, Scope& scope, const Graph& model) {
    if (++nodes_ > limits_.nodes_max)
      return Error{ErrorCode::no_space, format("the model runs more than {} nodes: does a loop never end?", limits_.nodes_max)};
    const OpDef* op = find_op(node.domain, node.op);
    if (op == nullptr) return Error{ErrorCode::unimplemented, format("{}: unknown op", describe(node))};
    std::vector<Value> inputs;
    for (const auto& name : node.inputs) {
      const Value* value = name.empty() ? nullptr : scope.find(name);
      if (value == nullptr && !name.empty()) return invalid(format("{}: '{}' has no value", describe(node), name));
      inputs.push_back(value == nullptr ? Value() : *value);
    }
    std::int64_t opset = model.opset(node.domain);
    Result<std::vector<Value>> outputs = std::vector<Value>{};
    if (node.op == "Identity" && node.domain.empty() && inputs.size() == 1) {
      outputs = inputs;  // of any kind, and an optional without a value too
    } else if (op->eager != nullptr) {
      Call call(node, inputs, opset, *this, scope, model);
      outputs = op->eager(call);
      if (!outputs) return within(describe(node), outputs.error());
    } else {
      outputs = run_tensors(node, inputs, opset);
      if (!outputs) return std::move(outputs).error();
    }
    for (std::size_t i = 0; i < outputs->size() && i < node.outputs.size(); ++i) {
      if (node.outputs[i].empty()) continue;
      alive_ += bytes_of((*outputs)[i]);
      scope.values.insert_or_assign(node.outputs[i], std::move((*outputs)[i]));
    }
    if (alive_ > limits_.bytes_max)
      return Error{ErrorCode::no_space, format("{}: the model needs more than {} bytes at once", describe(node), limits_.bytes_max)};
    return {};
  }

  Result<std::vector<Value>> run_tensors(const Node& node, std::span<const Value> inputs, std::int64_t opset) {
    std::vector<Tensor> tensors;
    std::vector<ValueType> types;
    tensors.reserve(inputs.size());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].kind == Value::Kind::sequence)
        return invalid(format("{}: input '{}' is a sequence; it must be a tensor", describe(node), node.inputs[i]));
      tensors.push_back(inputs[i].tensor);
      types.push_back(tensors[i].empty() ? ValueType{} : ValueType{tensors[i].dtype(), tensors[i].shape(), &tensors[i]});
    }
    FALAJ_ASSIGN(auto outputs, infer_node(node, types, opset));
    std::size_t bytes = alive_;
    for (const auto& output : outputs) bytes += byte_size(output.dtype, output.shape).value_or(0);
    if (bytes > limits_.bytes_max)
      return Error{ErrorCode::no_space, format("{}: the model needs more than {} bytes at once", describe(node), limits_.bytes_max)};
    auto values = evaluate_node(node, types, opset, outputs);
    if (!values) return within(describe(node), values.error());
    return std::vector<Value>(std::make_move_iterator(values->begin()), std::make_move_iterator(values->end()));
  }

  InterpretLimits limits_;
  std::size_t alive_ = 0;
  std::uint64_t nodes_ = 0;
  std::unordered_map<const Graph*, Prepared> prepared_;
};

std::string text_of(const Value& value) {
  switch (value.kind) {
    case Value::Kind::none:
      return "nothing";
    case Value::Kind::sequence:
      return "a sequence";
    case Value::Kind::tensor:
      break;
  }
  return format("{}{}", to_string(value.tensor.dtype()), to_string(value.tensor.shape()));
}

Status check_input(const ValueInfo& info, const Value& value) {
  bool fits = true;
  if (info.kind == ValueKind::tensor) {
    fits = value.kind == Value::Kind::tensor && value.tensor.dtype() == info.dtype;
    if (fits && info.has_shape) {
      fits = value.tensor.shape().rank() == info.shape.rank();
      for (std::size_t d = 0; fits && d < info.shape.rank(); ++d) fits = info.shape[d] < 0 || info.shape[d] == value.tensor.shape()[d];
    }
  } else if (info.kind == ValueKind::sequence) {
    fits = value.kind == Value::Kind::sequence;
  }
  if (fits) return {};
  return invalid(format("input '{}' is {}; the model takes {}", info.name, text_of(value),
                        info.kind == ValueKind::tensor ? format("{}{}", to_string(info.dtype), info.has_shape ? to_string(info.shape) : "")
                                                       : std::string("a sequence")));
}

}  // namespace

Result<Tensor> EagerCall::tensor(std::size_t i) const {
  if (!has(i)) return invalid(format("input {} is absent", i));
  if (inputs_[i].kind != Value::Kind::tensor) return invalid(format("input {} is a sequence; it must be a tensor", i));
  return inputs_[i].tensor;
}

Result<std::vector<Value>> interpret(const Graph& graph, std::span<const Value> inputs, const InterpretLimits& limits) {
  if (inputs.size() != graph.inputs.size())
    return invalid(format("{} inputs are given; the model takes {}", inputs.size(), graph.inputs.size()));
  for (std::size_t i = 0; i < inputs.size(); ++i) FALAJ_TRY(check_input(graph.inputs[i], inputs[i]));
  return Interpreter(limits).run(graph, inputs, nullptr, graph);
}

// --- Session --------------------------------------------------------------------------------------------------------------

struct Session::Impl {
  Graph graph;
  std::shared_ptr<const Compiled> compiled;
  std::unique_ptr<Executor> executor;
  std::string interpreted;
  bool compiled_only = false;
};

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
const Graph& Session::graph() const { return impl_->compiled_only ? impl_->compiled->graph() : impl_->graph; }
const std::shared_ptr<const Compiled>& Session::compiled() const { return impl_->compiled; }
const std::string& Session::interpreted() const { return impl_->interpreted; }

Session::Session(std::shared_ptr<const Compiled> compiled, std::size_t threads) : impl_(std::make_unique<Impl>()) {
  impl_->executor = std::make_unique<Executor>(compiled, threads);
  impl_->compiled = std::move(compiled);
  impl_->compiled_only = true;
}

Result<Session> Session::make(Graph graph, CompileOptions options) {
  FALAJ_TRY(validate(graph));
  auto impl = std::make_unique<Impl>();
  impl->graph = std::move(graph);
  const auto threads = options.threads;
  auto compiled = compile(impl->graph, std::move(options));
  if (compiled) {
    impl->compiled = std::move(*compiled);
    impl->executor = std::make_unique<Executor>(impl->compiled, threads);
  } else if (compiled.error().code == ErrorCode::unimplemented) {
    impl->interpreted = compiled.error().message;
  } else {
    return std::move(compiled).error();
  }
  return Session(std::move(impl));
}

Result<std::vector<Value>> Session::run(std::span<const Value> inputs) {
  Impl& self = *impl_;
  if (self.executor != nullptr) {
    std::vector<Tensor> tensors;
    std::vector<Shape> shapes;
    tensors.reserve(inputs.size());
    shapes.reserve(inputs.size());
    for (const Value& value : inputs) tensors.push_back(value.tensor);
    for (const Tensor& t : tensors) shapes.push_back(t.shape());
    Status status = self.executor->prepare(shapes);
    if (status) {
      std::vector<Tensor> outputs;
      FALAJ_TRY(self.executor->run(tensors, outputs));
      return std::vector<Value>(std::make_move_iterator(outputs.begin()), std::make_move_iterator(outputs.end()));
    }
    if (status.error().code != ErrorCode::unimplemented || self.compiled_only) return std::move(status).error();
    self.interpreted = status.error().message;
    self.executor.reset();
  }
  return interpret(self.graph, inputs);
}

}  // namespace falaj::kernels
