#include "actors/features/front.hpp"

#include <algorithm>
#include <map>

#include "actors/artifacts/fetch.hpp"
#include "actors/features/gather.hpp"
#include "actors/features/requests.hpp"
#include "actors/features/shard.hpp"
#include "actors/features/snapshot.hpp"
#include "actors/features/values.hpp"
#include "actors/governance/audit.hpp"
#include "actors/governance/policy.hpp"
#include "messages/features.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/retry.hpp"

namespace falaj::features {

namespace {

using Snapshot = std::shared_ptr<const cluster::ClusterSnapshot>;

constexpr auto kReadPatience = std::chrono::seconds(2);  // for one shard's answer, while the deadline leaves time for another try

// What a request is about, once it may be done. Keeps the snapshot that `view` points into.
struct Subject {
  Snapshot snapshot;
  std::string tenant;
  std::string name;
  messages::FeatureView::Reader view;
};

bool worth_retrying(ErrorCode code) {
  switch (code) {
    case ErrorCode::unreachable:
    case ErrorCode::gone:
    case ErrorCode::not_found:  // not started there yet
    case ErrorCode::conflict:   // moved to another node
    case ErrorCode::overloaded:
    case ErrorCode::deadline:
      return true;
    default:
      return false;
  }
}

// One round of asking: which items failed for a reason that may pass, and the reason that will not.
struct Round {
  std::vector<std::uint32_t> again;
  std::optional<Error> soft;
  std::optional<Error> hard;
  void failed(const Error& why, const std::vector<std::uint32_t>& items) {
    if (!worth_retrying(why.code)) {
      hard = why;
      return;
    }
    soft = why;
    again.insert(again.end(), items.begin(), items.end());
  }
};

using ByOwner = std::map<std::string, std::vector<std::uint32_t>>;  // node -> items; an empty name: nobody holds the partition

class Front final : public ActorOf<Front> {
 public:
  static constexpr std::string_view kType = "features/front";
  static void handlers(Handlers<Front>& on) {
    on.message<messages::PutRows>(&Front::put);
    on.message<messages::GetFeatures>(&Front::get);
    on.message<messages::DeleteEntity>(&Front::erase);
    on.message<messages::CountRows>(&Front::count);
    on.message<messages::CreateSnapshot>(&Front::snapshot);
  }

  explicit Front(FrontOptions options) : options_(std::move(options)) {}

  void on_start(Context& ctx) override {
    reads_ = &ctx.metrics().counter("falaj_feature_reads_total", "requests for features by key");
    retries_ = &ctx.metrics().counter("falaj_feature_retries_total", "rounds of asking shards again");
  }

 private:
  // ---- may it be done? ------------------------------------------------------------------------------------------------------------

  struct Ask {
    std::string verb;
    std::string tenant;
    std::string view;
    std::string what;  // for the audit: never an entity's name
    ScopeRef scope;
    TraceContext trace;
    bool needs_purpose = false;
    bool audited = false;
    std::optional<capnp::List<capnp::Text>::Reader> fields;  // audited if one of them is personal; lives as long as the message
  };

  template <class T>
  Ask ask_of(const Msg<T>& m, std::string_view verb) const {
    Ask ask;
    ask.verb = verb;
    ask.tenant = text(m->getTenant());
    if (ask.tenant.empty()) ask.tenant = "default";
    ask.view = text(m->getView());
    ask.scope = m.scope();
    ask.trace = m.trace();
    return ask;
  }

  Result<Subject> subject_of(const Ask& ask) const {
    FALAJ_TRY(governance::tenant_allowed(ask.tenant, ask.scope));
    Subject subject{options_.cluster->get(), ask.tenant, ask.view, {}};
    if (!subject.snapshot) return error(ErrorCode::unreachable, "this node has no cluster view yet; try again");
    const auto view = subject.snapshot->feature_view(ask.tenant, ask.view);
    if (!view) {
      return error(ErrorCode::not_found,
                   format("no feature view '{}' in tenant '{}'; declare it: falaj apply -f FILE.toml", ask.view, ask.tenant));
    }
    subject.view = *view;
    if (ask.needs_purpose) FALAJ_TRY(governance::purpose_allowed(*view, ask.scope));
    return subject;
  }

  governance::AuditRecord record_of(Context& ctx, const Ask& ask) const {
    auto record = governance::record_of(ask.scope, ask.trace, ctx.node_name(), ask.verb, format("{}{}", ask.view, ask.what));
    record.tenant = ask.tenant;
    return record;
  }

  // A refusal is on this node's disk before it is answered, and so is what is audited before it is done.
  Task<Result<Subject>> admit(Context& ctx, Ask ask) {
    auto subject = subject_of(ask);
    const bool refused = !subject.has_value() && subject.error().code == ErrorCode::denied;
    const bool audited = ask.audited || (subject.has_value() && ask.fields && personal(subject->view, *ask.fields));
    if (refused || (subject.has_value() && audited)) {
      auto record = record_of(ctx, ask);
      record.allowed = !refused;
      if (refused) record.reason = subject.error().message;
      auto kept = co_await governance::audit_ask(ctx, std::move(record));
      if (!kept.has_value() && options_.require_audit && !refused) co_return within("not audited, so not done", std::move(kept).error());
    }
    co_return subject;
  }

  // ---- asking shards ---------------------------------------------------------------------------------------------------------------

  static Instant deadline_of(Context& ctx, Instant asked) { return asked == Instant::max() ? ctx.now() + limits::kAskDefault : asked; }

  static SendOptions send_options(Context& ctx, const ScopeRef& scope, const TraceContext& trace, Instant deadline, Lane lane) {
    SendOptions send;
    send.lane = lane;
    send.scope = scope;
    send.trace = trace;
    send.timeout = std::max<Duration>(std::min<Duration>(deadline - ctx.now(), kReadPatience), std::chrono::milliseconds(1));
    return send;
  }

  // False: no time is left.
  Task<bool> pause(Context& ctx, RetryDelay& delay, Instant deadline) {
    const auto wait = delay.next(ctx.random());
    if (ctx.now() + wait >= deadline) co_return false;
    retries_->add();
    co_await ctx.sleep(wait);
    co_return true;
  }

  static Error nobody_holds() {
    return error(ErrorCode::unreachable, "no node holds the partition; is a node with the role 'features' up?");
  }

  // Asks the owner of each of a request's items (entities, rows), all owners at once, and again for those items whose owner could not
  // answer now. `Work` is Reading or Writing: ask_shard() and entity_of() know which.
  template <class Work>
  Task<Status> ask_all(Context& ctx, Work& work, std::uint32_t items) {
    std::vector<std::uint32_t> open(items);
    for (std::uint32_t i = 0; i < items; ++i) open[i] = i;
    RetryDelay delay(options_.retry_min, options_.retry_max);
    for (;;) {
      const auto snapshot = options_.cluster->get();
      ByOwner owners;
      for (const auto i : open) owners[snapshot->partition_owner(storage::partition_of(entity_of(work, i)))].push_back(i);
      work.round = {};
      Gather gather(ctx);
      for (auto& [node, mine] : owners) {
        if (node.empty()) {
          work.round.failed(nobody_holds(), mine);
        } else {
          gather.add(ask_shard(ctx, work, node, std::move(mine)));
        }
      }
      co_await gather.all();
      if (work.round.hard) co_return *work.round.hard;
      if (work.round.again.empty()) co_return Status{};
      const bool more = co_await pause(ctx, delay, work.deadline);
      if (!more) co_return *work.round.soft;
      open = std::move(work.round.again);
      std::ranges::sort(open);  // rows of one entity stay in their order
    }
  }

  // ---- reads ----------------------------------------------------------------------------------------------------------------------

  struct Found {
    std::shared_ptr<View<messages::Features>> answer;
    std::uint32_t row = 0;
  };
  struct Reading {
    View<messages::GetFeatures> request;
    Subject subject;
    ScopeRef scope;
    TraceContext trace;
    Instant deadline;
    std::vector<Found> found;
    Round round;
  };

  static std::string_view entity_of(const Reading& reading, std::uint32_t item) { return text(reading.request->getEntities()[item]); }

  static Message shard_get(const Reading& reading, const std::vector<std::uint32_t>& items) {
    std::size_t words = 32;
    for (const auto i : items) words += 2 + reading.request->getEntities()[i].size() / 8;
    return Message::build<messages::ShardGet>(
        [&](messages::ShardGet::Builder out) {
          out.setView(reading.subject.name);
          out.setTenant(reading.subject.tenant);
          out.setFields(reading.request->getFields());
          auto list = out.initEntities(static_cast<unsigned>(items.size()));
          for (unsigned k = 0; k < items.size(); ++k) list.set(k, reading.request->getEntities()[items[k]]);
        },
        words);
  }

  Task<> ask_shard(Context& ctx, Reading& reading, std::string node, std::vector<std::uint32_t> items) {
    const auto to = ctx.find(shard_name(node));
    const auto send = send_options(ctx, reading.scope, reading.trace, reading.deadline, Lane::normal);
    auto question = shard_get(reading, items);
    auto answer = co_await ctx.ask<messages::Features>(to, std::move(question), send);
    if (!answer.has_value()) {
      reading.round.failed(answer.error(), items);
      co_return;
    }
    if ((*answer)->getRows().size() != items.size()) {
      reading.round.failed(error(ErrorCode::corrupt, format("{} answered another question", shard_name(node))), items);
      co_return;
    }
    const auto shared = std::make_shared<View<messages::Features>>(std::move(*answer));
    for (std::uint32_t k = 0; k < items.size(); ++k) reading.found[items[k]] = {shared, k};
  }

  static Result<Message> merged(const Reading& reading) {
    const auto& found = reading.found;
    const auto& first = *found.front().answer;
    const bool whole = std::ranges::all_of(found, [&](const Found& f) { return f.answer == found.front().answer; });
    if (whole) return first.message();  // one shard had all of it, in the order asked
    std::size_t words = first->totalSize().wordCount + 16;
    for (const auto& f : found) words += (*f.answer)->getRows()[f.row].totalSize().wordCount + 8;
    if (words * sizeof(capnp::word) > limits::kMessageBytesMax)
      return invalid("the answer would be too long for one message; ask for fewer entities");
    return Message::build<messages::Features>(
        [&](messages::Features::Builder out) {
          out.setFields(first->getFields());
          auto rows = out.initRows(static_cast<unsigned>(found.size()));
          for (unsigned i = 0; i < rows.size(); ++i) rows.setWithCaveats(i, (*found[i].answer)->getRows()[found[i].row]);
        },
        words);
  }

  Task<> get(Context& ctx, Msg<messages::GetFeatures> m) {
    reads_->add();
    auto ask = ask_of(m, "features.read");
    ask.needs_purpose = true;
    ask.what = format(" ({} entities)", m->getEntities().size());
    ask.fields = m->getFields();
    auto subject = co_await admit(ctx, std::move(ask));
    if (!subject.has_value()) co_return m.refuse(std::move(subject).error());
    auto good = check_get(subject->view, *m);
    if (!good.has_value()) co_return m.refuse(std::move(good).error());
    auto request = m.message().open<messages::GetFeatures>();
    Reading reading{std::move(*request),
                    std::move(*subject),
                    m.scope(),
                    m.trace(),
                    deadline_of(ctx, m.deadline()),
                    std::vector<Found>(m->getEntities().size()),
                    {}};
    auto done = co_await ask_all(ctx, reading, m->getEntities().size());
    if (!done.has_value()) co_return m.refuse(std::move(done).error());
    auto answer = merged(reading);
    if (!answer.has_value()) co_return m.refuse(std::move(answer).error());
    m.reply(std::move(*answer));
  }

  // ---- writes ---------------------------------------------------------------------------------------------------------------------

  struct Writing {
    View<messages::PutRows> request;
    Subject subject;
    ScopeRef scope;
    TraceContext trace;
    Instant deadline;
    std::int64_t now_ns = 0;
    Round round;
  };

  static std::string_view entity_of(const Writing& writing, std::uint32_t item) {
    return text(writing.request->getRows()[item].getEntity());
  }

  static Message shard_put(const Writing& writing, const std::vector<std::uint32_t>& items) {
    const auto rows = writing.request->getRows();
    std::size_t words = 32;
    for (const auto i : items) words += rows[i].totalSize().wordCount + 4;
    return Message::build<messages::ShardPut>(
        [&](messages::ShardPut::Builder out) {
          out.setView(writing.subject.name);
          out.setTenant(writing.subject.tenant);
          auto list = out.initRows(static_cast<unsigned>(items.size()));
          for (unsigned k = 0; k < items.size(); ++k) {
            list.setWithCaveats(k, rows[items[k]]);
            // Of two rows of one entity in one message the later wins.
            if (rows[items[k]].getEventTimeNs() == 0) list[k].setEventTimeNs(writing.now_ns + items[k]);
          }
        },
        words);
  }

  Task<> ask_shard(Context& ctx, Writing& writing, std::string node, std::vector<std::uint32_t> items) {
    const auto to = ctx.find(shard_name(node));
    auto send = send_options(ctx, writing.scope, writing.trace, writing.deadline, Lane::bulk);
    auto question = shard_put(writing, items);
    auto answer = co_await ctx.ask<messages::PutRowsReply>(to, std::move(question), send);
    if (!answer.has_value()) writing.round.failed(answer.error(), items);
  }

  Task<> put(Context& ctx, Msg<messages::PutRows> m) {
    auto ask = ask_of(m, "features.write");
    ask.audited = true;
    ask.what = format(" ({} rows)", m->getRows().size());
    auto subject = co_await admit(ctx, std::move(ask));
    if (!subject.has_value()) co_return m.refuse(std::move(subject).error());
    auto good = check_put(subject->view, *m);
    if (!good.has_value()) co_return m.refuse(std::move(good).error());
    auto request = m.message().open<messages::PutRows>();
    Writing writing{std::move(*request), std::move(*subject), m.scope(), m.trace(), deadline_of(ctx, m.deadline()), ctx.wall().unix_ns, {}};
    auto done = co_await ask_all(ctx, writing, m->getRows().size());
    if (!done.has_value()) co_return m.refuse(std::move(done).error());
    const auto rows = m->getRows().size();
    m.reply(Message::build<messages::PutRowsReply>([rows](messages::PutRowsReply::Builder out) { out.setWritten(rows); }, 4));
  }

  // Asks whoever holds the partition now, until it answers or the deadline passes.
  template <class Reply>
  Task<Result<View<Reply>>> ask_owner(Context& ctx, Partition partition, Message question, SendOptions like, Instant deadline) {
    RetryDelay delay(options_.retry_min, options_.retry_max);
    for (;;) {
      const auto node = options_.cluster->get()->partition_owner(partition);
      const auto send = send_options(ctx, like.scope, like.trace, deadline, like.lane);
      const auto to = node.empty() ? ActorRef() : ctx.find(shard_name(node));
      auto answer = co_await ctx.ask<Reply>(to, question, send);
      if (answer.has_value() || !worth_retrying(answer.error().code)) co_return answer;
      const bool more = co_await pause(ctx, delay, deadline);
      if (!more && node.empty()) co_return nobody_holds();
      if (!more) co_return answer;
    }
  }

  Task<> erase(Context& ctx, Msg<messages::DeleteEntity> m) {
    auto ask = ask_of(m, "features.erase");
    ask.audited = true;
    ask.what = " (1 entity)";
    auto subject = co_await admit(ctx, std::move(ask));
    if (!subject.has_value()) co_return m.refuse(std::move(subject).error());
    const auto entity = m->getEntity();
    if (entity.size() == 0 || entity.size() > kEntityBytesMax) {
      co_return m.refuse(invalid(format("an entity is 1 to {} bytes long", kEntityBytesMax)));
    }
    auto question = Message::build<messages::ShardErase>([&](messages::ShardErase::Builder out) {
      out.setView(subject->name);
      out.setTenant(subject->tenant);
      out.setEntity(entity);
    });
    const auto like = m.options();
    const auto deadline = deadline_of(ctx, m.deadline());
    const auto partition = storage::partition_of(text(entity));
    auto answer = co_await ask_owner<messages::RowCount>(ctx, partition, std::move(question), like, deadline);
    if (!answer.has_value()) co_return m.refuse(std::move(answer).error());
    m.reply(answer->message());
  }

  Task<> count_shard(Context& ctx, Partition partition, Message question, SendOptions like, Instant deadline, std::uint64_t& rows,
                     std::optional<Error>& trouble) {
    auto answer = co_await ask_owner<messages::RowCount>(ctx, partition, std::move(question), like, deadline);
    if (answer.has_value()) {
      rows += (*answer)->getRows();
    } else {
      trouble = std::move(answer).error();
    }
  }

  Task<> count(Context& ctx, Msg<messages::CountRows> m) {
    auto ask = ask_of(m, "features.count");
    auto subject = co_await admit(ctx, std::move(ask));
    if (!subject.has_value()) co_return m.refuse(std::move(subject).error());
    const auto question = Message::build<messages::ShardCount>([&](messages::ShardCount::Builder out) {
      out.setView(subject->name);
      out.setTenant(subject->tenant);
    });
    std::map<std::string, Partition> owners;  // one partition of each, to find it by
    for (std::uint16_t p = 0; p < limits::kPartitions; ++p) owners.emplace(subject->snapshot->partition_owner(Partition(p)), p);
    std::uint64_t rows = 0;
    std::optional<Error> trouble;
    const auto like = m.options();
    const auto deadline = deadline_of(ctx, m.deadline());
    Gather gather(ctx);
    for (const auto& [node, partition] : owners) gather.add(count_shard(ctx, partition, question, like, deadline, rows, trouble));
    co_await gather.all();
    if (trouble) co_return m.refuse(std::move(*trouble));
    m.reply(Message::build<messages::RowCount>([rows](messages::RowCount::Builder out) { out.setRows(rows); }, 4));
  }

  // ---- snapshots --------------------------------------------------------------------------------------------------------------------

  struct Scanning {
    Subject subject;
    SendOptions like;
    std::vector<std::optional<View<messages::ScanPage>>> pages;  // of the window
    std::optional<Error> trouble;
  };

  Task<> scan_page(Context& ctx, Scanning& scanning, Partition partition, std::string after, std::size_t slot) {
    auto question = Message::build<messages::ScanPartition>([&](messages::ScanPartition::Builder out) {
      out.setView(scanning.subject.name);
      out.setTenant(scanning.subject.tenant);
      out.setPartition(partition.value());
      out.setAfter(after);
      out.setLimit(static_cast<std::uint32_t>(options_.page_rows));
    });
    const auto deadline = ctx.now() + options_.snapshot_timeout;
    auto page = co_await ask_owner<messages::ScanPage>(ctx, partition, std::move(question), scanning.like, deadline);
    if (page.has_value()) {
      scanning.pages[slot].emplace(std::move(*page));
    } else {
      scanning.trouble = within(format("partition {}", partition.value()), std::move(page).error());
    }
  }

  // Writes the partition whose first page is in `slot`, fetching the others.
  Task<Status> write_partition(Context& ctx, Scanning& scanning, SnapshotWriter& writer, artifacts::Upload& upload, Partition partition,
                               std::size_t slot) {
    for (;;) {
      std::string last;
      bool more = false;
      {
        const auto& page = *scanning.pages[slot];
        for (const auto row : page->getRows()) writer.add(row);
        more = page->getMore() && page->getRows().size() > 0;
        if (more) last = text(page->getRows()[page->getRows().size() - 1].getEntity());
      }
      scanning.pages[slot].reset();
      while (writer.ready() >= limits::kChunkBytes) {
        auto bytes = writer.take(limits::kChunkBytes);
        const auto sent = co_await upload.write(std::move(bytes));
        if (!sent.has_value()) co_return sent;
      }
      if (!more) co_return Status{};
      co_await scan_page(ctx, scanning, partition, std::move(last), slot);
      if (scanning.trouble) co_return *scanning.trouble;
    }
  }

  Task<Status> write_snapshot(Context& ctx, Scanning& scanning, SnapshotWriter& writer, artifacts::Upload& upload) {
    const std::size_t window = std::clamp<std::size_t>(options_.scan_window, 1, limits::kPartitions);
    for (std::size_t begin = 0; begin < limits::kPartitions; begin += window) {
      const std::size_t end = std::min<std::size_t>(begin + window, limits::kPartitions);
      scanning.pages.clear();
      scanning.pages.resize(end - begin);
      Gather gather(ctx);
      for (std::size_t p = begin; p < end; ++p) {
        gather.add(scan_page(ctx, scanning, Partition(static_cast<std::uint16_t>(p)), std::string(), p - begin));
      }
      co_await gather.all();
      if (scanning.trouble) co_return *scanning.trouble;
      for (std::size_t p = begin; p < end; ++p) {
        const Partition partition(static_cast<std::uint16_t>(p));
        const auto done = co_await write_partition(ctx, scanning, writer, upload, partition, p - begin);
        if (!done.has_value()) co_return done;
      }
    }
    writer.finish();
    auto rest = writer.take(writer.ready());
    const auto sent = co_await upload.write(std::move(rest));
    co_return sent;
  }

  Task<> snapshot(Context& ctx, Msg<messages::CreateSnapshot> m) {
    auto ask = ask_of(m, "features.snapshot");
    ask.needs_purpose = true;
    ask.audited = true;
    auto subject = co_await admit(ctx, std::move(ask));
    if (!subject.has_value()) co_return m.refuse(std::move(subject).error());
    SnapshotWriter writer(subject->view);
    artifacts::TransferOptions transfer;
    transfer.timeout = std::chrono::hours(24);  // as long as it takes; each chunk has its own bound
    transfer.trace = m.trace();
    artifacts::Upload upload(ctx,
                             {.media_type = std::string(kSnapshotMediaType),
                              .tenant = subject->tenant,
                              .residency = std::string(text(subject->view.getOwner().getResidency())),
                              .purpose = m.scope()->purpose},
                             transfer);
    SendOptions like;
    like.lane = Lane::bulk;
    like.scope = m.scope();
    like.trace = m.trace();
    Scanning scanning{*subject, like, {}, std::nullopt};
    const auto written = co_await write_snapshot(ctx, scanning, writer, upload);
    if (!written.has_value()) co_return m.refuse(within(format("snapshot of '{}'", subject->name), written.error()));
    auto digest = co_await upload.finish();
    if (!digest.has_value()) co_return m.refuse(within(format("snapshot of '{}'", subject->name), std::move(digest).error()));
    const auto rows = writer.rows();
    const auto created = ctx.wall().unix_ns;
    m.reply(Message::build<messages::SnapshotInfo>([&](messages::SnapshotInfo::Builder out) {
      out.setDigest(*digest);
      out.setRows(rows);
      out.setView(subject->view);
      out.setCreatedNs(created);
    }));
  }

  FrontOptions options_;
  metrics::Counter* reads_ = nullptr;
  metrics::Counter* retries_ = nullptr;
};

}  // namespace

ChildSpec front(FrontOptions options) {
  ChildSpec spec;
  spec.id = spec.name = std::string(kFront);
  spec.make = [options] { return std::make_unique<Front>(options); };
  return spec;
}

}  // namespace falaj::features
