// Actors that other programs host (messages/foreign.capnp): `node/foreign` on every node, `control/foreign` on the control node.
//
// For each name that a program registers, the node that it is linked to runs an actor: asked, watched, found by name and stopped like any
// other. It passes on to the program what it is sent, unopened, and the answers back. It ends with the link, or when somebody has its name.
//
// Invariants: a name has one holder. Among programs the greater incarnation of their links wins: the older one's actor has ended before the
// newer one's is asked anything. A program whose name was taken by a newer one never has it again.
//
// What control forgets in a restart its nodes tell it again: each looks whether the view shows what runs here.
#pragma once
#include <string>
#include <string_view>

#include "runtime/cluster/view.hpp"
#include "runtime/host/host.hpp"

namespace falaj::control {

struct ForeignOptions {
  std::string control_node;
  const cluster::ClusterViewHolder* view = nullptr;
  Authorizer* authorizer = nullptr;  // says who may host which types of actors; null: nobody may
  std::size_t names_max = 1024;      // on this node
  std::size_t names_of_a_program_max = 64;
  std::size_t questions_max = 1024;                // of one actor, sent to its program and not yet answered
  Duration look = std::chrono::milliseconds(500);  // at the view
};

ChildSpec foreign(ForeignOptions options);
ChildSpec foreign_names();

// "foreign/pricing/quote" is of type "foreign/pricing". An error says what is wrong with the name.
Result<std::string> hosted_type(std::string_view name);

}  // namespace falaj::control
