// One node: a process with roles. start() builds every component by hand and hands it what it needs, in the order of node.cpp, which is
// the parts list of the system. Nothing here decides anything.
#pragma once
#include <memory>
#include <string>

#include "nodes/layout.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

class Node {
 public:
  // `control_address`, when given, replaces the one of config.toml (a joined node whose control moved).
  static Result<std::unique_ptr<Node>> start(const NodeDir& dir);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  [[nodiscard]] const std::string& name() const;
  // Waits for SIGTERM or SIGINT, or for the actor tree to give up; stops in order; returns the process's exit code.
  int run();

 private:
  struct Parts;
  explicit Node(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// Blocks the signals that run() waits for. Call first thing in main, before any thread exists.
void block_signals();

}  // namespace falaj::nodes
