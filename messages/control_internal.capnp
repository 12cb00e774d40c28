@0xf85c9879badf24bd;
# Between the actors of the control node, and between control and node agents. No principal but a node may send these.

using Cxx = import "/capnp/c++.capnp";
using R = import "resources.capnp";
using C = import "control.capnp";
$Cxx.namespace("falaj::messages");

struct PublishResources {
  # control/resources -> control/membership: put these into the view. Reply: Empty, when every node that is up has it.
  resources @0 :List(R.Resource);
}

struct DealPartitions {
  # control/resources -> control/membership: a feature view is wanted. Reply: Empty, or overloaded while no features node is up.
}

struct ViewChanged {
  # control/membership -> control/resources
  revision @0 :UInt64;
}

struct DropActor {
  # control/resources -> control/membership: no longer in the directory.
  name @0 :Text;
}

struct ProcessEnded {
  # node/agent to itself, from the thread that waited.
  name @0 :Text;
  pid @1 :UInt32;
  how @2 :Text;
}

struct ActorPlacement {
  # control/resources keeps one for each actor that it placed (key placement/<actor name>): what is wanted, before it is made so.
  node @0 :Text;
  actor @1 :C.ActorSpec;
}

struct SignWorker {
  # node/agent -> control/authority: a certificate for worker `index` of the asking node. Reply: Signed.
  index @0 :UInt32;
  certificateRequest @1 :Data;  # PEM
  node @2 :Text;                # must be the name of the node that sends this
}

struct Signed {
  certificate @0 :Data;  # PEM
}

struct OpenToken {
  # control/authority keeps one for each token that was not yet used (key token/<id>).
  expiresNs @0 :Int64;
  node @1 :Text;
  roles @2 :List(C.Role);
  createdBy @3 :Text;
}

struct Accuse {
  # node/witness -> control/membership: the link to that node is lost, or it does not answer. Said again as long as it is so; counts for
  # a short time only, and never alone. Reply: Empty.
  node @0 :Text;
  incarnation @1 :UInt64;
  reason @2 :Text;
}

struct Ping {
  # control/membership or a node/witness -> node/witness: are you there? Reply: Empty.
}

struct KnownNodes {
  # control/membership keeps one (key control/members).
  struct Node {
    name @0 :Text;
    draining @1 :Bool;
  }
  nodes @0 :List(Node);
}

struct RevocationsChanged {
  # control/authority -> control/membership: there is a new key revoked/<principal>; put all into the view. Reply: Empty.
}

struct CommandRecord {
  # Kept for each command that came with an idempotency key (key command/<SHA-256 of principal and key>), in the transaction of its effect.
  actor @0 :Text;    # whose command it was
  content @1 :Data;  # SHA-256 of type, tenant and canonical content: another one under this key is a conflict
  atNs @2 :Int64;
  answerType @3 :UInt64;
  answer @4 :Data;
}
