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
  // `by_launcher`: cluster.json is the launcher's; otherwise a control node writes it, and takes it away when it stops.
  static Result<std::unique_ptr<Node>> start(const NodeDir& dir, bool by_launcher = false);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  [[nodiscard]] const std::string& name() const;
  // Waits for SIGTERM or SIGINT, or for the actor tree to give up; stops in order; returns the process's exit code. Meanwhile it looks
  // every second whether the node's certificate was renewed.
  int run();

 private:
  struct Parts;
  explicit Node(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// Blocks the signals that run() waits for. Call first thing in main, before any thread exists.
void block_signals();

}  // namespace falaj::nodes
