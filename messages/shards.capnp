@0xd9d0fbc881ca7958;
# Actors that are addressed by key, and singletons: which node has them.
#
# The keys of a type fall into partitions (stable_hash(key) mod their number); control gives each partition to one node. A singleton is a
# type with one partition and one actor. Whoever asks `shard/<type>/<key>` or `singleton/<name>` on any node asks `shards/<type>` of that
# node, which passes the question on to the owner of the key.
# Who talks to whom: `node/shards` of each node asks `control/shards` for a lease, again and again; a node that has none answers for
# nobody. Control moves what a node had without asking it only when its lease has ended by control's clock, which is later than by the node's.
# Ordering: maps have a revision, a smaller one is ignored. Each partition has an epoch, which grows with each owner: a question with a smaller
# one is refused as gone.
# A lost connection means: the node goes on until its lease ends.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
$Cxx.namespace("falaj::messages");

struct ShardMap {
  # Stored by control before anybody is told (key shards/map); in each Lease that brings news, and told to every node when it changes.
  revision @0 :UInt64;    # grows with each change, for ever
  nextEpoch @1 :UInt64;   # of the next partition that gets an owner
  controlEpoch @2 :UInt64;  # of the control that says so; moves that an older one began have not taken place
  nodes @3 :List(ShardNode);
  types @4 :List(ShardType);
}

struct ShardNode {
  name @0 :Text;
  incarnation @1 :UInt64;
}

struct ShardType {
  name @0 :Text;            # of a singleton: singleton/<name>
  owners @1 :List(UInt16);  # for each partition: index into nodes, plus one; 0: nobody yet
  epochs @2 :List(UInt64);  # for each partition
}

struct GetShards $A.verb("cluster.read") {}  # to control/shards. Reply: ShardMap.

# --- node/shards -> control/shards ----------------------------------------------------------------------------------------------------

struct RenewLease {
  # Reply: Lease. Overloaded: what the node had is being given to others, ask again; gone: a newer incarnation of it is known.
  node @0 :Text;  # must be the name of the node that sends this
  incarnation @1 :UInt64;
  revision @2 :UInt64;  # of the map that it has
  types @3 :List(HostedType);
}

struct HostedType {
  # That the node can have.
  name @0 :Text;
  partitions @1 :UInt16;
  reserve @2 :Bool;  # only where no other node can
}

struct Lease {
  forMs @0 :UInt32;  # from the moment on when the node asked
  controlEpoch @1 :UInt64;
  map @2 :ShardMap;  # absent: the node has the newest
}

# --- between shards/<type> of two nodes -------------------------------------------------------------------------------------------------

struct ShardCall {
  # A message for the actor of a key. Reply: what that actor answers. Overloaded: ask again soon; gone: it is elsewhere, ask again.
  key @0 :Text;
  typeId @1 :UInt64;
  body @2 :Data;     # the message as it goes over a link
  passed @3 :Bool;   # by another node: it must not be passed on again
  epoch @4 :UInt64;  # of the partition, as the node knows it that passed it on
}

struct TakeEntities {
  # Old owner -> new owner: part of what it holds of these partitions. Reply: Empty, when it is kept until the map says whose they are.
  partitions @0 :List(UInt16);
  epoch @1 :UInt64;  # that the partitions will have
  first @2 :Bool;    # of this move: what came before is void
  entities @3 :List(EntityState);
}

struct EntityState {
  key @0 :Text;
  typeId @1 :UInt64;
  body @2 :Data;  # a message of the type's own
}

# --- control/shards -> shards/<type> of an owner ------------------------------------------------------------------------------------------

struct MovePartitions {
  # Answer for these no more, and give what you hold to that node. Reply: Empty, when it has it all; a refusal: nothing has changed.
  partitions @0 :List(UInt16);
  epoch @1 :UInt64;  # that they will have
  node @2 :Text;
  incarnation @3 :UInt64;
  controlEpoch @4 :UInt64;
}

struct KeepPartitions {
  # They are not moved after all. Reply: Empty.
  partitions @0 :List(UInt16);
  epoch @1 :UInt64;  # of that move
}

# --- inside a node ------------------------------------------------------------------------------------------------------------------------

struct ShardsChanged {}  # node/shards -> shards/<type>: the map or the lease has changed

struct GiveState {
  # shards/<type> -> an actor that it started. Reply: a message of the type's own, from which the same actor can be made elsewhere; not
  # found: it holds nothing that must outlive it. Whoever waits for it is refused first.
}
