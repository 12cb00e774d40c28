// governance/log: the one writer of the cluster's audit log, on the control node. AppendAudit is answered when all its entries
// are on disk; each (node, incarnation, sequence) is written once, also across restarts, because the newest one of each
// node is read back from the log itself when the actor starts.
#pragma once
#include <filesystem>
#include <memory>

#include "actors/governance/audit.hpp"
#include "storage/audit_log.hpp"

namespace falaj::governance {

struct LogOptions {
  std::shared_ptr<storage::AuditLog> log;
  std::filesystem::path dir;             // of the log, to read it back
  storage::KeyProvider* keys = nullptr;  // outlives the actor
  std::shared_ptr<storage::Kv>
      marks;  // may be null: then the whole log is read at the start. Table "audit.marks", in clear: names of nodes and numbers
  std::uint64_t marks_every = 4096;  // entries between two savings of the marks
};
ChildSpec log(LogOptions options);

// An entry's request in the stored log is "<trace>@<node>/<incarnation>/<sequence>".
struct Origin {
  std::string request;
  std::string node;
  std::uint64_t incarnation = 0;
  std::uint64_t sequence = 0;
};
std::string stored_request(const Origin& origin);
Origin origin_of(std::string_view stored);  // without a node where there is none: entries of the log about itself

}  // namespace falaj::governance
