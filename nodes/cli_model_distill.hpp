// The command model distill, which cli_model.cpp adds to its own.
#pragma once
#include "nodes/cli.hpp"

namespace falaj::nodes {

void add_model_distill_command(CLI::App& model, Cli& cli);

}  // namespace falaj::nodes
