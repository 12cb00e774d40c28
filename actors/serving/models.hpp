// The models that the replicas of one process serve: replicas of the same artifact, compiled alike, share one Model.
#pragma once
#include <compare>
#include <string>

#include "actors/serving/model.hpp"
#include "runtime/base/kept_by_users.hpp"

namespace falaj::serving {

struct ModelKey {
  std::string artifact;  // digest
  ModelOptions options;
  auto operator<=>(const ModelKey&) const = default;
};

using Models = KeptByUsers<ModelKey, Model>;

}  // namespace falaj::serving
