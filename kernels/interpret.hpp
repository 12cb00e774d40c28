// Runs a graph node by node, on values that are there: for what no plan can be made of (shapes that depend on data, sequences and
// optionals, If, Loop and Scan), and as the plain meaning that plans are compared with.
//
// Session is what a caller uses for any model: a plan where there can be one, this where not.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.hpp"
#include "kernels/plan.hpp"

namespace falaj::kernels {

// A model from outside must not take more than this, whatever its loops and shapes ask for.
struct InterpretLimits {
  std::size_t bytes_max = std::size_t{8} << 30;      // of values alive at one time
  std::uint64_t nodes_max = std::uint64_t{1} << 26;  // nodes run, in loops too
};

// `inputs` in the order of graph.inputs; outputs in that of graph.outputs.
Result<std::vector<Value>> interpret(const Graph& graph, std::span<const Value> inputs, const InterpretLimits& limits = {});

class Session {
 public:
  // Fails only for graphs that cannot run at all. Plans run on options.threads threads, the caller's among them.
  static Result<Session> make(Graph graph, CompileOptions options = {});
  // Of what is compiled already. Shapes that it has no plan for are errors (`unimplemented`): there is no graph to interpret.
  explicit Session(std::shared_ptr<const Compiled> compiled, std::size_t threads = 1);
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  Result<std::vector<Value>> run(std::span<const Value> inputs);
  [[nodiscard]] const Graph& graph() const;                               // as given: of what was compiled already, after all passes
  [[nodiscard]] const std::shared_ptr<const Compiled>& compiled() const;  // null: there is no plan
  [[nodiscard]] const std::string& interpreted() const;  // why there is no plan; empty: there is one, or none was tried yet

 private:
  struct Impl;
  explicit Session(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace falaj::kernels
