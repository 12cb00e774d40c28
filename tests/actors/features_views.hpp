// Feature views for tests.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "messages/message.hpp"
#include "messages/resources.capnp.h"

namespace falaj::test {

struct FieldSpec {
  std::string name;
  std::string type;
  bool required = false;
  bool personal = false;
};

struct ViewSpec {
  std::uint64_t ttl_seconds = 0;
  std::vector<std::string> purposes = {"credit"};
  std::string tenant = "default";
  std::string event_time;
};

inline Message make_view(std::string_view name, std::string_view entity, const std::vector<FieldSpec>& fields, const ViewSpec& spec = {}) {
  static const std::map<std::string, messages::FieldType> kTypes = {{"float32", messages::FieldType::FLOAT32},
                                                                    {"float64", messages::FieldType::FLOAT64},
                                                                    {"int64", messages::FieldType::INT64},
                                                                    {"bool", messages::FieldType::BOOL},
                                                                    {"string", messages::FieldType::STRING}};
  return Message::build<messages::FeatureView>([&](messages::FeatureView::Builder out) {
    out.setName(std::string(name));
    out.setEntity(std::string(entity));
    out.setTtlSeconds(spec.ttl_seconds);
    out.setEventTime(spec.event_time);
    out.initOwner().setTenant(spec.tenant);
    auto list = out.initField(static_cast<unsigned>(fields.size()));
    for (unsigned i = 0; i < list.size(); ++i) {
      list[i].setName(fields[i].name);
      list[i].setType(kTypes.at(fields[i].type));
      list[i].setRequired(fields[i].required);
      list[i].setPersonal(fields[i].personal);
    }
    auto purposes = out.initPurposes(static_cast<unsigned>(spec.purposes.size()));
    for (unsigned i = 0; i < purposes.size(); ++i) purposes.set(i, spec.purposes[i]);
  });
}

}  // namespace falaj::test
