#include <cmath>

#include "actors/mlops/registry.hpp"
#include "runtime/base/format.hpp"

namespace falaj::mlops {
namespace {

// One rule: `name` of the candidate must be on the good side of the bound. A metric that is not there cannot hold.
void at_least(GateVerdict& verdict, const Metrics& metrics, std::string_view name, double bound) {
  if (bound <= 0) return;
  const auto found = metrics.find(name);
  const bool good = found != metrics.end() && found->second >= bound;
  verdict.passed = verdict.passed && good;
  verdict.reasons.push_back(found == metrics.end()
                                ? format("{} was not measured; at least {:.4f} is asked", name, bound)
                                : format("{} {:.4f} is {} {:.4f}", name, found->second, good ? "at least" : "below", bound));
}

void at_most(GateVerdict& verdict, const Metrics& metrics, std::string_view name, double bound) {
  if (!std::isfinite(bound)) return;
  const auto found = metrics.find(name);
  const bool good = found != metrics.end() && found->second <= bound;
  verdict.passed = verdict.passed && good;
  verdict.reasons.push_back(found == metrics.end()
                                ? format("{} was not measured; at most {:.4f} is asked", name, bound)
                                : format("{} {:.4f} is {} {:.4f}", name, found->second, good ? "at most" : "above", bound));
}

void against_champion(GateVerdict& verdict, const GateInput& input) {
  const double drop_max = input.gate.getMaxAucDrop();
  if (input.champion_version == 0) {
    verdict.reasons.emplace_back("there is no production version to compare with");
    return;
  }
  if (drop_max >= 1) {
    verdict.reasons.push_back(format("any drop against version {} is allowed", input.champion_version));
    return;
  }
  const auto mine = input.candidate.find("auc");
  const auto theirs = input.champion.find("auc");
  if (mine == input.candidate.end() || theirs == input.champion.end()) {
    verdict.passed = false;
    verdict.reasons.push_back(format("cannot be compared with version {}: {}", input.champion_version,
                                     input.champion_error.empty() ? "its auc on these rows is not known" : input.champion_error));
    return;
  }
  const bool good = theirs->second - mine->second <= drop_max;
  verdict.passed = verdict.passed && good;
  verdict.reasons.push_back(format("auc {:.4f} against {:.4f} of version {}: a drop of {} {:.4f}", mine->second, theirs->second,
                                   input.champion_version, good ? "at most" : "more than", drop_max));
}

}  // namespace

GateVerdict judge(const GateInput& input) {
  GateVerdict verdict;
  at_least(verdict, input.candidate, "auc", input.gate.getMinAuc());
  at_least(verdict, input.candidate, "accuracy", input.gate.getMinAccuracy());
  at_most(verdict, input.candidate, "rmse", input.gate.getMaxRmse());
  against_champion(verdict, input);
  return verdict;
}

}  // namespace falaj::mlops
