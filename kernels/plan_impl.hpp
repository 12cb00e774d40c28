// The insides of a plan, shared by its maker (plan.cpp) and the executor.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/plan.hpp"

namespace falaj::kernels {

// Where a value's bytes are.
struct Place {
  enum class Kind : std::uint8_t { none, input, output, constant, arena, strings };
  Kind kind = Kind::none;
  std::size_t index = 0;  // input or output number, offset in the arena, or number of the string buffer
  void* data = nullptr;   // of a constant
};

struct Launch {
  KernelPtr kernel;
  std::uint32_t first_argument = 0;  // inputs, then outputs, in Plan::arguments
  std::uint32_t inputs = 0;
  std::size_t scratch = 0;  // offset in the arena
  std::string node;         // for errors and why()
  std::string_view backend;
};

// Immutable; what changes in a run (arena, pointers) belongs to the executor.
class Plan {
 public:
  std::vector<ValueType> inputs, outputs;
  std::vector<Launch> launches;
  std::vector<Place> arguments;
  std::vector<std::size_t> string_buffers;  // number of strings in each
  std::size_t arena_bytes = 0;
  std::vector<std::string> why;
  std::shared_ptr<const TypedGraph> typed;  // owns the folded constants that launches point to
};

// Makes the plan of `graph` for these input shapes.
Result<std::shared_ptr<const Plan>> make_plan(const Graph& graph, std::span<const Shape> input_shapes,
                                              std::span<const Backend* const> backends, const CompileOptions& options,
                                              PackedWeights* packed);

// Of a graph that has been through the passes already, and what they had to say (for why()).
std::shared_ptr<const Compiled> compiled_from(Graph graph, CompileOptions options, std::vector<std::string> notes);
const std::vector<std::string>& notes_of(const Compiled& compiled);

}  // namespace falaj::kernels
