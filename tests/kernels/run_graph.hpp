// Graphs that tests compile and run once.
#pragma once
#include <gtest/gtest.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/plan.hpp"

namespace falaj::kernels::testing {

// The graph's outputs, by fast kernels or by the reference ones alone. `fits` judges which kernels are fast: the text of why() for `rows`.
// Nothing where it does not compile or run, which is then reported.
template <class Fits>
std::vector<Tensor> run_graph(const Graph& graph, std::span<const Tensor> inputs, std::size_t threads, bool fast, Fits&& fits,
                              std::int64_t rows = 1) {
  CompileOptions options{.threads = threads};
  if (!fast) options.backends = {&reference_backend()};
  const auto compiled = compile(graph, std::move(options));
  EXPECT_TRUE(compiled) << compiled.error().message;
  if (!compiled) return {};
  if (fast) {
    const auto why = (*compiled)->why(rows);
    EXPECT_TRUE(why && fits(*why)) << (why ? *why : why.error().message);
  }
  Executor executor(*compiled, threads);
  std::vector<Tensor> got;
  const auto status = executor.run(inputs, got);
  EXPECT_TRUE(status) << status.error().message;
  return status ? got : std::vector<Tensor>();
}

}  // namespace falaj::kernels::testing
