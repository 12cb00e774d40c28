// Training, round by round: derivatives of the loss at the present scores, a tree for each output, new scores.
//
//   auto booster = Booster::make(spec, target, table, labels, train, validation, threads).value();
//   while (!booster->done()) FALAJ_TRY(booster->step());
//   auto graph = booster->graph();                // ONNX, raw columns in (export.hpp)
//
// Deterministic: the same data, spec and seed give the same trees for any number of threads, and a Booster that loaded the state of
// another goes on as that would have.
// Ways to get hurt: not thread-safe; a step takes as long as it takes.
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "kernels/train/fit.hpp"
#include "kernels/trees/tree.hpp"

namespace falaj::kernels::trees {

class Booster {
 public:
  // labels: as encode_labels gives them, for all rows of the table. train: not empty, no row twice. With patience, validation rows are
  // needed.
  static Result<std::unique_ptr<Booster>> make(const Spec& spec, const TargetSpec& target, const Table& table,
                                               std::span<const float> labels, std::vector<std::uint32_t> train,
                                               std::vector<std::uint32_t> validation, std::size_t threads);
  ~Booster();
  Booster(const Booster&) = delete;
  Booster& operator=(const Booster&) = delete;

  Status step();  // nothing once done(); an error names the round; the Booster is of no use then
  [[nodiscard]] bool done() const noexcept;
  [[nodiscard]] std::uint32_t rounds() const noexcept;
  [[nodiscard]] double training_loss() const;             // of the training rows, now
  [[nodiscard]] double validation_loss() const noexcept;  // after the last round; NaN without validation rows

  // With patience: up to the round with the best validation loss.
  [[nodiscard]] Forest forest() const;
  [[nodiscard]] Result<Evaluation> evaluate(std::span<const std::uint32_t> rows) const;
  [[nodiscard]] Result<Graph> graph() const;

  [[nodiscard]] Bytes state() const;
  Status load(ByteView state);

 private:
  struct Impl;
  explicit Booster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace falaj::kernels::trees
