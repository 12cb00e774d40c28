@0xbfb0ecd0ed465680;
# Governance: the audit log and the rights.
#
# Every node has a `governance/audit` actor that puts entries on its own disk first and then hands them to `governance/log` on the
# control node, which alone writes the one log; an entry leaves the spool when the log has acknowledged it, so that a lost connection
# loses none. Rights are read from a RightsFile; what no grant allows is denied, and each refusal is an entry.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
$Cxx.namespace("falaj::messages");

struct AuditEntry {
  timeNs @0 :Int64;
  node @1 :Text;
  principal @2 :Text;
  verb @3 :Text;
  target @4 :Text;    # resource, actor, or view/entity count
  tenant @5 :Text;
  purpose @6 :Text;
  allowed @7 :Bool;
  reason @8 :Text;
  request @9 :Text;   # trace id
  sequence @10 :UInt64;  # of the node's spool: (node, incarnation, sequence) is written once
  incarnation @11 :UInt64;
}

struct Audit {
  # To governance/audit of this node: a tell (or an ask, when the caller must know that it is on disk; reply Empty).
  entry @0 :AuditEntry;
}

struct DrainRefusals {
  # The node's own policy -> governance/audit: refusals wait in the queue they share.
}

struct AppendAudit {
  # governance/audit -> governance/log. Reply: Empty when all are on disk.
  entries @0 :List(AuditEntry);
}

struct ShowAudit $A.verb("audit.read") {
  after @0 :UInt64;    # index
  limit @1 :UInt32 = 100;
}

struct AuditPage {
  entries @0 :List(AuditEntry);
  first @1 :UInt64;
  total @2 :UInt64;
}

# --- rights: rights.toml -----------------------------------------------------------------------------------------------------------

struct RightsFile {
  grant @0 :List(Grant);
}

struct Grant {
  principal @0 :Text $A.required $A.doc("SPIFFE path, e.g. person/admin, service/*, anonymous (clear HTTP on loopback without a token)");
  verbs @1 :List(Text) $A.required $A.doc("features.read, models.*, *");
  tenants @2 :List(Text) $A.doc("empty: all");
  purposes @3 :List(Text) $A.doc("purposes this principal may name; empty: any that the view allows");
  actors @4 :List(Text) $A.doc("types of actors, e.g. control/*, foreign/pricing; empty: all");
}
