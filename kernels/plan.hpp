// From a Graph to something that runs: compile once, run many times without allocating.
//
//   auto compiled = compile(std::move(graph));                 // validated, folded, fused; shared by all executors
//   Executor executor(*compiled);                              // one for each thread; owns the arena
//   std::vector<Tensor> outputs;
//   auto status = executor.run(inputs, outputs);               // any batch; outputs are reused where they fit
//
// A plan is made for the shapes of the inputs at their first use and kept (the number kept is bounded); packed weights are shared by
// all plans and executors of a Compiled, and by several Compileds that are given the same PackedWeights.
//
// Outputs: a tensor in `outputs` that has the right type and shape is written where it is, borrowed ones included (gradients
// straight into a bucket); anything else is replaced by a new one. Inputs may be borrowed (parameters).
//
// Threads: an Executor may own helpers, which the kernels of a run share their work with. They are made with it, and sleep between runs.
//
// Determinism: the same Compiled, shapes and bytes give the same bits on the same machine, on any number of threads. With batch_invariant
// (the default for graphs that are compiled for inference) a row's bits do not depend on the batch it came in.
//
// Ways to get hurt: an Executor is not thread-safe; an output must not overlap an input; call set_flush_denormals() once on each
// compute thread, or denormal values make layers several times slower.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/graph.hpp"
#include "kernels/ops.hpp"
#include "kernels/tensor.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

// One way to run ops. Backends are tried in order; a refusal is an Error whose message says why.
struct Backend {
  std::string_view name;
  Result<KernelPtr> (*make)(const OpDef&, const KernelCall&);
};
const Backend& cpu_backend();            // AVX2 and oneDNN, chosen at run time
const Backend& bf16_backend();           // products and convolutions by known weights, operands rounded to bfloat16: for who asks for it
const Backend& bf16_training_backend();  // likewise whatever the operands are, gradients included
const Backend& reference_backend();      // plain loops for every op
std::span<const Backend* const> default_backends();
std::vector<const Backend*> backends_after(const Backend& first);  // the default ones, asked when `first` refuses
std::string backends_version();  // what the packed forms of weights depend on, beside this program: the processor's instructions, oneDNN

// While this lives, the default backends of this thread are the reference ones alone: the same bits on any machine, for simulations.
class ReferenceKernels {
 public:
  ReferenceKernels() noexcept;
  ~ReferenceKernels();
  ReferenceKernels(const ReferenceKernels&) = delete;
  ReferenceKernels& operator=(const ReferenceKernels&) = delete;

 private:
  bool before_;
};

struct CompileOptions {
  std::vector<const Backend*> backends = {};   // empty: default_backends()
  bool fold = true;                            // evaluate what does not depend on inputs
  bool fuse = true;                            // MatMul/Gemm + bias + activation
  bool batch_invariant = true;                 // see above; training sets it to false to allow oneDNN's blocked products
  std::size_t threads = 1;                     // that its executors will have: what is set aside for them, nothing else
  std::size_t plans_max = 128;                 // shapes kept; the least recently made goes first
  std::size_t piece_bytes = 256U << 10;        // a batch whose values take many times that goes a few rows at a time; 0: always as a whole
  std::shared_ptr<PackedWeights> packed = {};  // share packed weights with other Compileds of the same weights
};

class Plan;

// An immutable, compiled graph. Shared by the executors of a process.
class Compiled {
 public:
  struct Impl;
  explicit Compiled(std::unique_ptr<Impl> impl);
  ~Compiled();
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;

  [[nodiscard]] const std::vector<ValueInfo>& inputs() const;
  [[nodiscard]] const std::vector<ValueInfo>& outputs() const;
  [[nodiscard]] const Graph& graph() const;  // after folding and fusion
  [[nodiscard]] std::shared_ptr<PackedWeights> packed() const;

  // The plan for these input shapes, made if needed. Errors name the input and what it should be, or the node that fails.
  [[nodiscard]] Result<std::shared_ptr<const Plan>> plan(std::span<const Shape> input_shapes) const;
  // One line for each launch: node, backend and implementation, arena offset; and every refusal with its reason.
  [[nodiscard]] Result<std::string> why(std::int64_t batch = 1) const;

 private:
  friend const std::vector<std::string>& notes_of(const Compiled& compiled);
  std::unique_ptr<Impl> impl_;
};

Result<std::shared_ptr<const Compiled>> compile(Graph graph, CompileOptions options = {});

struct ExecutorStats {
  std::uint64_t runs = 0;
  std::uint64_t plans = 0;  // shapes this executor has met
  std::size_t arena_bytes = 0;
};

class Executor {
 public:
  explicit Executor(std::shared_ptr<const Compiled> compiled, std::size_t threads = 1);  // the caller's is one of them
  ~Executor();
  Executor(Executor&&) noexcept;
  Executor& operator=(Executor&&) noexcept;

  // `inputs` in the order of compiled.inputs(). On error, outputs are unspecified.
  Status run(std::span<const Tensor> inputs, std::vector<Tensor>& outputs);
  // Makes the plan and the arena for these shapes now, so that the first run is as fast as the others.
  Status prepare(std::span<const Shape> input_shapes);
  Status prepare(std::int64_t batch);  // every unknown size = batch
  [[nodiscard]] const Compiled& compiled() const;
  [[nodiscard]] ExecutorStats stats() const;
  [[nodiscard]] Team* team() const;  // for other work of the thread that runs this; null: there are no helpers

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Derived forms of constant weights, made once. Thread-safe.
class PackedWeights {
 public:
  PackedWeights();
  ~PackedWeights();
  // The packed form of `source` named `layout`, made by `make` at the first call.
  template <class Make>
  std::shared_ptr<const Tensor> get(const Tensor& source, std::string_view layout, Make make);
  void put(const Tensor& source, std::string_view layout, Tensor packed) { insert(source, layout, std::move(packed)); }
  using Visit = std::function<void(const Tensor& source, const std::string& layout, const std::shared_ptr<const Tensor>& packed)>;
  void each(const Visit& visit) const;
  [[nodiscard]] std::size_t bytes() const;

 private:
  std::shared_ptr<const Tensor> find(const Tensor& source, std::string_view layout) const;
  std::shared_ptr<const Tensor> insert(const Tensor& source, std::string_view layout, Tensor packed);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

template <class Make>
std::shared_ptr<const Tensor> PackedWeights::get(const Tensor& source, std::string_view layout, Make make) {
  if (auto found = find(source, layout)) return found;
  return insert(source, layout, make());
}

// Denormals to zero, in and out, on the calling thread.
void set_flush_denormals();

}  // namespace falaj::kernels
