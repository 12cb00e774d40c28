@0xc1d0a7b3e5f94d11;
# The wire between two Falaj nodes, and between a node and any other program that speaks Cap'n Proto over TLS 1.3 (WIRE.md is the page for
# those who write one).
#
# Who talks to whom: the two ends of one TLS connection, both authenticated by certificates of the cluster's authority. A pair of
# nodes keeps one connection for each lane; a person or a service may have one for all. Each direction is a sequence of standard
# Cap'n Proto stream-framed messages:
#   first   one Hello (and nothing else until the other side's Hello was accepted);
#   then    pairs: an Envelope, followed by its body, a message whose type the envelope names. Kind.heartbeat has no body.
# Ordering: pairs arrive in the order sent on that lane; nothing is promised between lanes.
# Ownership: correlation numbers belong to the asking actor and live until its reply, refusal or deadline.
# A lost connection means: what was sent and not answered is unknown. Nothing is sent again by the link.
# Numbers of fields are never used again.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("falaj::messages");

const wireVersion :UInt32 = 1;
# A Hello with a greater version is refused, and the refusal says so.

enum Lane {
  control @0;
  normal @1;
  bulk @2;
}

enum ErrorCode {  # the same list as runtime/base/result.hpp; a test compares them
  failed @0;
  invalid @1;
  notFound @2;
  conflict @3;
  denied @4;
  overloaded @5;
  unreachable @6;
  gone @7;
  deadline @8;
  unimplemented @9;
  corrupt @10;
  noSpace @11;
}

struct ErrorInfo {
  # The body of a refusal.
  code @0 :ErrorCode;
  message @1 :Text;
}

struct Empty {
  # A reply that says only "done".
}

struct Address {
  # An actor. With `actor` zero, `name` is looked up at the node `node` (zero: the receiving node).
  node @0 :UInt64;
  incarnation @1 :UInt64;  # of the node; zero: whichever runs now
  actor @2 :UInt64;
  name @3 :Text;
}

enum Kind {
  tell @0;
  ask @1;
  reply @2;
  refusal @3;    # body: ErrorInfo
  watch @4;      # body: Empty; `to` is watched by `from`
  unwatch @5;    # body: Empty
  down @6;       # body: ErrorInfo; the watched actor `from` has ended
  heartbeat @7;  # no body; `correlation` is the sender's clock in ns, echoed by heartbeatReply
  heartbeatReply @8;
}

struct Envelope {
  to @0 :Address;
  from @1 :Address;
  kind @2 :Kind;
  typeId @3 :UInt64;         # Cap'n Proto type id of the body
  correlation @4 :UInt64;
  budgetUs @5 :UInt64;       # time left to answer when this was sent; zero: no deadline
  traceHigh @6 :UInt64;      # W3C trace context
  traceLow @7 :UInt64;
  span @8 :UInt64;
  sampled @9 :Bool;
  scope @10 :Scope;
}

struct Scope {
  # For whom, and why. Absent: the sending node itself.
  principal @0 :Text;  # SPIFFE id. A node may speak for somebody else; anyone else only for themselves
  tenant @1 :Text;
  purpose @2 :Text;
  residency @3 :Text;
  idempotencyKey @4 :Text;  # a command seen with the same key and content is answered again, not done again
}

struct Hello {
  wireVersion @0 :UInt32;
  cluster @1 :Text;
  node @2 :Text;          # name; must be the one in the certificate's SPIFFE id
  incarnation @3 :UInt64;
  lane @4 :Lane;
  listen @5 :Text;        # host:port where this node can be reached; empty: it does not listen
  refusal @6 :ErrorInfo;  # set: the other side's Hello was not accepted, and this is why; the connection closes
  session @7 :UInt64;     # drawn by the side that dialled: the connections of one session live and die together; zero, from a person or
                          # a service: this one connection is the session
}
