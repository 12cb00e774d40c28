#include "actors/governance/audit.hpp"

#include <algorithm>
#include <array>

#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/retry.hpp"

namespace falaj::governance {

namespace {

constexpr std::uint16_t kEntryVersion = 1;
constexpr std::string_view kLast = "last";
constexpr std::size_t kBatchBytes = 4U << 20;

void put_number(Bytes& out, std::uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(value >> shift));
}

std::uint64_t get_number(ByteView bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < 8 && i < bytes.size(); ++i) value = value << 8 | bytes[i];
  return value;
}

// Big-endian, so that the store's order is the order of writing.
Bytes spool_key(Incarnation incarnation, std::uint64_t sequence) {
  Bytes key;
  put_number(key, incarnation.value());
  put_number(key, sequence);
  return key;
}

struct Spooled {
  Bytes key;
  Message entry;  // AuditEntry
};

struct SpoolState {
  std::uint64_t entries = 0;
  std::uint64_t last = 0;  // sequence
};

Result<SpoolState> open_spool(storage::Kv& kv) {
  SpoolState state;
  FALAJ_ASSIGN(const auto txn, kv.read());
  FALAJ_ASSIGN(state.entries, txn->count(kSpoolTable));
  FALAJ_ASSIGN(const auto last, txn->get(kSequenceTable, as_bytes(kLast)));
  if (last) state.last = get_number(last->bytes);
  return state;
}

Status write_spool(storage::Kv& kv, const std::vector<Spooled>& entries, std::uint64_t last) {
  FALAJ_ASSIGN(const auto txn, kv.write());
  for (const auto& entry : entries) FALAJ_TRY(txn->put(kSpoolTable, entry.key, entry.entry.bytes(), kEntryVersion));
  Bytes number;
  put_number(number, last);
  FALAJ_TRY(txn->put(kSequenceTable, as_bytes(kLast), number, kEntryVersion));
  return txn->commit();
}

Result<std::vector<Spooled>> read_spool(storage::Kv& kv, std::size_t most) {
  std::vector<Spooled> out;
  std::size_t bytes = 0;
  Status bad;
  FALAJ_ASSIGN(const auto txn, kv.read());
  FALAJ_TRY(txn->scan(kSpoolTable, {}, [&](const storage::Item& item) {
    auto entry = message_from_bytes(TypeId(capnp::typeId<messages::AuditEntry>()), item.value);
    if (!entry.has_value()) {
      bad = std::move(entry).error();
      return false;
    }
    bytes += item.value.size();
    out.push_back({Bytes(item.key.begin(), item.key.end()), std::move(*entry)});
    return out.size() < most && bytes < kBatchBytes;
  }));
  FALAJ_TRY(bad);
  return out;
}

Status erase_spool(storage::Kv& kv, const std::vector<Spooled>& entries) {
  FALAJ_ASSIGN(const auto txn, kv.write());
  for (const auto& entry : entries) {
    FALAJ_ASSIGN([[maybe_unused]] const bool was, txn->erase(kSpoolTable, entry.key));
  }
  return txn->commit();
}

Result<Message> append_message(const std::vector<Spooled>& entries) {
  std::vector<View<messages::AuditEntry>> views;
  std::size_t words = 16;
  for (const auto& entry : entries) {
    FALAJ_ASSIGN(auto view, entry.entry.open<messages::AuditEntry>());
    words += entry.entry.bytes().size() / 8 + 16;
    views.push_back(std::move(view));
  }
  return Message::build<messages::AppendAudit>(
      [&](messages::AppendAudit::Builder out) {
        auto list = out.initEntries(static_cast<unsigned>(views.size()));
        for (unsigned i = 0; i < list.size(); ++i) list.setWithCaveats(i, *views[i]);
      },
      words);
}

class AuditActor final : public ActorOf<AuditActor> {
 public:
  static constexpr std::string_view kType = "governance/audit";
  static void handlers(Handlers<AuditActor>& on) {
    on.message<messages::Audit>(&AuditActor::audit);
    on.message<messages::DrainRefusals>(&AuditActor::drain);
  }

  explicit AuditActor(AuditOptions options) : options_(std::move(options)) {}

  void on_start(Context& ctx) override {
    lost_ = &ctx.metrics().counter("falaj_audit_lost_total", "audit entries told, not asked, that found no room in the spool");
    depth_ = &ctx.metrics().gauge("falaj_audit_spool_entries", "audit entries on this node that the log has not yet acknowledged");
    ctx.start(open(ctx));
    sweep(ctx);
  }

 private:
  struct Pending {
    std::unique_ptr<capnp::MallocMessageBuilder> arena;
    messages::AuditEntry::Builder entry;
    std::optional<Msg<messages::Audit>> from;  // none: a refusal from the queue
  };

  void audit(Context& ctx, Msg<messages::Audit> m) {
    if (!has_room()) {
      if (!m.wants_reply()) {
        lost_->add();
        log::error("audit", "the spool is full: an entry was lost", {{"verb", text(m->getEntry().getVerb())}});
      }
      return m.refuse(error(ErrorCode::overloaded, format("the audit spool of {} holds its {} entries; see why {} does not take them",
                                                          ctx.node_name(), options_.entries_max, kLog)));
    }
    const auto entry = m->getEntry();
    add(ctx, entry, std::move(m));
    commit_soon(ctx);
  }

  void drain(Context& ctx, Msg<messages::DrainRefusals>) { take_refusals(ctx); }

  void sweep(Context& ctx) {
    take_refusals(ctx);
    ctx.after(options_.sweep, [this](Context& later) { sweep(later); });
  }

  // What has no room stays in the queue, which counts what it cannot keep apart.
  void take_refusals(Context& ctx) {
    if (!options_.refusals || !has_room()) return;
    for (const auto& record : options_.refusals->take_all()) {
      const auto message = audit_message(record);
      add(ctx, message.view<messages::Audit>()->getEntry(), std::nullopt);
    }
    commit_soon(ctx);
  }

  [[nodiscard]] bool has_room() const { return spooled_ + pending_.size() < options_.entries_max; }

  void add(Context& ctx, messages::AuditEntry::Reader entry, std::optional<Msg<messages::Audit>> from) {
    auto arena = std::make_unique<capnp::MallocMessageBuilder>(static_cast<unsigned>(entry.totalSize().wordCount + 32));
    arena->setRoot(entry);
    auto own = arena->getRoot<messages::AuditEntry>();
    if (own.getTimeNs() == 0) own.setTimeNs(ctx.wall().unix_ns);
    own.setNode(ctx.node_name());
    own.setIncarnation(options_.incarnation.value());
    pending_.push_back(Pending{std::move(arena), own, std::move(from)});
  }

  Task<> open(Context& ctx) {
    auto work = [spool = options_.spool] { return open_spool(*spool); };
    auto state = co_await ctx.blocking(std::move(work));
    if (!state.has_value()) {
      ctx.fail(within("audit spool", std::move(state).error()));
      co_return;
    }
    spooled_ = state->entries;
    sequence_ = state->last;
    opened_ = true;
    commit_soon(ctx);
    forward_soon(ctx);
  }

  void commit_soon(Context& ctx) {
    if (!opened_ || committing_ || pending_.empty()) return;
    committing_ = true;
    ctx.start(commit(ctx));
  }

  // What comes while a commit runs goes into the next one together.
  Task<> commit(Context& ctx) {
    RetryDelay delay(options_.retry_min, options_.retry_max);
    while (!pending_.empty()) {
      auto batch = std::exchange(pending_, {});
      auto entries = sequence(batch);
      const auto last = sequence_;
      const auto count = batch.size();
      auto work = [spool = options_.spool, entries = std::move(entries), last] { return write_spool(*spool, entries, last); };
      const auto done = co_await ctx.blocking(std::move(work));
      if (done.has_value()) {
        spooled_ += count;
        depth_->set(static_cast<double>(spooled_));
        for (auto& one : batch) {
          if (one.from) one.from->reply(Message::build<messages::Empty>());
        }
        delay.reset();
        forward_soon(ctx);
        continue;
      }
      log::error("audit", "the spool cannot be written", {{"error", to_string(done.error())}});
      put_back(std::move(batch), done.error());
      co_await ctx.sleep(delay.next(ctx.random()));
    }
    committing_ = false;
  }

  std::vector<Spooled> sequence(std::vector<Pending>& batch) {
    std::vector<Spooled> out;
    out.reserve(batch.size());
    for (auto& one : batch) {
      const auto sequence = ++sequence_;
      one.entry.setSequence(sequence);
      out.push_back({spool_key(options_.incarnation, sequence), Message::copy_of<messages::AuditEntry>(one.entry.asReader())});
    }
    return out;
  }

  // Whoever asked is told; what nobody waits for is tried again, before what came meanwhile.
  void put_back(std::vector<Pending> batch, const Error& why) {
    std::vector<Pending> again;
    for (auto& one : batch) {
      if (one.from && one.from->wants_reply()) {
        one.from->refuse(within("the audit spool", why));
      } else {
        again.push_back(std::move(one));
      }
    }
    again.insert(again.end(), std::make_move_iterator(pending_.begin()), std::make_move_iterator(pending_.end()));
    pending_ = std::move(again);
  }

  void forward_soon(Context& ctx) {
    if (!opened_ || forwarding_ || spooled_ == 0) return;
    forwarding_ = true;
    ctx.start(forward(ctx));
  }

  Task<> forward(Context& ctx) {
    RetryDelay delay(options_.retry_min, options_.retry_max);
    while (spooled_ > 0) {
      auto handed_on = co_await forward_batch(ctx);
      if (handed_on.has_value()) {
        delay.reset();
        if (spooled_ < options_.batch) co_await ctx.sleep(options_.gather);
        continue;
      }
      log::debug("audit", "the log did not take entries", {{"error", to_string(handed_on.error())}});
      co_await ctx.sleep(delay.next(ctx.random()));
    }
    forwarding_ = false;
  }

  Task<Status> forward_batch(Context& ctx) {
    auto read = [spool = options_.spool, most = options_.batch] { return read_spool(*spool, most); };
    auto batch = co_await ctx.blocking(std::move(read));
    if (!batch.has_value()) co_return std::move(batch).error();
    if (batch->empty()) {
      spooled_ = 0;
      co_return Status{};
    }
    FALAJ_CO_ASSIGN(auto message, append_message(*batch));
    const auto to = ctx.find(kLog);
    auto taken = co_await ctx.ask<messages::Empty>(to, std::move(message));
    if (!taken.has_value() && !fault::planted("audit-entry-dropped")) co_return std::move(taken).error();
    const auto count = batch->size();
    auto erase = [spool = options_.spool, entries = std::move(*batch)] { return erase_spool(*spool, entries); };
    auto erased = co_await ctx.blocking(std::move(erase));
    if (!erased.has_value()) co_return std::move(erased).error();
    spooled_ -= std::min<std::size_t>(spooled_, count);
    depth_->set(static_cast<double>(spooled_));
    co_return Status{};
  }

  AuditOptions options_;
  metrics::Counter* lost_ = nullptr;
  metrics::Gauge* depth_ = nullptr;
  bool opened_ = false;
  bool committing_ = false;
  bool forwarding_ = false;
  std::size_t spooled_ = 0;
  std::uint64_t sequence_ = 0;
  std::vector<Pending> pending_;
};

}  // namespace

ChildSpec audit(AuditOptions options) {
  ChildSpec spec;
  spec.id = spec.name = std::string(kAudit);
  spec.make = [options = std::move(options)] { return std::make_unique<AuditActor>(options); };
  return spec;
}

void add_audit_tables(storage::SealedOptions& options) {
  options.tables[std::string(kSpoolTable)] = {.hash_keys = false, .clear_prefix = 16, .subject_of = nullptr};
  options.tables[std::string(kSequenceTable)] = {.hash_keys = false, .clear_prefix = 0, .subject_of = nullptr};
}

Message audit_message(const AuditRecord& record) {
  return Message::build<messages::Audit>(
      [&](messages::Audit::Builder out) {
        auto entry = out.initEntry();
        entry.setTimeNs(record.time.unix_ns);
        entry.setPrincipal(record.principal);
        entry.setVerb(record.verb);
        entry.setTarget(record.target);
        entry.setTenant(record.tenant);
        entry.setPurpose(record.purpose);
        entry.setAllowed(record.allowed);
        entry.setReason(record.reason);
        entry.setRequest(record.request);
      },
      96);
}

AuditRecord record_of(const ScopeRef& scope, const TraceContext& trace, std::string_view node_name, std::string_view verb,
                      std::string_view target) {
  AuditRecord record;
  record.verb = verb;
  record.target = target;
  record.principal = scope ? scope->principal : std::string();
  if (record.principal.empty()) record.principal = format("node/{}", node_name);
  if (scope) {
    record.tenant = scope->tenant;
    record.purpose = scope->purpose;
  }
  if (trace.valid()) record.request = format("{:016x}{:016x}", trace.trace_high, trace.trace_low);
  return record;
}

void audit_tell(Context& ctx, const AuditRecord& record) { ctx.tell(ctx.find(kAudit), audit_message(record)); }

Task<Status> audit_ask(Context& ctx, AuditRecord record) {
  const auto to = ctx.find(kAudit);
  if (!to) co_return error(ErrorCode::unreachable, format("{} of node {} is not running just now", kAudit, ctx.node_name()));
  auto message = audit_message(record);
  auto kept = co_await ctx.ask<messages::Empty>(to, std::move(message));
  if (!kept.has_value()) co_return std::move(kept).error();
  co_return Status{};
}

}  // namespace falaj::governance
