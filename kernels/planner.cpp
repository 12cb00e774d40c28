// Makes plans: types and folds for the given shapes, picks a kernel for each node that is left, sees through aliases, and gives each
// value its place: the caller's tensor, a constant, or a piece of the arena.
#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "kernels/memory.hpp"
#include "kernels/plan_impl.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

constexpr std::size_t kFoldBytesMax = 16U << 20;
constexpr std::size_t kArenaBytesMax = std::size_t{16} << 30;  // a plan that needs more is refused rather than tried

struct Value {
  ValueType type;
  Place place;
  std::size_t block = kNoBlock;  // arena values
  std::size_t last = 0;          // the last launch that reads it
  static constexpr std::size_t kNoBlock = static_cast<std::size_t>(-1);
};

class Planner {
 public:
  Planner(const Graph& graph, std::span<const Backend* const> backends, const CompileOptions& options, PackedWeights* packed)
      : graph_(graph), backends_(backends), options_(options), packed_(packed), plan_(std::make_shared<Plan>()) {}

  Result<std::shared_ptr<const Plan>> make(std::span<const Shape> input_shapes) {
    FALAJ_ASSIGN(auto typed, infer_types(graph_, input_shapes, options_.fold ? kFoldBytesMax : 4096));
    typed_ = std::make_shared<TypedGraph>(std::move(typed));
    plan_->typed = typed_;
    collect_values();
    choose_nodes();
    bind_outputs();
    for (std::size_t step = 0; step < steps_.size(); ++step) mark_uses(step);
    for (std::size_t step = 0; step < steps_.size(); ++step) FALAJ_TRY(lay_out(step));
    finish();
    if (plan_->arena_bytes > kArenaBytesMax) {
      return Error{ErrorCode::no_space,
                   format("the model needs {} bytes of working memory for this batch; at most {} are given: use a smaller batch",
                          plan_->arena_bytes, kArenaBytesMax)};
    }
    return std::shared_ptr<const Plan>(plan_);
  }

 private:
  // A launch to be: a node, or a copy of a value to a graph output (node == npos).
  struct Step {
    std::size_t node;
    std::size_t from = 0, to = 0;  // of a copy
  };
  static constexpr std::size_t kCopy = static_cast<std::size_t>(-1);

  void collect_values() {
    for (const auto& [name, type] : typed_->types) {
      id_.emplace(name, values_.size());
      Value value{type, {}};
      if (type.constant != nullptr) value.place = {Place::Kind::constant, 0, const_cast<void*>(type.constant->raw())};
      values_.push_back(std::move(value));
    }
    root_.resize(values_.size());
    for (std::size_t i = 0; i < root_.size(); ++i) root_[i] = i;
    for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {
      std::size_t id = id_.at(graph_.inputs[i].name);
      values_[id].place = {Place::Kind::input, i, nullptr};
      plan_->inputs.push_back(values_[id].type);
    }
    for (const auto& output : graph_.outputs) plan_->outputs.push_back(values_[id_.at(output.name)].type);
  }

  [[nodiscard]] bool reads_bytes(const Node& node, std::size_t input) const {
    const OpDef& op = *find_op(node.domain, node.op);
    return !node.inputs[input].empty() && (input >= 32 || ((op.shape_only >> input) & 1U) == 0);
  }

  static std::size_t named_outputs(const Node& node) {
    return static_cast<std::size_t>(std::ranges::count_if(node.outputs, [](const auto& name) { return !name.empty(); }));
  }

  // Which nodes must run: those whose outputs are wanted, are not known already, and are no mere views.
  void choose_nodes() {
    std::vector<bool> wanted(values_.size(), false);
    for (const auto& output : graph_.outputs) wanted[id_.at(output.name)] = true;
    std::vector<std::size_t> chosen;
    for (std::size_t i = typed_->order.size(); i-- > 0;) {
      const Node& node = graph_.nodes[typed_->order[i]];
      bool needed = std::ranges::any_of(node.outputs, [&](const auto& name) {
        return !name.empty() && wanted[id_.at(name)] && values_[id_.at(name)].place.kind != Place::Kind::constant;
      });
      if (!needed) continue;
      chosen.push_back(typed_->order[i]);
      for (std::size_t k = 0; k < node.inputs.size(); ++k) {
        if (reads_bytes(node, k)) wanted[id_.at(node.inputs[k])] = true;
      }
    }
    for (std::size_t i = chosen.size(); i-- > 0;) {
      const Node& node = graph_.nodes[chosen[i]];
      const OpDef& op = *find_op(node.domain, node.op);
      if (op.placement == Placement::alias && named_outputs(node) == 1 && !node.outputs[0].empty()) {
        root_[id_.at(node.outputs[0])] = root_[id_.at(node.inputs[0])];
      } else {
        steps_.push_back({chosen[i]});
        for (const auto& name : node.outputs) {
          if (!name.empty()) made_here_.insert(id_.at(name));
        }
      }
    }
  }

  // A graph output is written straight into the caller's tensor by whoever makes it; what no launch makes (an input, a constant, a
  // second name for another output) is copied.
  void bind_outputs() {
    for (std::size_t i = 0; i < graph_.outputs.size(); ++i) {
      std::size_t id = id_.at(graph_.outputs[i].name);
      std::size_t root = root_[id];
      if (made_here_.contains(root) && values_[root].place.kind == Place::Kind::none) {
        values_[root].place = {Place::Kind::output, i, nullptr};
      } else {
        steps_.push_back({kCopy, id, i});
      }
    }
  }

  Value& value_of(const std::string& name) { return values_[root_[id_.at(name)]]; }

  void mark_uses(std::size_t step) {
    if (steps_[step].node == kCopy) {
      values_[root_[steps_[step].from]].last = step;
      return;
    }
    const Node& node = graph_.nodes[steps_[step].node];
    for (std::size_t k = 0; k < node.inputs.size(); ++k) {
      if (reads_bytes(node, k)) value_of(node.inputs[k]).last = step;
    }
  }

  // A block whose bytes the output may take over: that of a dying input of the same size and type.
  std::size_t block_to_reuse(const Node& node, const OpDef& op, const Value& output, std::size_t step) {
    if (op.placement != Placement::in_place) return Value::kNoBlock;
    for (std::size_t k = 0; k < node.inputs.size(); ++k) {
      if (!reads_bytes(node, k)) continue;
      const Value& input = value_of(node.inputs[k]);
      bool fits = input.block != Value::kNoBlock && input.last == step && input.type.dtype == output.type.dtype &&
                  input.type.shape.elements() == output.type.shape.elements();
      if (fits) return input.block;
    }
    return Value::kNoBlock;
  }

  void place_output(const Node& node, const OpDef& op, Value& output, std::size_t step) {
    if (output.place.kind != Place::Kind::none) return;
    std::size_t last = std::max(output.last, step);
    if (output.type.dtype == DType::string) {
      output.place = {Place::Kind::strings, plan_->string_buffers.size(), nullptr};
      plan_->string_buffers.push_back(static_cast<std::size_t>(output.type.shape.elements()));
      return;
    }
    output.place.kind = Place::Kind::arena;
    output.block = block_to_reuse(node, op, output, step);
    if (output.block != Value::kNoBlock) {
      blocks_[output.block].last = last;
    } else {
      output.block = blocks_.size();
      blocks_.push_back({byte_size(output.type.dtype, output.type.shape).value_or(0), step, last});
    }
  }

  Result<Launch> choose_kernel(const Node& node, const OpDef& op, std::span<const ValueType> inputs, std::span<const ValueType> outputs) {
    KernelCall call{{node, inputs, graph_.opset(node.domain)}, outputs, packed_, options_.batch_invariant, options_.threads};
    std::string refusals;
    for (const Backend* backend : backends_) {
      auto kernel = backend->make(op, call);
      if (!kernel) {
        refusals += format("\n    {}: {}", backend->name, kernel.error().message);
        continue;
      }
      Launch launch;
      launch.kernel = std::move(*kernel);
      launch.node = describe(node);
      launch.backend = backend->name;
      plan_->why.push_back(format("{} {} -> {}: {}/{}{}", launch.node, types_text(inputs), types_text(outputs), backend->name,
                                  launch.kernel->implementation(), refusals));
      return launch;
    }
    return Error{ErrorCode::unimplemented, format("{}: no backend runs it{}", describe(node), refusals)};
  }

  static std::string types_text(std::span<const ValueType> types) {
    std::string text;
    for (const auto& type : types)
      text += (text.empty() ? "" : " ") +
              (type.dtype == DType::undefined ? std::string("-") : std::string(to_string(type.dtype)) + to_string(type.shape));
    return text;
  }

  Status lay_out(std::size_t step) {
    if (steps_[step].node == kCopy) return lay_out_copy(step);
    const Node& node = graph_.nodes[steps_[step].node];
    const OpDef& op = *find_op(node.domain, node.op);
    std::vector<ValueType> inputs;
    std::vector<ValueType> outputs;
    for (const auto& name : node.inputs) inputs.push_back(name.empty() ? ValueType{} : typed_->types.at(name));
    for (const auto& name : node.outputs) outputs.push_back(name.empty() ? ValueType{} : typed_->types.at(name));
    FALAJ_ASSIGN(Launch launch, choose_kernel(node, op, inputs, outputs));
    std::vector<std::size_t> arguments;  // value ids, or kCopy for none
    for (std::size_t k = 0; k < node.inputs.size(); ++k) arguments.push_back(reads_bytes(node, k) ? root_[id_.at(node.inputs[k])] : kCopy);
    for (const auto& name : node.outputs) {
      if (!name.empty()) place_output(node, op, values_[id_.at(name)], step);
      arguments.push_back(name.empty() ? kCopy : id_.at(name));
    }
    launch.inputs = static_cast<std::uint32_t>(node.inputs.size());
    add(std::move(launch), arguments, step);
    return {};
  }

  Status lay_out_copy(std::size_t step) {
    std::size_t from = steps_[step].from;
    static const Node kIdentity{"Identity", "", "copy to output", {"x"}, {"y"}, {}};
    ValueType type = values_[from].type;
    type.constant = nullptr;
    std::array<ValueType, 1> types{type};
    FALAJ_ASSIGN(Launch launch, choose_kernel(kIdentity, *find_op("", "Identity"), types, types));
    launch.inputs = 1;
    Value target{type, {Place::Kind::output, steps_[step].to, nullptr}};
    values_.push_back(target);
    root_.push_back(values_.size() - 1);
    add(std::move(launch), {root_[from], values_.size() - 1}, step);
    return {};
  }

  void add(Launch launch, const std::vector<std::size_t>& arguments, std::size_t step) {
    launch.first_argument = static_cast<std::uint32_t>(argument_values_.size());
    argument_values_.insert(argument_values_.end(), arguments.begin(), arguments.end());
    if (std::size_t bytes = launch.kernel->scratch_bytes(); bytes > 0) {
      scratch_of_.emplace_back(plan_->launches.size(), blocks_.size());
      blocks_.push_back({bytes, step, step});
    }
    plan_->launches.push_back(std::move(launch));
  }

  void finish() {
    Placing placing = place(blocks_);
    plan_->arena_bytes = placing.bytes;
    for (auto [launch, block] : scratch_of_) plan_->launches[launch].scratch = placing.offsets[block];
    for (std::size_t value : argument_values_) {
      Place where;
      if (value != kCopy) {
        where = values_[value].place;
        if (where.kind == Place::Kind::arena) where.index = placing.offsets[values_[value].block];
      }
      plan_->arguments.push_back(where);
    }
  }

  const Graph& graph_;
  std::span<const Backend* const> backends_;
  const CompileOptions& options_;
  PackedWeights* packed_;
  std::shared_ptr<Plan> plan_;
  std::shared_ptr<TypedGraph> typed_;
  std::unordered_map<std::string_view, std::size_t> id_;
  std::vector<Value> values_;
  std::vector<std::size_t> root_;  // what an alias is a view of; itself otherwise
  std::unordered_set<std::size_t> made_here_;
  std::vector<Step> steps_;
  std::vector<Block> blocks_;
  std::vector<std::size_t> argument_values_;
  std::vector<std::pair<std::size_t, std::size_t>> scratch_of_;
};

}  // namespace

Result<std::shared_ptr<const Plan>> make_plan(const Graph& graph, std::span<const Shape> input_shapes,
                                              std::span<const Backend* const> backends, const CompileOptions& options,
                                              PackedWeights* packed) {
  return Planner(graph, backends, options, packed).make(input_shapes);
}

}  // namespace falaj::kernels
