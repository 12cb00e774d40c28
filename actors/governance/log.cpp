#include "actors/governance/log.hpp"

#include <algorithm>
#include <charconv>
#include <map>

#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::governance {

namespace {

constexpr std::string_view kMarksTable = "audit.marks";
constexpr std::string_view kPosition = " position";  // no node's name
constexpr std::uint16_t kMarksVersion = 1;
constexpr std::uint32_t kPageMax = 1000;

using Mark = std::pair<std::uint64_t, std::uint64_t>;  // incarnation, sequence
using Marks = std::map<std::string, Mark, std::less<>>;

struct Known {
  Marks marks;
  std::uint64_t upto = 0;  // records of the log that they cover
};

std::uint64_t number(std::string_view text) {
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

std::string marks_value(const Mark& mark) { return format("{}/{}", mark.first, mark.second); }

Status load_marks(storage::Kv& kv, Known& known) {
  FALAJ_ASSIGN(const auto txn, kv.read());
  return txn->scan(kMarksTable, {}, [&](const storage::Item& item) {
    const auto value = as_text(item.value);
    const auto slash = value.find('/');
    if (as_text(item.key) == kPosition) {
      known.upto = number(value);
    } else if (slash != value.npos) {
      known.marks[std::string(as_text(item.key))] = {number(value.substr(0, slash)), number(value.substr(slash + 1))};
    }
    return true;
  });
}

Status save_marks(storage::Kv& kv, const Known& known) {
  FALAJ_ASSIGN(const auto txn, kv.write());
  for (const auto& [node, mark] : known.marks) FALAJ_TRY(txn->put(kMarksTable, as_bytes(node), as_bytes(marks_value(mark)), kMarksVersion));
  FALAJ_TRY(txn->put(kMarksTable, as_bytes(kPosition), as_bytes(format("{}", known.upto)), kMarksVersion));
  return txn->commit();
}

// From the saved marks, or the log's beginning, to its end.
Result<Known> recover(const LogOptions& options) {
  Known known;
  if (options.marks) FALAJ_TRY(load_marks(*options.marks, known));
  const auto size = options.log->size();
  if (known.upto > size) known = {};  // the log was restored from an older copy: what it says counts
  FALAJ_TRY(storage::read_audit(options.dir, *options.keys, known.upto, [&](std::uint64_t index, const storage::AuditEntry& entry) {
    known.upto = index + 1;
    const auto origin = origin_of(entry.request_id);
    if (!origin.node.empty()) {
      auto& mark = known.marks[origin.node];
      mark = std::max(mark, Mark{origin.incarnation, origin.sequence});
    }
    return known.upto < size;
  }));
  return known;
}

struct Entry {
  storage::AuditEntry stored;
  std::string node;
  Mark mark;
};

Entry entry_of(messages::AuditEntry::Reader in) {
  Entry out;
  out.node = text(in.getNode());
  out.mark = {in.getIncarnation(), in.getSequence()};
  auto& stored = out.stored;
  stored.time = WallTime{in.getTimeNs()};
  stored.principal = text(in.getPrincipal());
  stored.verb = text(in.getVerb());
  stored.target = text(in.getTarget());
  stored.tenant = text(in.getTenant());
  stored.purpose = text(in.getPurpose());
  stored.outcome = in.getAllowed() ? storage::Outcome::allowed : storage::Outcome::denied;
  stored.reason = text(in.getReason());
  stored.request_id = stored_request({std::string(text(in.getRequest())), out.node, out.mark.first, out.mark.second});
  return out;
}

void fill(messages::AuditEntry::Builder out, const storage::AuditEntry& stored) {
  const auto origin = origin_of(stored.request_id);
  out.setTimeNs(stored.time.unix_ns);
  out.setNode(origin.node);
  out.setIncarnation(origin.incarnation);
  out.setSequence(origin.sequence);
  out.setRequest(origin.request);
  out.setPrincipal(stored.principal);
  out.setVerb(stored.verb);
  out.setTarget(stored.target);
  out.setTenant(stored.tenant);
  out.setPurpose(stored.purpose);
  out.setAllowed(stored.outcome == storage::Outcome::allowed || stored.outcome == storage::Outcome::note);
  out.setReason(stored.reason);
}

struct Page {
  std::vector<storage::AuditEntry> entries;
  std::uint64_t first = 0;
  std::uint64_t total = 0;
};

Result<Page> read_page(const LogOptions& options, std::uint64_t from, std::uint32_t limit) {
  Page page;
  page.first = from;
  FALAJ_TRY(options.log->sync());
  page.total = options.log->size();
  if (from >= page.total || limit == 0) return page;
  FALAJ_TRY(storage::read_audit(options.dir, *options.keys, from, [&](std::uint64_t index, const storage::AuditEntry& entry) {
    if (page.entries.empty()) page.first = index;
    page.entries.push_back(entry);
    return page.entries.size() < limit && index + 1 < page.total;
  }));
  return page;
}

class LogActor final : public ActorOf<LogActor> {
 public:
  static constexpr std::string_view kType = "governance/log";
  static void handlers(Handlers<LogActor>& on) {
    on.message<messages::AppendAudit>(&LogActor::append);
    on.message<messages::ShowAudit>(&LogActor::show);
  }

  explicit LogActor(LogOptions options) : options_(std::move(options)) {}

  void on_start(Context& ctx) override { ctx.start(open(ctx)); }

 private:
  void append(Context& ctx, Msg<messages::AppendAudit> m) {
    if (m.from()) {
      const auto sender = m.from().address().node;
      for (const auto entry : m->getEntries()) {
        if (node_id(text(entry.getNode())) == sender) continue;
        return m.refuse(error(ErrorCode::denied, format("an audit entry of node '{}' came from another node", text(entry.getNode()))));
      }
    }
    waiting_.push_back(std::move(m));
    write_soon(ctx);
  }

  Task<> open(Context& ctx) {
    auto work = [options = options_] { return recover(options); };
    auto known = co_await ctx.blocking(std::move(work));
    if (!known.has_value()) {
      ctx.fail(within("audit log", std::move(known).error()));
      co_return;
    }
    known_ = std::move(*known);
    saved_at_ = known_.upto;
    opened_ = true;
    write_soon(ctx);
  }

  void write_soon(Context& ctx) {
    if (!opened_ || writing_ || waiting_.empty()) return;
    writing_ = true;
    ctx.start(write(ctx));
  }

  // One writer, so that a batch that comes again while its first copy is being written is known.
  Task<> write(Context& ctx) {
    while (!waiting_.empty()) {
      auto batch = std::exchange(waiting_, {});
      std::vector<Entry> entries;
      Marks next = known_.marks;
      for (const auto& m : batch) {
        for (const auto in : m->getEntries()) {
          auto entry = entry_of(in);
          auto& mark = next[entry.node];
          if (entry.mark <= mark && !fault::planted("audit-entry-twice")) continue;
          mark = entry.mark;
          entries.push_back(std::move(entry));
        }
      }
      auto work = [log = options_.log, entries = std::move(entries)] { return append_all(*log, entries); };
      const auto report = co_await ctx.blocking(std::move(work));
      if (!report.has_value()) {
        refuse_all(batch, report.error());
        continue;
      }
      for (const auto& [node, mark] : report->appended) known_.marks[node] = std::max(known_.marks[node], mark);
      if (report->trouble.has_value()) {
        for (auto& m : batch) m.reply(Message::build<messages::Empty>());
        co_await save(ctx);
      } else {
        refuse_all(batch, report->trouble.error());
      }
    }
    writing_ = false;
  }

  struct Report {
    Marks appended;  // in the log's order, whether or not they are on disk yet: they must not be appended again
    Status trouble;
  };
  static Result<Report> append_all(storage::AuditLog& log, const std::vector<Entry>& entries) {
    Report report;
    for (const auto& entry : entries) {
      auto index = log.append(entry.stored);
      if (!index.has_value()) {
        report.trouble = std::move(index).error();
        return report;
      }
      report.appended[entry.node] = entry.mark;
    }
    report.trouble = log.sync();
    return report;
  }

  static void refuse_all(std::vector<Msg<messages::AppendAudit>>& batch, const Error& why) {
    log::error("audit", "the audit log cannot be written", {{"error", to_string(why)}});
    for (auto& m : batch) m.refuse(within("the audit log", why));
  }

  Task<> save(Context& ctx) {
    const auto size = options_.log->size();
    if (!options_.marks || size < saved_at_ + options_.marks_every) co_return;
    auto known = known_;
    known.upto = size;
    auto work = [kv = options_.marks, known = std::move(known)] { return save_marks(*kv, known); };
    const auto saved = co_await ctx.blocking(std::move(work));
    saved_at_ = size;
    if (!saved.has_value())
      log::warn("audit", "marks not saved; the next start reads more of the log", {{"error", to_string(saved.error())}});
  }

  Task<> show(Context& ctx, Msg<messages::ShowAudit> m) {
    const auto from = m->getAfter();
    const auto limit = std::min(m->getLimit(), kPageMax);
    auto work = [options = options_, from, limit] { return read_page(options, from, limit); };
    auto page = co_await ctx.blocking(std::move(work));
    if (!page.has_value()) co_return m.refuse(std::move(page).error());
    m.reply(Message::build<messages::AuditPage>(
        [&](messages::AuditPage::Builder out) {
          auto list = out.initEntries(static_cast<unsigned>(page->entries.size()));
          for (unsigned i = 0; i < list.size(); ++i) fill(list[i], page->entries[i]);
          out.setFirst(page->first);
          out.setTotal(page->total);
        },
        16 + page->entries.size() * 48));
  }

  LogOptions options_;
  bool opened_ = false;
  bool writing_ = false;
  Known known_;
  std::uint64_t saved_at_ = 0;
  std::vector<Msg<messages::AppendAudit>> waiting_;
};

}  // namespace

std::string stored_request(const Origin& origin) {
  return format("{}@{}/{}/{}", origin.request, origin.node, origin.incarnation, origin.sequence);
}

Origin origin_of(std::string_view stored) {
  const auto at = stored.rfind('@');
  if (at == stored.npos) return {std::string(stored), "", 0, 0};
  const auto place = stored.substr(at + 1);
  const auto first = place.find('/');
  const auto second = place.rfind('/');
  if (first == place.npos || first == second) return {std::string(stored), "", 0, 0};
  return {std::string(stored.substr(0, at)), std::string(place.substr(0, first)), number(place.substr(first + 1, second - first - 1)),
          number(place.substr(second + 1))};
}

ChildSpec log(LogOptions options) {
  ChildSpec spec;
  spec.id = spec.name = std::string(kLog);
  spec.make = [options = std::move(options)] { return std::make_unique<LogActor>(options); };
  return spec;
}

}  // namespace falaj::governance
