@0xbec5d908678163f9;
# Programs that are no nodes, and the actors that they host. WIRE.md says how such a program comes to a link.
#
# Who talks to whom: a program sends RegisterActor to `node/foreign` of the node that it is linked to. That node then runs an actor of
# that name, which passes on to the program what it is sent, and back what the program answers. Whose a name is, `control/foreign` decides.
# Ordering: of two programs that register the same name, the one of the greater incarnation (in its Hello) has it: the actor of the other
# ends first. A lost link means: the program's actors have ended, and their names are free.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
$Cxx.namespace("falaj::messages");

# --- programs -> node/foreign -----------------------------------------------------------------------------------------------------

struct RegisterActor $A.verb("actors.register") {
  # Reply: Empty, when every node can find it. What is then sent to the actor comes over the link with `to.name` as given here.
  # The grant's `actors` must hold the actor's type: foreign/<the second part of the name>. Again is not an error.
  name @0 :Text;  # foreign/<service>[/<more>...]: parts of [a-z0-9._-]
}

struct UnregisterActor $A.verb("actors.register") {
  # Reply: Empty, when it has ended. Only what the same link registered.
  name @0 :Text;
}

# --- any principal -> an actor that a program hosts -----------------------------------------------------------------------------------

struct Invoke $A.verb("actors.call") {
  # For programs without a schema of their own. Reply: Invoked. Any other message may be sent to such an actor too, also one whose type no
  # node knows: the right that it takes is this one.
  method @0 :Text;
  text @1 :Text;
  data @2 :Data;
}

struct Invoked {
  text @0 :Text;
  data @1 :Data;
}

# --- between node/foreign and control/foreign; no principal may send these --------------------------------------------------------------

struct ClaimName {
  # node/foreign -> control/foreign, first to have the name, then with `running` to have it in the directory; and again whenever the view
  # does not show it. Reply: Empty; gone: a newer incarnation has it; conflict: somebody else has it.
  name @0 :Text;
  node @1 :Text;         # must be the name of the node that sends this
  incarnation @2 :UInt64;  # of the node
  principal @3 :Text;    # who hosts it
  generation @4 :UInt64;  # incarnation of the program
  running @5 :Bool;
}

struct ReleaseName {
  # node/foreign -> control/foreign: that actor has ended.
  name @0 :Text;
  generation @1 :UInt64;
}

struct EndHosted {
  # control/foreign -> node/foreign: somebody else has the name now. Reply: Empty, when the actor has ended.
  name @0 :Text;
  generation @1 :UInt64;  # that one and older ones
}
