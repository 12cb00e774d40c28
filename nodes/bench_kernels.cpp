// `falaj bench kernels`: one thread of the processor, no actors: a matrix product, and the made-up 20-column model answering and learning.
#include <numeric>

#include "kernels/plan.hpp"
#include "kernels/train/trainer.hpp"
#include "nodes/bench.hpp"
#include "nodes/bench_models.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using namespace kernels;

Result<double> product(const BenchPlan& plan, std::int64_t size) {
  const Shape square({size, size});
  const std::vector<float> ones(static_cast<std::size_t>(size * size), 1.0F);
  Graph graph;
  graph.add_input("x", DType::f32, square);
  graph.add_initializer("w", Tensor::of<float>(square, std::span<const float>(ones)));
  graph.add("MatMul", {"x", "w"}, {}, "y");
  graph.add_output("y", DType::f32, square);
  FALAJ_ASSIGN(const auto compiled, compile(std::move(graph), {.batch_invariant = false}));
  Executor executor(compiled);
  const std::vector<Tensor> inputs = {Tensor::of<float>(square, std::span<const float>(ones))};
  std::vector<Tensor> outputs;
  FALAJ_ASSIGN(const auto runs, rate(plan, format("matmul {0}x{0}x{0}", size), [&](std::uint64_t n) -> Status {
                 for (std::uint64_t i = 0; i < n; ++i) FALAJ_TRY(executor.run(inputs, outputs));
                 return {};
               }));
  return runs * 2 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
}

Status model(const BenchPlan& plan, Figures& out) {
  constexpr std::size_t kRows = 1024;
  FALAJ_ASSIGN(auto made, make_bench_model(kRows));
  FALAJ_ASSIGN(const auto trainer, Trainer::make(made.graph, {.spec = made.target}));
  FALAJ_ASSIGN(const auto data, trainer->prepare(made.table, made.labels));
  std::vector<float> gradients(trainer->parameters().size());
  std::vector<std::uint32_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0U);
  FALAJ_ASSIGN(const auto steps, rate(plan, "gradients of 1,024 rows", [&](std::uint64_t n) -> Status {
                 for (std::uint64_t i = 0; i < n; ++i) FALAJ_TRY(trainer->gradient(data, rows, gradients));
                 return {};
               }));
  out["train_rows"] = steps * static_cast<double>(kRows);
  for (const std::size_t batch : {std::size_t{1}, std::size_t{64}}) {
    FALAJ_ASSIGN(const auto runs, rate(plan, format("predictions of {} rows", batch), [&](std::uint64_t n) -> Status {
                   for (std::uint64_t i = 0; i < n; ++i) FALAJ_TRY(trainer->predict(data, std::span(rows).first(batch)));
                   return {};
                 }));
    out[format("predict_rows_{}", batch)] = runs * static_cast<double>(batch);
  }
  return {};
}

}  // namespace

Status bench_kernels(const BenchPlan& plan) {
  kernels::set_flush_denormals();
  Figures ours;
  std::vector<Figure> figures;
  for (const std::int64_t size : {64, 256, 1024}) {
    const auto name = format("matmul_{}", size);
    FALAJ_ASSIGN(ours[name], product(plan, size));
    figures.push_back({name, "flop/s"});
  }
  FALAJ_TRY(model(plan, ours));
  for (const auto* name : {"predict_rows_1", "predict_rows_64", "train_rows"}) figures.push_back({name, "rows/s"});
  print_figures(plan, figures, ours);
  return {};
}

}  // namespace falaj::nodes
