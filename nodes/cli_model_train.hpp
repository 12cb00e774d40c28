// The commands model train|evaluate, which cli_model.cpp adds to its own.
#pragma once
#include "nodes/cli.hpp"

namespace falaj::nodes {

void add_model_training_commands(CLI::App& model, Cli& cli);

}  // namespace falaj::nodes
