// A batch that does not fit the caches goes through a part of a plan a few rows at a time: between two nodes a row's values are still near
// when they are read again, and less memory is needed. The part is a plan of its own, made for so many rows, that is run again and again
// as one kernel. Rows are the same bits as in the whole batch, for every node of the part computes each row for itself (rows_apart.hpp)
// and its kernels are batch-invariant.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "kernels/plan_impl.hpp"

namespace falaj::kernels {

// A launch to be, as what follows needs it. Values are numbers of the caller's.
struct PieceStep {
  bool apart = false;              // computes each row for itself
  std::vector<std::size_t> reads;  // values that hold rows
  std::vector<std::size_t> makes;
  std::int64_t product_rows = 0;  // for each row of the batch, of a product with known weights; 0: it is none
};
struct PieceValue {
  std::size_t row_bytes = 0;  // 0: it holds no rows
  std::size_t last = 0;       // the last step that reads it
};
// Steps [first, end) run `rows` rows at a time.
struct Part {
  std::size_t first = 0, end = 0;
  std::int64_t rows = 0;
};
// The longest runs of two steps or more that are worth it: so many rows at a time as fit `bytes`, where the whole batch takes many times
// that, and enough of them that products do not spend their time fetching weights.
std::vector<Part> parts_of(std::span<const PieceStep> steps, std::span<const PieceValue> values, std::int64_t batch, std::size_t bytes,
                           std::size_t threads);

// Plans of a part for `rows` rows, and for what is left of `batch` if it is no multiple of that (otherwise null).
struct Pieces {
  std::int64_t batch = 0, rows = 0;
  std::shared_ptr<const Plan> plan, rest;
  std::vector<std::shared_ptr<Graph>> graphs;          // whose constants they point to
  std::vector<std::size_t> input_bytes, output_bytes;  // of a row; 0: the same for all rows
};
// Runs them. With several threads, pieces are run by as many at a time.
KernelPtr make_pieces(Pieces pieces, std::size_t threads);

}  // namespace falaj::kernels
