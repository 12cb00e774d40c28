// Following and showing training runs; shared by `falaj train`, `falaj runs` and the demo.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "messages/training.capnp.h"
#include "nodes/client.hpp"

namespace falaj::nodes {

// Name of the run that a stored job starts: its record's revision tells the runs of one job apart.
std::string run_name(std::string_view job, std::uint64_t revision);

// Until the run is over: asks again and again, shows a live line on a terminal and plain lines elsewhere, and calls
// `look` at each answer. Control may be away for a while meanwhile.
Result<View<messages::RunInfo>> follow_run(Client& client, const std::string& run,
                                           const std::function<void(messages::RunInfo::Reader)>& look);

std::string describe_run(messages::RunInfo::Reader run);
std::string metric_text(messages::RunInfo::Reader run, std::string_view name);  // "-" when it has none

}  // namespace falaj::nodes
