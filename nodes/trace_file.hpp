// Spans of several nodes as a file for Perfetto (ui.perfetto.dev) and chrome://tracing: the Trace Event Format, as JSON. A process for each
// node, a thread for each actor, a slice for each message handled, an arrow along the slices of one W3C trace.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "messages/control.capnp.h"
#include "messages/message.hpp"

namespace falaj::nodes {

struct TracedNode {
  std::string name;
  std::int64_t ahead_ns = 0;  // of this machine's wall clock
  std::vector<View<messages::Spans>> pages;
};

struct TraceFile {
  std::string json;
  std::uint64_t spans = 0;
  std::uint64_t traces = 0;  // that go through more than one actor
};

TraceFile trace_file(const std::vector<TracedNode>& nodes);

}  // namespace falaj::nodes
