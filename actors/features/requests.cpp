#include "actors/features/requests.hpp"

#include "actors/features/values.hpp"
#include "runtime/base/format.hpp"

namespace falaj::features {

namespace {
constexpr std::size_t kErrorsShown = 5;
}

bool personal(messages::FeatureView::Reader view, capnp::List<capnp::Text>::Reader names) {
  for (const auto field : view.getField()) {
    if (!field.getPersonal()) continue;
    if (names.size() == 0) return true;
    for (const auto name : names) {
      if (name == field.getName()) return true;
    }
  }
  return false;
}

Status check_get(messages::FeatureView::Reader view, messages::GetFeatures::Reader get) {
  const auto entities = get.getEntities().size();
  if (entities == 0 || entities > kEntitiesMax) return invalid(format("{} entities; ask for 1 to {} at once", entities, kEntitiesMax));
  for (const auto entity : get.getEntities()) {
    if (entity.size() == 0 || entity.size() > kEntityBytesMax) return invalid(format("an entity is 1 to {} bytes long", kEntityBytesMax));
  }
  for (const auto name : get.getFields()) {
    bool known = false;
    for (const auto field : view.getField()) known = known || field.getName() == name;
    if (!known) return invalid(format("view '{}' has no field '{}'", text(view.getName()), text(name)));
  }
  return {};
}

Status check_put(messages::FeatureView::Reader view, messages::PutRows::Reader put) {
  const auto rows = put.getRows();
  if (rows.size() == 0 || rows.size() > kRowsMax) return invalid(format("{} rows; send 1 to {} at once", rows.size(), kRowsMax));
  std::string errors;
  std::size_t count = 0;
  for (unsigned i = 0; i < rows.size() && count < kErrorsShown; ++i) {
    const auto status = check_row(view, rows[i], i);
    if (status.has_value()) continue;
    errors += (count++ == 0 ? "" : "\n") + status.error().message;
  }
  return count == 0 ? Status{} : Status(invalid(errors));
}

}  // namespace falaj::features
