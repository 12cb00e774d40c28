// Makes plans: types and folds for the given shapes, picks a kernel for each node that is left, sees through aliases, and gives each
// value its place: the caller's tensor, a constant, or a piece of the arena.
#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "kernels/memory.hpp"
#include "kernels/pieces.hpp"
#include "kernels/plan_impl.hpp"
#include "kernels/rows_apart.hpp"
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
  bool apart = false;            // holds rows: equal shares of its first dimension, one for each row of the batch
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
    if (options_.batch_invariant && options_.piece_bytes > 0) cut_into_pieces();
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
  // A launch to be: a node, a copy of a value to a graph output, or nodes that run in pieces.
  struct Step {
    std::size_t node;              // or kCopy, kPieces
    std::size_t from = 0, to = 0;  // of a copy; of pieces, from: which
  };
  static constexpr std::size_t kCopy = static_cast<std::size_t>(-1);
  static constexpr std::size_t kPieces = static_cast<std::size_t>(-2);
  struct Cut {
    Pieces pieces;
    std::vector<std::size_t> inputs, outputs;  // values
  };

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
    if (steps_[step].node == kPieces) {
      for (const std::size_t id : cuts_[steps_[step].from].inputs) values_[id].last = step;
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

  // `node` and `op`: whose output it is, if it may take over a block of an input.
  void place_output(const Node* node, const OpDef* op, Value& output, std::size_t step) {
    if (output.place.kind != Place::Kind::none) return;
    std::size_t last = std::max(output.last, step);
    if (output.type.dtype == DType::string) {
      output.place = {Place::Kind::strings, plan_->string_buffers.size(), nullptr};
      plan_->string_buffers.push_back(static_cast<std::size_t>(output.type.shape.elements()));
      return;
    }
    output.place.kind = Place::Kind::arena;
    output.block = node == nullptr ? Value::kNoBlock : block_to_reuse(*node, *op, output, step);
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
    if (steps_[step].node == kPieces) {
      lay_out_pieces(step);
      return {};
    }
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
      // Only the first output may take over a block: two must not have one.
      const bool first = &name == &node.outputs.front();
      if (!name.empty()) place_output(first ? &node : nullptr, &op, values_[id_.at(name)], step);
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

  void lay_out_pieces(std::size_t step) {
    Cut& cut = cuts_[steps_[step].from];
    const std::vector<std::string>& inner = cut.pieces.plan->why;
    Launch launch;
    launch.inputs = static_cast<std::uint32_t>(cut.inputs.size());
    launch.backend = "pieces";
    launch.kernel = make_pieces(std::move(cut.pieces), options_.threads);
    launch.node = launch.kernel->implementation();
    plan_->why.push_back(launch.node);
    for (const auto& line : inner) plan_->why.push_back("  " + line);
    std::vector<std::size_t> arguments = cut.inputs;
    for (const std::size_t id : cut.outputs) {
      place_output(nullptr, nullptr, values_[id], step);
      arguments.push_back(id);
    }
    add(std::move(launch), arguments, step);
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

  // --- pieces -----------------------------------------------------------------------------------------------------------------

  // Which values hold rows: those inputs whose first dimension is as large as that of the first, and what is computed of them row by row.
  // Tells of each step whether all that it reads and makes is fit for that.
  std::vector<PieceStep> find_rows(std::int64_t batch) {
    const auto divides = [&](const Shape& shape) { return !shape.empty() && shape.elements() > 0 && shape[0] % batch == 0; };
    for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {
      Value& value = values_[id_.at(graph_.inputs[i].name)];
      value.apart = divides(value.type.shape) && value.type.shape[0] == batch && value.type.dtype != DType::string;
    }
    std::map<std::size_t, std::size_t> step_of;  // node to step
    for (std::size_t s = 0; s < steps_.size(); ++s) step_of.emplace(steps_[s].node, s);
    std::vector<PieceStep> found(steps_.size());
    for (const std::size_t at : typed_->order) {
      const Node& node = graph_.nodes[at];
      const auto step = step_of.find(at);
      if (step != step_of.end()) {
        found[step->second] = rows_of(node, batch);
      } else if (!node.outputs.empty() && !node.outputs[0].empty() && root_[id_.at(node.outputs[0])] != id_.at(node.outputs[0])) {
        Value& view = values_[id_.at(node.outputs[0])];
        view.apart = values_[id_.at(node.inputs[0])].apart && divides(view.type.shape) && view.type.constant == nullptr;
      }
    }
    return found;
  }
  PieceStep rows_of(const Node& node, std::int64_t batch) {
    PieceStep step;
    std::vector<ValueType> inputs;
    std::vector<ValueType> outputs;
    std::array<bool, 64> apart{};
    if (node.inputs.size() > apart.size()) return step;
    for (std::size_t k = 0; k < node.inputs.size(); ++k) {
      const std::string& name = node.inputs[k];
      inputs.push_back(name.empty() ? ValueType{} : typed_->types.at(name));
      if (name.empty()) continue;
      const Value& value = values_[id_.at(name)];
      const Value& root = value_of(name);
      if (!reads_bytes(node, k) || root.apart != value.apart) return step;
      apart[k] = value.apart;
      if (value.apart) step.reads.push_back(root_[id_.at(name)]);
    }
    for (const auto& name : node.outputs) outputs.push_back(name.empty() ? ValueType{} : typed_->types.at(name));
    if (std::ranges::any_of(outputs, [](const ValueType& type) { return type.constant != nullptr; })) return step;
    step.apart = rows_apart({{node, inputs, graph_.opset(node.domain)}, {apart.data(), inputs.size()}, outputs});
    if (!step.apart) return step;
    for (const auto& name : node.outputs) {
      if (name.empty()) continue;
      values_[id_.at(name)].apart = true;
      step.makes.push_back(id_.at(name));
    }
    const bool product = node.op.ends_with("Conv") || node.op.ends_with("MatMul") || node.op == "Gemm";
    if (product && inputs[1].constant != nullptr) {
      const Shape& shape = outputs[0].shape;
      const std::int64_t columns = node.op == "Conv" && node.domain == kOnnx ? shape[1] : shape.back();
      step.product_rows = std::max<std::int64_t>(shape.elements() / columns / batch, 1);
    }
    return step;
  }

  void cut_into_pieces() {
    if (plan_->inputs.empty() || plan_->inputs[0].shape.empty() || plan_->inputs[0].shape[0] < 2) return;
    const std::int64_t batch = plan_->inputs[0].shape[0];
    const std::vector<PieceStep> found = find_rows(batch);
    std::vector<PieceValue> values;
    for (const Value& value : values_) {
      const std::size_t bytes = value.apart ? byte_size(value.type.dtype, value.type.shape).value_or(0) : 0;
      values.push_back({bytes / static_cast<std::size_t>(batch), value.last});
    }
    std::vector<Step> steps;
    std::size_t done = 0;
    for (const Part& part : parts_of(found, values, batch, options_.piece_bytes, options_.threads)) {
      auto cut = cut_out(part, batch);
      if (!cut) continue;
      steps.insert(steps.end(), steps_.begin() + static_cast<std::ptrdiff_t>(done),
                   steps_.begin() + static_cast<std::ptrdiff_t>(part.first));
      steps.push_back({kPieces, cuts_.size()});
      cuts_.push_back(std::move(*cut));
      done = part.end;
    }
    steps.insert(steps.end(), steps_.begin() + static_cast<std::ptrdiff_t>(done), steps_.end());
    steps_ = std::move(steps);
    for (std::size_t step = 0; step < steps_.size(); ++step) mark_uses(step);
  }

  // What a part reads and makes that others see, and its plans.
  std::optional<Cut> cut_out(const Part& part, std::int64_t batch) {
    Cut cut;
    cut.pieces.batch = batch;
    cut.pieces.rows = part.rows;
    std::set<std::size_t> made;
    std::set<std::size_t> read;
    for (std::size_t s = part.first; s < part.end; ++s) {
      const Node& node = graph_.nodes[steps_[s].node];
      for (const auto& name : node.inputs) {
        if (!name.empty() && typed_->types.at(name).constant == nullptr && !made.contains(root_[id_.at(name)]))
          read.insert(root_[id_.at(name)]);
      }
      for (const auto& name : node.outputs) {
        if (!name.empty()) made.insert(id_.at(name));
      }
    }
    const auto row_bytes = [&](std::size_t id) {
      const ValueType& type = values_[id].type;
      return values_[id].apart ? byte_size(type.dtype, type.shape).value_or(0) / static_cast<std::size_t>(batch) : 0;
    };
    for (const std::size_t id : read) {
      cut.inputs.push_back(id);
      cut.pieces.input_bytes.push_back(row_bytes(id));
    }
    for (const std::size_t id : made) {
      if (values_[id].place.kind != Place::Kind::output && values_[id].last < part.end) continue;
      cut.outputs.push_back(id);
      cut.pieces.output_bytes.push_back(row_bytes(id));
    }
    cut.pieces.plan = plan_of(part, cut, batch, part.rows);
    if (cut.pieces.plan == nullptr) return {};
    if (batch % part.rows == 0) return cut;
    cut.pieces.rest = plan_of(part, cut, batch, batch % part.rows);
    if (cut.pieces.rest == nullptr) return {};
    return cut;
  }

  std::string unused(std::string name) const {
    do name += "/shape";
    while (id_.contains(name));
    return name;
  }

  // The part as a graph of its own for so many rows: constants are what they are for the whole batch, views become reshapes.
  std::shared_ptr<const Plan> plan_of(const Part& part, Cut& cut, std::int64_t batch, std::int64_t rows) {
    const auto shape_of = [&](std::size_t id) {
      Shape shape = values_[id].type.shape;
      if (values_[id].apart) shape[0] = shape[0] / batch * rows;
      return shape;
    };
    cut.pieces.graphs.push_back(std::make_shared<Graph>());
    Graph& graph = *cut.pieces.graphs.back();
    graph.opsets = graph_.opsets;
    std::vector<std::string_view> names(values_.size());
    for (const auto& [name, id] : id_) names[id] = name;
    std::vector<Shape> shapes;
    for (const std::size_t id : cut.inputs) {
      shapes.push_back(shape_of(id));
      graph.inputs.push_back({std::string(names[id]), values_[id].type.dtype, shapes.back()});
    }
    for (const std::size_t id : cut.outputs) graph.outputs.push_back({std::string(names[id]), values_[id].type.dtype, shape_of(id)});
    std::set<std::size_t> there;  // constants and views
    for (std::size_t s = part.first; s < part.end; ++s) {
      const Node& node = graph_.nodes[steps_[s].node];
      for (const auto& name : node.inputs) {
        if (name.empty()) continue;
        const std::size_t id = id_.at(name);
        if (values_[id].type.constant != nullptr) {
          if (there.insert(id).second) graph.initializers.emplace(name, *values_[id].type.constant);
        } else if (root_[id] != id && there.insert(id).second) {
          const Shape shape = shape_of(id);
          std::string target = unused(name);
          graph.initializers.emplace(target, Tensor::of<std::int64_t>({static_cast<std::int64_t>(shape.rank())}, shape.dims()));
          graph.nodes.push_back({"Reshape", "", {}, {std::string(names[root_[id]]), std::move(target)}, {name}, {}});
        }
      }
      graph.nodes.push_back(node);
    }
    CompileOptions options = options_;
    options.piece_bytes = 0;
    if (options_.threads > 1) options.threads = 1;
    auto made = Planner(graph, backends_, options, packed_).make(shapes);
    if (!made) return nullptr;
    for (const auto& [name, type] : (*made)->typed->types) {  // as it was meant
      const auto id = id_.find(name);
      if (id != id_.end() && !(type.shape == shape_of(id->second))) return nullptr;
    }
    return *made;
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
  std::vector<Cut> cuts_;
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
