// Storing the rows of a CSV file in a feature view, over a principal's connection.
#pragma once
#include <string>

#include "actors/features/csv.hpp"
#include "nodes/client.hpp"

namespace falaj::nodes {

// Two passes: the whole file is good before the first row is sent, so that a bad file changes nothing. Shows a progress bar on a terminal.
Result<features::CsvSummary> ingest_csv(Client& client, messages::FeatureView::Reader view, const std::string& file);

}  // namespace falaj::nodes
