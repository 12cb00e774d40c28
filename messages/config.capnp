@0x8dd9445dd19784ba;
# Configuration of a node: nodes/<name>/config.toml, written by `falaj init`, `falaj up` or `falaj join`.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
using C = import "control.capnp";
$Cxx.namespace("falaj::messages");

struct NodeConfig {
  cluster @0 :Text $A.required;
  name @1 :Text $A.required $A.doc("a-z, 0-9 and -, at most 63");
  roles @2 :List(C.Role) $A.required;
  listen @3 :Text = "127.0.0.1:0" $A.doc("host:port of the links; port 0: a free one");
  controlNode @4 :Text $A.required;
  controlAddress @5 :Text $A.doc("host:port of the control node's links; empty on the control node itself");
  http @6 :Text $A.doc("host:port of the gateway in clear text, loopback only; empty: none");
  https @7 :Text $A.doc("host:port of the gateway with TLS; empty: none");
  residency @8 :Text;
  threads @9 :UInt32 = 0 $A.doc("scheduler threads; 0: one for each core, at most 8") $A.range((min = 0, max = 256));
  logLevel @10 :Text = "info" $A.oneOf(["debug", "info", "warn", "error"]);
  supervised @11 :Bool = true $A.doc("the local launcher starts the node again when it dies");
}

struct ClusterFile {
  # D/cluster.json: what the local launcher started, or where a control node runs that was started by hand, for the CLI and for
  # scripts. Rewritten atomically whenever it changes.
  cluster @0 :Text;
  controlNode @1 :Text;
  controlAddress @2 :Text;  # host:port of its links
  http @3 :Text;            # host:port of the gateway in clear text on loopback
  https @4 :Text;
  launcher @5 :UInt32;      # pid; 0: the control node was started by hand
  nodes @6 :List(LocalNode);
}

struct LocalNode {
  name @0 :Text;
  roles @1 :List(C.Role);
  pid @2 :UInt32;           # 0: not running now
  listen @3 :Text;
  restarts @4 :UInt32;      # times the launcher started it again
}
