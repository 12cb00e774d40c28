// Tensors of messages/serving.capnp as text.
#pragma once
#include <string>

#include "messages/serving.capnp.h"

namespace falaj::nodes {

// Elements of row `row` of a tensor whose first dimension is `rows`, joined by blanks.
std::string show_row(messages::Tensor::Reader tensor, unsigned row, unsigned rows);

}  // namespace falaj::nodes
