// Which nodes compute each row for itself, so that a batch may go through them a few rows at a time.
#pragma once
#include <span>

#include "kernels/ops.hpp"

namespace falaj::kernels {

// A call at a batch: `apart` says of each input whether it holds rows, that is, equal shares of its first dimension belong to the rows of
// the batch; others are the same for all rows. Constants never hold rows.
struct RowsCall : OpCall {
  std::span<const bool> apart;
  std::span<const ValueType> outputs;
};

// Every output holds rows, and what belongs to a row depends on what belongs to it in the inputs alone. Told of known ops only: false of
// any other, and where an attribute or a constant would have to be written anew for fewer rows. Reshapes are not for this to judge.
bool rows_apart(const RowsCall& call);

}  // namespace falaj::kernels
