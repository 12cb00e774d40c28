@0x9cb313ade97afa51;
# The control plane.
#
# Who talks to whom: nodes register with `control/membership` and get the ClusterView, again whenever it changes; `control/resources`
# takes commands from people and services, writes the control store, and reconciles; it tells `node/agent` of each node which actors to
# run. Ordering: a view has an epoch and a revision, a smaller pair is ignored. A lost connection means: the node goes on with its last
# view and registers again; control takes it for lost when its own link to it is down and another node says the same
# (`node/witness`), or when it stays away for seconds; then it places its actors elsewhere.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
using R = import "resources.capnp";
using E = import "envelope.capnp";
$Cxx.namespace("falaj::messages");

# --- membership ---------------------------------------------------------------------------------------------------------

enum Role {
  control @0;
  gateway @1;
  compute @2;
  features @3;
  serving @4;
}

struct NodeInfo {
  name @0 :Text;
  incarnation @1 :UInt64;
  address @2 :Text;  # host:port of its links
  roles @3 :List(Role);
  cores @4 :UInt32;
  residency @5 :Text;
  up @6 :Bool;
  pid @7 :UInt32;
  version @8 :Text;
  draining @9 :Bool;  # nothing new is placed there, and what can move away does
}

struct Register {
  # node -> control/membership, after each connection to control.
  node @0 :NodeInfo;
  running @1 :List(RunningActor);  # what it runs already: control may have restarted
}

struct RunningActor {
  name @0 :Text;
  generation @1 :UInt64;
}

struct DirectoryEntry {
  name @0 :Text;
  node @1 :Text;
  ready @2 :Bool;
}

struct ClusterView {
  # The reply to Register, and told to every node/agent when it changes; where the reply is waited for (Empty), the node has it.
  cluster @0 :Text;
  epoch @1 :UInt64;     # grows with each start of control
  revision @2 :UInt64;  # grows with each change
  nodes @3 :List(NodeInfo);
  directory @4 :List(DirectoryEntry);
  partitions @5 :List(UInt16);  # for each of the 256 feature partitions: index into featureNodes
  featureNodes @6 :List(Text);
  resources @7 :List(R.Resource);  # feature views and deployments: what data-path actors must know without asking control
  revoked @8 :List(Text);  # entries of revoked.txt, which each node keeps for the time without control
  known @9 :UInt32;        # nodes that have ever registered and were not forgotten
  deciding @10 :Bool;      # control sees at least half of them: fewer, and it places nothing anew, since it may be the one cut off
}

# --- placement: control -> node/agent -------------------------------------------------------------------------------------

struct ActorSpec {
  name @0 :Text;        # in the directory
  generation @1 :UInt64;  # a greater one replaces the running actor
  epoch @2 :UInt64;     # of control; a smaller one than seen is refused
  union {
    replica @3 :ReplicaSpec;
    worker @4 :WorkerSpec;
  }
}

struct ReplicaSpec {
  deployment @0 :R.Deployment;
  version @1 :UInt64;
  artifact @2 :Text;  # digest of the model's manifest
  index @3 :UInt32;
}

struct WorkerSpec {
  job @0 :Text;
  run @1 :Text;
  index @2 :UInt32;   # of the worker process among the job's; its rank is given at rendezvous
}

struct EnsureActor {
  # Starts it, or answers at once when that generation runs. Reply: Empty when started (a replica: when it can answer).
  actor @0 :ActorSpec;
}

struct StopActor {
  name @0 :Text;
  epoch @1 :UInt64;
}

struct ActorReady {
  # node/agent or the actor itself -> control/membership: put it in the directory.
  name @0 :Text;
  node @1 :Text;
  incarnation @2 :UInt64;
}

# --- nodes that leave: people -> control/membership ----------------------------------------------------------------------------

struct DrainNode $A.verb("nodes.drain") {
  # Reply: Empty, when it is on disk; what moves away does so after it. Not found: no such node.
  node @0 :Text;
  undo @1 :Bool;
}

struct ForgetNode $A.verb("nodes.forget") {
  # Takes a node that is down out of the view and out of the count of known nodes; it may register again. Reply: Empty.
  node @0 :Text;
}

# --- commands: people and services -> control/resources ----------------------------------------------------------------------

struct Apply $A.verb("resources.write") {
  # Reply: ResourceRecord. Same content again is not an error and changes nothing.
  resource @0 :R.Resource;
  expected @1 :UInt64;  # revision it must have now; 0: whatever
  again @2 :Bool;       # a job: run it once more, though its content is the same
}

struct GetResource $A.verb("resources.read") {
  kind @0 :Text;  # feature_view, job, deployment
  tenant @1 :Text = "default";
  name @2 :Text;
}

struct ListResources $A.verb("resources.read") {
  kind @0 :Text;  # empty: all
  tenant @1 :Text;
}

struct DeleteResource $A.verb("resources.delete") {
  kind @0 :Text;
  tenant @1 :Text = "default";
  name @2 :Text;
  expected @3 :UInt64;
}

struct ResourceRecord {
  resource @0 :R.Resource;
  revision @1 :UInt64;
  createdNs @2 :Int64;
  createdBy @3 :Text;  # SPIFFE id
  status @4 :ResourceStatus;
}

struct ResourceStatus {
  phase @0 :Text;    # pending, running, ready, degraded, succeeded, failed, stopped
  message @1 :Text;  # one line: why, and what to do
  ready @2 :UInt32;
  wanted @3 :UInt32;
}

struct ResourceList {
  records @0 :List(ResourceRecord);
}

# --- looking ------------------------------------------------------------------------------------------------------------------

struct GetStatus $A.verb("cluster.read") {}

struct ClusterStatus {
  view @0 :ClusterView;
  resources @1 :List(ResourceRecord);
  nodes @2 :List(NodeStats);
}

struct GetNodeStats $A.verb("cluster.read") {}  # to node/agent of any node

struct NodeStats {
  node @0 :Text;
  actors @1 :UInt32;
  mailbox @2 :UInt64;      # messages waiting, all actors
  handled @3 :UInt64;      # messages handled since start
  deadLetters @4 :UInt64;
  residentBytes @5 :UInt64;
  uptimeNs @6 :UInt64;
  requests @7 :List(DeploymentStats);
  workers @8 :UInt32;  # training worker processes
}

struct DeploymentStats {
  deployment @0 :Text;
  requests @1 :UInt64;  # since start
  failed @2 :UInt64;
  p50Us @3 :Float64;
  p99Us @4 :Float64;
}

struct GetActors $A.verb("cluster.read") {}  # to node/agent

struct ActorTree {
  actors @0 :List(ActorNode);
  deadLetters @1 :List(DeadLetterInfo);
}

struct ActorNode {
  id @0 :UInt64;
  parent @1 :UInt64;
  type @2 :Text;
  name @3 :Text;
  restarts @4 :UInt32;
  mailbox @5 :UInt32;
  handled @6 :UInt64;
}

struct DeadLetterInfo {
  whenNs @0 :Int64;
  to @1 :Text;
  typeId @2 :UInt64;
  reason @3 :Text;
}

# --- tracing: people -> node/agent of any node ------------------------------------------------------------------------------------

struct StartTrace $A.verb("cluster.trace") {
  # Records what the node's actors handle from now on. Reply: TraceClock. A trace that runs is begun anew.
  forMs @0 :UInt32 = 2000;       # at most a minute
  spansMax @1 :UInt32 = 100000;  # at most 200,000
}

struct StopTrace $A.verb("cluster.trace") {}  # Reply: TraceClock.

struct TraceClock {
  wallNs @0 :Int64;  # the node's, when it answered: nodes' clocks differ
}

struct GetSpans $A.verb("cluster.trace") {
  # The next of what was recorded; each is given once. Reply: Spans.
  limit @0 :UInt32 = 4096;
}

struct Spans {
  spans @0 :List(Span);
  left @1 :UInt32;     # more to ask for
  dropped @2 :UInt64;  # for want of room
}

struct Span {
  beginNs @0 :Int64;  # by the node's wall clock
  waitedNs @1 :UInt64;
  handledNs @2 :UInt64;
  actor @3 :UInt64;
  name @4 :Text;
  kind @5 :Text;     # message, question, answer, work, ...
  message @6 :Text;  # type
  from @7 :Text;
  traceHigh @8 :UInt64;
  traceLow @9 :UInt64;
  span @10 :UInt64;
}

# --- joining ----------------------------------------------------------------------------------------------------------------------

struct CreateToken $A.verb("cluster.join") {
  # Reply: Token.
  lifetimeSeconds @0 :UInt64 = 3600;
  node @1 :Text;  # name the node must take; empty: it may choose
  roles @2 :List(Role);
}

struct Token {
  token @0 :Text;
  expiresNs @1 :Int64;
}

struct Join {
  # Over HTTPS at the gateway (POST /v1/join), before the node has a certificate; the token is the right.
  token @0 :Text;
  node @1 :Text;
  certificateRequest @2 :Data;  # PKCS#10, PEM
  roles @3 :List(Role);         # that it will take where the token gives none
}

struct Joined {
  certificate @0 :Data;   # PEM
  authority @1 :Data;     # PEM
  cluster @2 :Text;
  control @3 :Text;       # host:port of its links
  controlNode @4 :Text;
  rights @5 :Text;        # rights.toml
  roles @6 :List(Role);   # that the token gives; empty: the node may choose
}

struct RevokePrincipal $A.verb("cluster.revoke") {
  # To control/authority: the certificates of this principal (a node: its workers' too) that were signed until now count no more. Every
  # node cuts their open links and refuses new ones. Who joins again, or is given a new certificate, is welcome. Reply: Revoked.
  principal @0 :Text;  # node/NAME, person/NAME or service/NAME
}

struct Revoked {
  entry @0 :Text;  # as in revoked.txt: the principal, and the second (Unix time) until which certificates were signed in vain
}
