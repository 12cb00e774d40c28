#include "actors/training/evaluate.hpp"

#include "actors/artifacts/fetch.hpp"
#include "actors/training/learner.hpp"

namespace falaj::training {

Task<Result<std::map<std::string, double, std::less<>>>> evaluate(Context& ctx, std::string artifact, std::string snapshot, Message spec,
                                                                  std::string principal) {
  const auto job = spec.view<messages::TrainingJob>();
  artifacts::TransferOptions how;
  how.scope = std::make_shared<const Scope>(Scope{std::move(principal),
                                                  std::string(text(job->getOwner().getTenant())),
                                                  std::string(text(job->getPurpose())),
                                                  std::string(text(job->getOwner().getResidency())),
                                                  {}});
  auto fetch_model = artifacts::fetch_artifact(ctx, std::move(artifact), how);
  FALAJ_CO_ASSIGN(auto model, co_await std::move(fetch_model));
  auto fetch_snapshot = artifacts::fetch_artifact(ctx, std::move(snapshot), how);
  FALAJ_CO_ASSIGN(auto rows, co_await std::move(fetch_snapshot));
  auto measuring = ctx.blocking([spec, model = std::move(model), rows = std::move(rows)]() mutable {
    const auto view = spec.view<messages::TrainingJob>();
    return evaluate_model(*view, std::move(rows), std::move(model));
  });
  co_return co_await measuring;
}

}  // namespace falaj::training
