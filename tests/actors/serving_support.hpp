// Views of small clusters and requests, for the tests of serving.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "messages/control.capnp.h"
#include "messages/serving.capnp.h"
#include "runtime/cluster/view.hpp"
#include "runtime/host/sim_host.hpp"

namespace falaj::test {

struct Replica {
  std::string name;
  std::string node;
};

struct ViewOf {
  std::vector<Replica> replicas;
  std::string tenant = "default";
  std::string feature_view;
  std::string purpose;
};

// Deployment "m" on the nodes that now run; later views have greater revisions.
inline std::shared_ptr<const cluster::ClusterSnapshot> view_of(SimWorld& world, const ViewOf& what, std::uint64_t revision) {
  const auto message = Message::build<messages::ClusterView>([&](messages::ClusterView::Builder b) {
    b.setEpoch(1);
    b.setRevision(revision);
    std::vector<std::string> names = {"gateway"};
    for (const auto& replica : what.replicas) {
      if (std::ranges::find(names, replica.node) == names.end()) names.push_back(replica.node);
    }
    auto nodes = b.initNodes(static_cast<unsigned>(names.size()));
    for (unsigned i = 0; i < names.size(); ++i) {
      nodes[i].setName(names[i]);
      nodes[i].setUp(world.running(names[i]));
      nodes[i].setIncarnation(world.running(names[i]) ? world.host(names[i]).incarnation().value() : 0);
    }
    auto directory = b.initDirectory(static_cast<unsigned>(what.replicas.size()));
    for (unsigned i = 0; i < directory.size(); ++i) {
      directory[i].setName(what.replicas[i].name);
      directory[i].setNode(what.replicas[i].node);
      directory[i].setReady(true);
    }
    auto deployment = b.initResources(1)[0].initDeployment();
    deployment.setName("m");
    deployment.initOwner().setTenant(what.tenant);
    deployment.setView(what.feature_view);
    deployment.setPurpose(what.purpose);
  });
  return std::make_shared<const cluster::ClusterSnapshot>(message.open<messages::ClusterView>().value());
}

inline Message infer_request(std::string_view id, const std::vector<float>& x = {1}, std::uint64_t version = 0) {
  return Message::build<messages::Infer>([&](messages::Infer::Builder b) {
    b.setModel("m");
    b.setId(std::string(id));
    b.setVersion(version);
    auto input = b.initInputs(1)[0];
    input.setName("x");
    input.setType(messages::DataType::FP32);
    auto shape = input.initShape(2);
    shape.set(0, static_cast<std::int64_t>(x.size()));
    shape.set(1, 1);
    auto content = input.initContent(static_cast<unsigned>(x.size() * sizeof(float)));
    std::memcpy(content.begin(), x.data(), x.size() * sizeof(float));
  });
}

}  // namespace falaj::test
