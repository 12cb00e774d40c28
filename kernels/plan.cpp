#include "kernels/plan.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "kernels/cpu/isa.hpp"
#include "kernels/optimise.hpp"
#include "kernels/plan_impl.hpp"
#include "kernels/team.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

std::vector<std::int64_t> signature(std::span<const Shape> shapes) {
  std::vector<std::int64_t> key;
  for (const Shape& shape : shapes) {
    key.push_back(static_cast<std::int64_t>(shape.rank()));
    key.insert(key.end(), shape.begin(), shape.end());
  }
  return key;
}

// The plans of a Compiled by shape; the oldest go first when there are too many. Executors meet here only for shapes they have not
// seen yet.
class PlanCache {
 public:
  explicit PlanCache(std::size_t plans_max) : plans_max_(std::max<std::size_t>(plans_max, 1)) {}
  std::shared_ptr<const Plan> find(const std::vector<std::int64_t>& key) const {
    std::lock_guard lock(mutex_);
    auto found = plans_.find(key);
    return found == plans_.end() ? nullptr : found->second;
  }
  std::shared_ptr<const Plan> insert(std::vector<std::int64_t> key, std::shared_ptr<const Plan> plan) {
    std::lock_guard lock(mutex_);
    auto [at, fresh] = plans_.try_emplace(key, std::move(plan));
    if (fresh) {
      order_.push_back(std::move(key));
      if (order_.size() > plans_max_) {
        plans_.erase(order_.front());
        order_.pop_front();
        at = plans_.find(order_.back());
      }
    }
    return at->second;
  }

 private:
  std::size_t plans_max_;
  mutable std::mutex mutex_;
  std::map<std::vector<std::int64_t>, std::shared_ptr<const Plan>> plans_;
  std::deque<std::vector<std::int64_t>> order_;
};

// Shapes must be those that the graph declares, with one size for each symbol.
Status check_shapes(const Graph& graph, std::span<const Shape> shapes) {
  if (shapes.size() != graph.inputs.size())
    return invalid(format("{} inputs are given; the model takes {}", shapes.size(), graph.inputs.size()));
  std::map<std::string_view, std::pair<std::int64_t, std::string_view>> symbols;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const ValueInfo& input = graph.inputs[i];
    const Shape& shape = shapes[i];
    bool fits = !input.has_shape || shape.rank() == input.shape.rank();
    for (std::size_t d = 0; fits && input.has_shape && d < shape.rank(); ++d)
      fits = shape[d] >= 0 && (input.shape[d] < 0 || input.shape[d] == shape[d]);
    if (!fits) return invalid(format("input '{}' has shape {}; the model takes {}", input.name, to_string(shape), to_string(input.shape)));
    for (std::size_t d = 0; d < input.symbols.size() && d < shape.rank(); ++d) {
      if (input.symbols[d].empty() || input.shape[d] >= 0) continue;
      auto [at, fresh] = symbols.try_emplace(input.symbols[d], shape[d], input.name);
      if (!fresh && at->second.first != shape[d]) {
        return invalid(format("input '{}' has {} = {}, but input '{}' has {}: both must be the same", input.name, input.symbols[d],
                              shape[d], at->second.second, at->second.first));
      }
    }
  }
  return {};
}

std::vector<Shape> shapes_for(const std::vector<ValueInfo>& inputs, std::int64_t batch) {
  std::vector<Shape> shapes;
  for (const auto& input : inputs) {
    Shape shape = input.shape;
    for (std::size_t d = 0; d < shape.rank(); ++d) shape[d] = shape[d] < 0 ? batch : shape[d];
    shapes.push_back(shape);
  }
  return shapes;
}

}  // namespace

namespace {
constinit thread_local bool g_reference_only = false;
}

ReferenceKernels::ReferenceKernels() noexcept : before_(std::exchange(g_reference_only, true)) {}
ReferenceKernels::~ReferenceKernels() { g_reference_only = before_; }

std::span<const Backend* const> default_backends() {
  static const Backend* const kList[] = {&cpu_backend(), &reference_backend()};
  if (g_reference_only) return std::span(kList).last(1);
  return kList;
}

std::vector<const Backend*> backends_after(const Backend& first) {
  std::vector<const Backend*> out = {&first};
  out.insert(out.end(), default_backends().begin(), default_backends().end());
  return out;
}

namespace {
std::span<const Backend* const> backends_of(const CompileOptions& options) {
  return options.backends.empty() ? default_backends() : std::span<const Backend* const>(options.backends);
}
}  // namespace

const Backend& reference_backend() {
  static const Backend kReference{"reference", [](const OpDef& op, const KernelCall& call) { return make_reference(op, call); }};
  return kReference;
}

// --- Compiled ---------------------------------------------------------------------------------------------------------------

struct Compiled::Impl {
  Graph graph;
  CompileOptions options;
  std::shared_ptr<PackedWeights> packed;
  PlanCache plans;
  std::vector<std::string> notes;  // of the passes, for why()
  Impl(Graph g, CompileOptions o) : graph(std::move(g)), options(std::move(o)), packed(options.packed), plans(options.plans_max) {
    if (packed == nullptr) packed = std::make_shared<PackedWeights>();
  }
};

Compiled::Compiled(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Compiled::~Compiled() = default;
const std::vector<ValueInfo>& Compiled::inputs() const { return impl_->graph.inputs; }
const std::vector<ValueInfo>& Compiled::outputs() const { return impl_->graph.outputs; }
const Graph& Compiled::graph() const { return impl_->graph; }
std::shared_ptr<PackedWeights> Compiled::packed() const { return impl_->packed; }

Result<std::shared_ptr<const Plan>> Compiled::plan(std::span<const Shape> input_shapes) const {
  FALAJ_TRY(check_shapes(impl_->graph, input_shapes));
  auto key = signature(input_shapes);
  if (auto found = impl_->plans.find(key)) return found;
  FALAJ_ASSIGN(auto made, make_plan(impl_->graph, input_shapes, backends_of(impl_->options), impl_->options, impl_->packed.get()));
  return impl_->plans.insert(std::move(key), std::move(made));
}

Result<std::string> Compiled::why(std::int64_t batch) const {
  FALAJ_ASSIGN(auto made, plan(shapes_for(impl_->graph.inputs, batch)));
  std::string text =
      format("{} launches, arena {} bytes, packed weights {} bytes\n", made->launches.size(), made->arena_bytes, impl_->packed->bytes());
  for (const auto& line : made->why) text += line + "\n";
  for (const auto& line : impl_->notes) text += line + "\n";
  return text;
}

Result<std::shared_ptr<const Compiled>> compile(Graph graph, CompileOptions options) {
  FALAJ_TRY(validate(graph));
  if (graph.outputs.empty()) return invalid("the graph has no outputs: declare at least one");
  for (const auto& input : graph.inputs) {
    if (input.kind != ValueKind::tensor)
      return Error{ErrorCode::unimplemented, format("input '{}' is no tensor: such models run in the interpreter only", input.name)};
  }
  if (options.fuse) read_through_identities(graph);
  remove_dead(graph);
  std::vector<std::string> notes;
  const auto backends = backends_of(options);
  const bool fast = options.fuse && std::ranges::find(backends, &cpu_backend()) != backends.end() && cpu::has_avx2();
  if (fast) {
    lower_einsums(graph);
    lower_recurrent(graph);
  }
  if (options.fold) {
    FALAJ_TRY(fold_constants(graph, options.fuse));
    remove_dead(graph);
    if (options.fuse) {
      FALAJ_TRY(use_integers(graph, notes));
      FALAJ_TRY(fold_constants(graph));
      remove_dead(graph);
    }
  }
  for (const Node& node : graph.nodes) {
    if (find_op(node.domain, node.op)->eager != nullptr)
      return Error{ErrorCode::unimplemented, format("{}: what it gives depends on data; it runs in the interpreter only", describe(node))};
  }
  if (fast) {
    find_gelus(graph);
    find_swishes(graph);
    find_attention(graph);
    FALAJ_TRY(use_channels_last(graph, backends.front() == &cpu_backend()));  // those in bfloat16 do not pool, and leave the least to f32
    turn_weights(graph);
  }
  if (options.fuse) FALAJ_TRY(fuse(graph));
  const bool rounds = std::ranges::find(backends, &bf16_training_backend()) != backends.end();
  if (fast && cpu::has_avx512_bf16() && rounds) share_halves(graph);
  if (fast && !options.batch_invariant && (rounds ? cpu::has_avx512_bf16() : cpu::has_avx512())) use_blocks(graph, rounds);
  return compiled_from(std::move(graph), std::move(options), std::move(notes));
}

std::shared_ptr<const Compiled> compiled_from(Graph graph, CompileOptions options, std::vector<std::string> notes) {
  auto impl = std::make_unique<Compiled::Impl>(std::move(graph), std::move(options));
  impl->notes = std::move(notes);
  return std::make_shared<const Compiled>(std::move(impl));
}

const std::vector<std::string>& notes_of(const Compiled& compiled) { return compiled.impl_->notes; }

// --- Executor ---------------------------------------------------------------------------------------------------------------

namespace {

// A plan with the pointers of one executor.
struct Bound {
  std::shared_ptr<const Plan> plan;
  std::vector<void*> arguments;
  struct Patch {
    std::uint32_t argument, index;
  };
  std::vector<Patch> inputs, outputs;  // arguments that change with each run
  std::vector<std::vector<std::string>> strings;

  explicit Bound(std::shared_ptr<const Plan> p) : plan(std::move(p)), arguments(plan->arguments.size(), nullptr) {
    for (std::size_t n : plan->string_buffers) strings.emplace_back(std::max<std::size_t>(n, 1));
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      const Place& place = plan->arguments[i];
      auto patch = Patch{static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(place.index)};
      if (place.kind == Place::Kind::input) inputs.push_back(patch);
      if (place.kind == Place::Kind::output) outputs.push_back(patch);
      if (place.kind == Place::Kind::constant) arguments[i] = place.data;
      if (place.kind == Place::Kind::strings) arguments[i] = strings[place.index].data();
    }
  }
  void attach(std::byte* arena) {
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      if (plan->arguments[i].kind == Place::Kind::arena) arguments[i] = arena + plan->arguments[i].index;
    }
  }
};

}  // namespace

struct Executor::Impl {
  std::shared_ptr<const Compiled> compiled;
  std::map<std::vector<std::int64_t>, std::unique_ptr<Bound>> bound;
  std::deque<std::vector<std::int64_t>> order;
  Bound* current = nullptr;
  Tensor arena;
  std::string failure;
  ExecutorStats stats;
  std::unique_ptr<Team> team;  // none: the calling thread alone
  static constexpr std::size_t kBoundMax = 128;

  Status select(std::span<const Shape> shapes) {
    auto key = signature(shapes);
    if (auto found = bound.find(key); found != bound.end()) {
      current = found->second.get();
      return {};
    }
    FALAJ_ASSIGN(auto plan, compiled->plan(shapes));
    if (plan->arena_bytes > arena.bytes()) {
      arena = Tensor(DType::u8, {static_cast<std::int64_t>(plan->arena_bytes)});
      for (auto& [other, b] : bound) b->attach(static_cast<std::byte*>(arena.mutable_raw()));
    }
    if (order.size() == kBoundMax) {
      bound.erase(order.front());
      order.pop_front();
    }
    auto fresh = std::make_unique<Bound>(std::move(plan));
    fresh->attach(static_cast<std::byte*>(arena.mutable_raw()));
    current = fresh.get();
    order.push_back(key);
    bound.emplace(std::move(key), std::move(fresh));
    ++stats.plans;
    stats.arena_bytes = arena.bytes();
    return {};
  }

  [[nodiscard]] bool fits(std::span<const Tensor> inputs) const {
    if (current == nullptr || inputs.size() != current->plan->inputs.size()) return false;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!(inputs[i].shape() == current->plan->inputs[i].shape)) return false;
    }
    return true;
  }

  Status check_types(std::span<const Tensor> inputs) const {
    const auto& wanted = compiled->inputs();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].dtype() == wanted[i].dtype) continue;
      return invalid(
          format("input '{}' is {}; the model takes {}", wanted[i].name, to_string(inputs[i].dtype()), to_string(wanted[i].dtype)));
    }
    return {};
  }
};

Executor::Executor(std::shared_ptr<const Compiled> compiled, std::size_t threads) : impl_(std::make_unique<Impl>()) {
  impl_->compiled = std::move(compiled);
  if (threads > 1) impl_->team = std::make_unique<Team>(threads, "executor");
}
Executor::~Executor() = default;
Executor::Executor(Executor&&) noexcept = default;
Executor& Executor::operator=(Executor&&) noexcept = default;
const Compiled& Executor::compiled() const { return *impl_->compiled; }
ExecutorStats Executor::stats() const { return impl_->stats; }
Team* Executor::team() const { return impl_->team.get(); }

Status Executor::prepare(std::span<const Shape> input_shapes) { return impl_->select(input_shapes); }
Status Executor::prepare(std::int64_t batch) { return impl_->select(shapes_for(impl_->compiled->inputs(), batch)); }

Status Executor::run(std::span<const Tensor> inputs, std::vector<Tensor>& outputs) {
  Impl& self = *impl_;
  if (!self.fits(inputs)) {
    std::vector<Shape> shapes;
    for (const Tensor& t : inputs) shapes.push_back(t.shape());
    FALAJ_TRY(self.select(shapes));
  }
  FALAJ_TRY(self.check_types(inputs));
  Bound& bound = *self.current;
  const Plan& plan = *bound.plan;
  outputs.resize(plan.outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const ValueType& type = plan.outputs[i];
    Tensor& out = outputs[i];
    bool reusable = out.dtype() == type.dtype && out.shape() == type.shape && (out.borrowed() || out.unique());
    if (!reusable) out = Tensor::uninitialised(type.dtype, type.shape);
  }
  for (auto patch : bound.inputs) bound.arguments[patch.argument] = const_cast<void*>(inputs[patch.index].raw());
  for (auto patch : bound.outputs) bound.arguments[patch.argument] = outputs[patch.index].mutable_raw();
  auto* arena = static_cast<std::byte*>(self.arena.mutable_raw());
  for (const Launch& launch : plan.launches) {
    void* const* arguments = bound.arguments.data() + launch.first_argument;
    launch.kernel->run(Io{arguments, arguments + launch.inputs, arena + launch.scratch, &self.failure, self.team.get()});
    if (!self.failure.empty()) [[unlikely]] {
      Error error = within(launch.node, invalid(std::move(self.failure)));
      self.failure.clear();
      return error;
    }
  }
  ++self.stats.runs;
  return {};
}

// --- PackedWeights ------------------------------------------------------------------------------------------------------------

struct PackedWeights::Impl {
  struct Entry {
    Tensor source;  // kept, so that its address is not given to another tensor
    std::shared_ptr<const Tensor> packed;
  };
  using Key = std::pair<const void*, std::string>;
  mutable std::mutex mutex;
  std::map<Key, Entry> entries;
};

PackedWeights::PackedWeights() : impl_(std::make_unique<Impl>()) {}
PackedWeights::~PackedWeights() = default;

std::shared_ptr<const Tensor> PackedWeights::find(const Tensor& source, std::string_view layout) const {
  std::lock_guard lock(impl_->mutex);
  auto found = impl_->entries.find({source.raw(), std::string(layout)});
  return found == impl_->entries.end() ? nullptr : found->second.packed;
}

std::shared_ptr<const Tensor> PackedWeights::insert(const Tensor& source, std::string_view layout, Tensor packed) {
  std::lock_guard lock(impl_->mutex);
  auto& entry = impl_->entries[{source.raw(), std::string(layout)}];
  if (entry.packed == nullptr) entry = {source, std::make_shared<const Tensor>(std::move(packed))};
  return entry.packed;
}

void PackedWeights::each(const Visit& visit) const {
  std::lock_guard lock(impl_->mutex);
  for (const auto& [key, entry] : impl_->entries) visit(entry.source, key.second, entry.packed);
}

std::size_t PackedWeights::bytes() const {
  std::lock_guard lock(impl_->mutex);
  std::size_t total = 0;
  for (const auto& [key, entry] : impl_->entries) total += entry.packed->bytes();
  return total;
}

}  // namespace falaj::kernels
