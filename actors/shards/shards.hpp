// Actors that are addressed by key (`shard/<type>/<key>`), and singletons (`singleton/<name>`), on one node.
//
// `node/shards` keeps the node's lease and map (actors/control/shards.hpp says who has what); under it stands `shards/<type>` for each
// type: it starts the actor of a key when somebody asks for it, passes on what is for another node's keys, lets those that are idle go, and
// gives what they hold to another node when control moves them.
//
// What a type may rely on: of the actors of one key, in the whole cluster, only the newest answers. One that was cut off finds its lease
// ended before another begins; it is kept, unheard, until control says whose the key is, so that a restart of control costs no state (a
// singleton's is stopped, since it may do more than answer). What it cannot rely on: that an actor knows what one before it knew. It does
// when the key was moved (GiveState), not when a node has died.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "messages/control.capnp.h"
#include "runtime/cluster/shards.hpp"
#include "runtime/host/actor.hpp"

namespace falaj::shards {

inline constexpr Duration kIdle = std::chrono::minutes(1);

struct Birth {
  std::string key;
  std::uint64_t epoch = 0;                      // of its partition: greater with each owner
  Instant owned_since{};                        // its node has the partition
  std::optional<Message> state;                 // what GiveState brought from the owner before
  std::shared_ptr<cluster::ShardHolder> place;  // for tokens
};

struct Type {
  std::string name;
  std::function<std::unique_ptr<Actor>(Birth)> make;
  std::uint16_t partitions = 256;
  std::optional<messages::Role> role;  // of nodes that can have it; none: any, the control node only where there is no other
  Duration idle = kIdle;               // then its actor is let go, if it holds nothing
  std::size_t actors_max = 65536;      // on one node
  bool single = false;
};

// One actor in the whole cluster, started without being asked. Its key is empty.
Type singleton(std::string_view name, std::optional<messages::Role> role, std::function<std::unique_ptr<Actor>(Birth)> make);

struct ShardsOptions {
  std::string control_node;  // its links' name
  std::vector<messages::Role> roles;
  std::vector<Type> types;
};

// Throws std::invalid_argument on a bad type.
ChildSpec shards(ShardsOptions options);

// `shards/<type>`; a child of node/shards.
ChildSpec region(Type type, std::shared_ptr<cluster::ShardHolder> place);
std::string region_name(std::string_view type);

Type locks();  // messages/locks.capnp

}  // namespace falaj::shards
