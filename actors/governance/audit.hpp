// governance/audit: takes the audit entries of this node, keeps them on its own disk, and hands them on to governance/log on
// the control node, which alone writes the log.
//
// An ask (Audit) is answered when the entry is in the spool: whoever must not act unaudited asks and waits. A tell is
// best effort only against a full mailbox. An entry leaves the spool when the log has acknowledged it; while control is
// away the spool grows up to entries_max, and then asks are refused with overloaded, rather than an entry lost.
#pragma once
#include <memory>
#include <string>

#include "actors/governance/refusals.hpp"
#include "messages/governance.capnp.h"
#include "runtime/host/actor.hpp"
#include "storage/sealed_kv.hpp"

namespace falaj::governance {

constexpr std::string_view kAudit = "governance/audit";
constexpr std::string_view kLog = "governance/log";

struct AuditOptions {
  std::shared_ptr<storage::Kv> spool;               // a SealedKv in production, opened with add_audit_tables()
  std::shared_ptr<RefusalQueue> refusals;           // may be null
  Incarnation incarnation;                          // of the node: greater with each start
  std::size_t entries_max = 100'000;                // in the spool
  std::size_t batch = 256;                          // entries handed on at once
  Duration gather = std::chrono::milliseconds(25);  // before the next that is not full: each costs the disk, which readers wait for
  Duration retry_min = std::chrono::milliseconds(50);
  Duration retry_max = std::chrono::seconds(2);
  Duration sweep = std::chrono::milliseconds(200);  // how often the refusal queue is looked at unasked
};
ChildSpec audit(AuditOptions options);

// ---- for whoever has something to record ----------------------------------------------------------------------------------------

// With principal, tenant, purpose and trace of the message it is about (null scope: the node itself).
Message audit_message(const AuditRecord& record);
AuditRecord record_of(const ScopeRef& scope, const TraceContext& trace, std::string_view node_name, std::string_view verb,
                      std::string_view target);
void audit_tell(Context& ctx, const AuditRecord& record);
// Waits until it is on this node's disk. unreachable: governance/audit does not run just now; what was asked for may be asked again.
Task<Status> audit_ask(Context& ctx, AuditRecord record);

// The spool's tables, for the SealedKv that holds them: entries are sealed, their order is not.
constexpr std::string_view kSpoolTable = "audit.spool";
constexpr std::string_view kSequenceTable = "audit.sequence";
void add_audit_tables(storage::SealedOptions& options);

}  // namespace falaj::governance
