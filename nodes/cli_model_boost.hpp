// The command model boost, which cli_model.cpp adds to its own.
#pragma once
#include "nodes/cli.hpp"

namespace falaj::nodes {

void add_model_boost_command(CLI::App& model, Cli& cli);

}  // namespace falaj::nodes
