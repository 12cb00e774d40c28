#include "actors/control/records.hpp"

#include <capnp/any.h>

#include <algorithm>
#include <set>

#include "runtime/base/format.hpp"

namespace falaj::control {
namespace {

using namespace messages;

Status check_name(std::string_view what, std::string_view name) {
  const auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
  };
  if (name.empty() || name.size() > 128 || !std::ranges::all_of(name, good)) {
    return invalid(format("{} '{}': a name has 1 to 128 letters, digits, '-', '_' or '.'", what, name.substr(0, 160)));
  }
  return {};
}

Status check_view(FeatureView::Reader view) {
  if (view.getField().size() == 0) return invalid("feature_view.field: a view needs at least one field");
  if (view.getPurposes().size() == 0) return invalid("feature_view.purposes: name at least one purpose, or nobody can read it");
  std::set<std::string> names = {std::string(text(view.getEntity()))};
  for (const auto field : view.getField()) {
    FALAJ_TRY(check_name("feature_view.field.name", text(field.getName())));
    if (!names.emplace(text(field.getName())).second)
      return invalid(format("feature_view.field '{}' is given twice, or is the entity", text(field.getName())));
  }
  return {};
}

Status check_job(TrainingJob::Reader job) {
  if (text(job.getView()).empty() || text(job.getLabel()).empty()) return invalid("job.view and job.label must be given");
  if (text(job.getPurpose()).empty())
    return invalid("job.purpose: training reads features, so it must name a purpose that the view allows");
  for (const auto name : job.getExclude()) {
    if (text(name) == text(job.getLabel())) return invalid("job.exclude names the label");
  }
  if (job.getTestFraction() + job.getValidationFraction() > 0.95F)
    return invalid("job.test_fraction and job.validation_fraction leave nothing to train on");
  if (job.getMicroShards() < job.getWorkers())
    return invalid(format("job.micro_shards is {}: each of the {} workers needs at least one", job.getMicroShards(), job.getWorkers()));
  if (text(job.getModel().getFamily()) == "boosted_trees" && job.getWorkers() > 1)
    return invalid(
        format("job.workers is {}: boosted_trees are grown by one worker (which uses the threads of its machine)", job.getWorkers()));
  return {};
}

}  // namespace

Result<ResourceName> name_of(Resource::Reader resource) {
  ResourceName out;
  const auto take = [&out](std::string_view kind, auto value) {
    out.kind = kind;
    out.name = text(value.getName());
    out.tenant = text(value.getOwner().getTenant());
  };
  switch (resource.which()) {
    case Resource::FEATURE_VIEW:
      take("feature_view", resource.getFeatureView());
      break;
    case Resource::JOB:
      take("job", resource.getJob());
      break;
    case Resource::DEPLOYMENT:
      take("deployment", resource.getDeployment());
      break;
    default:
      return error(falaj::ErrorCode::unimplemented, "a kind of resource that this falaj does not know; upgrade it");
  }
  if (out.tenant.empty()) out.tenant = "default";
  FALAJ_TRY(check_name(out.kind + ".name", out.name));
  FALAJ_TRY(check_name(out.kind + ".owner.tenant", out.tenant));
  return out;
}

Status check(Resource::Reader resource) {
  if (resource.isFeatureView()) return check_view(resource.getFeatureView());
  if (resource.isJob()) return check_job(resource.getJob());
  if (resource.isDeployment() && text(resource.getDeployment().getModel()).empty()) return invalid("deployment.model must be given");
  return {};
}

bool same(Resource::Reader a, Resource::Reader b) { return capnp::AnyStruct::Reader(a) == capnp::AnyStruct::Reader(b); }

Bytes record_bytes(const Message& record) {
  const auto view = record.bytes();
  return {view.begin(), view.end()};
}

Result<View<ResourceRecord>> open_record(const storage::KeyValue& item) {
  FALAJ_ASSIGN(const auto stored, message_from_bytes(TypeId(capnp::typeId<ResourceRecord>()), item.value));
  FALAJ_ASSIGN(const auto record, stored.open<ResourceRecord>());
  const auto whole = Message::build<ResourceRecord>(
      [&](ResourceRecord::Builder b) {
        b.setResource(record->getResource());
        b.setCreatedNs(record->getCreatedNs());
        b.setCreatedBy(record->getCreatedBy());
        b.setStatus(record->getStatus());
        b.setRevision(item.modified.value());
      },
      item.value.size() / 8 + 16);
  return whole.view<ResourceRecord>();
}

}  // namespace falaj::control
