// Passes over a graph before plans are made of it. Each keeps the meaning of every output.
#pragma once
#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

Status fold_constants(Graph& graph);  // nodes that read only constants become initialisers
Status fuse(Graph& graph);            // product + bias + activation becomes one node
void remove_dead(Graph& graph);       // nodes and initialisers that no output depends on

}  // namespace falaj::kernels
