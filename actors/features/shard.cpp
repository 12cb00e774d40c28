#include "actors/features/shard.hpp"

#include <algorithm>
#include <limits>
#include <map>

#include "actors/features/values.hpp"
#include "messages/features.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"

namespace falaj::features {

namespace {

using Snapshot = std::shared_ptr<const cluster::ClusterSnapshot>;

constexpr std::size_t kPageBytes = 4U << 20;  // a page must stay a message, whatever its rows hold

// Names and types of the first `count` fields: rows keep it, so that a view whose fields have changed is not misread.
std::uint32_t schema_version(messages::FeatureView::Reader view, std::size_t count) {
  std::string fields;
  for (unsigned i = 0; i < count; ++i) {
    const auto field = view.getField()[i];
    fields += format("{}:{}\n", text(field.getName()), to_string(field.getType()));
  }
  const auto hash = stable_hash(fields);
  return static_cast<std::uint32_t>(hash ^ hash >> 32U);
}

// What a handler needs of the view, and keeps alive while work runs elsewhere.
struct Target {
  Snapshot snapshot;
  storage::ViewName name;
  messages::FeatureView::Reader view;
  std::uint32_t version = 0;
  [[nodiscard]] std::size_t fields() const { return view.getField().size(); }
  [[nodiscard]] Duration ttl() const { return std::chrono::seconds(view.getTtlSeconds()); }
  // A view may have been given fields since; their values are missing then.
  Status fit(storage::FeatureRow& row) const {
    if (row.schema_version == version) return {};
    if (row.fields.size() < fields() && row.schema_version == schema_version(view, row.fields.size())) {
      row.fields.resize(fields());
      return {};
    }
    return failed(format("view '{}': its rows were written under other fields; write them again, or append new fields only", name.view));
  }
};

storage::FeatureRow to_row(messages::Row::Reader row, std::uint32_t version, WallTime ingest) {
  storage::FeatureRow out;
  out.entity = text(row.getEntity());
  out.event_time = WallTime{row.getEventTimeNs()};
  out.ingest_time = ingest;
  out.schema_version = version;
  out.fields.reserve(row.getValues().size());
  for (const auto value : row.getValues()) out.fields.push_back(read_value(value));
  return out;
}

std::size_t bytes_of(const storage::FeatureRow& row) {
  std::size_t bytes = 64 + row.entity.size() + row.fields.size() * 24;
  for (const auto& field : row.fields) {
    if (const auto* string = std::get_if<std::string>(&field)) bytes += string->size() + 8;
  }
  return bytes;
}

// ---- what runs on the blocking pool --------------------------------------------------------------------------------------------

Status commit_rows(storage::FeatureRows& store, const std::vector<std::pair<Target, Message>>& puts, WallTime now) {
  std::map<storage::ViewName, std::vector<storage::FeatureRow>> rows;
  for (const auto& [target, message] : puts) {
    FALAJ_ASSIGN(const auto put, message.open<messages::ShardPut>());
    auto& list = rows[target.name];
    for (const auto row : put->getRows()) list.push_back(to_row(row, target.version, now));
  }
  for (const auto& [view, list] : rows) {
    FALAJ_ASSIGN([[maybe_unused]] const auto report, store.put(view, list));
  }
  return {};
}

Result<std::vector<unsigned>> wanted_fields(const Target& target, capnp::List<capnp::Text>::Reader names) {
  std::vector<unsigned> out;
  const auto fields = target.view.getField();
  if (names.size() == 0) {
    for (unsigned i = 0; i < fields.size(); ++i) out.push_back(i);
    return out;
  }
  for (const auto name : names) {
    unsigned i = 0;
    while (i < fields.size() && fields[i].getName() != name) ++i;
    if (i == fields.size()) return invalid(format("view '{}' has no field '{}'", target.name.view, text(name)));
    out.push_back(i);
  }
  return out;
}

Result<Message> read_rows(storage::FeatureRows& store, const Target& target, const Message& request, WallTime now) {
  FALAJ_ASSIGN(const auto get, request.open<messages::ShardGet>());
  FALAJ_ASSIGN(const auto wanted, wanted_fields(target, get->getFields()));
  std::vector<std::string> entities;
  entities.reserve(get->getEntities().size());
  for (const auto entity : get->getEntities()) entities.emplace_back(text(entity));
  FALAJ_ASSIGN(auto rows, store.get_many(target.name, entities));
  std::size_t words = 64 + wanted.size() * 8;
  for (auto& row : rows) {
    if (!row) continue;
    FALAJ_TRY(target.fit(*row));
    words += bytes_of(*row) / 8 + 8;
  }
  if (words * sizeof(capnp::word) > limits::kMessageBytesMax)
    return invalid("the answer would be too long for one message; ask for fewer entities");
  const std::int64_t oldest =
      target.ttl() > Duration::zero() ? now.unix_ns - target.ttl().count() : std::numeric_limits<std::int64_t>::min();
  return Message::build<messages::Features>(
      [&](messages::Features::Builder out) {
        auto fields = out.initFields(static_cast<unsigned>(wanted.size()));
        for (unsigned i = 0; i < wanted.size(); ++i) fields.setWithCaveats(i, target.view.getField()[wanted[i]]);
        auto list = out.initRows(static_cast<unsigned>(rows.size()));
        for (unsigned i = 0; i < rows.size(); ++i) {
          list[i].setEntity(entities[i]);
          const auto& row = rows[i];
          if (!row) {
            list[i].setStatus(messages::RowStatus::NOT_FOUND);
            continue;
          }
          list[i].setEventTimeNs(row->event_time.unix_ns);
          if (row->event_time.unix_ns < oldest) {
            list[i].setStatus(messages::RowStatus::EXPIRED);
            continue;
          }
          list[i].setStatus(messages::RowStatus::PRESENT);
          auto values = list[i].initValues(static_cast<unsigned>(wanted.size()));
          for (unsigned k = 0; k < wanted.size(); ++k) write_value(values[k], row->fields[wanted[k]]);
        }
      },
      words);
}

struct Scan {
  Partition partition;
  std::string after;
  std::uint32_t limit = 0;
};

Result<Message> scan_rows(storage::FeatureRows& store, const Target& target, const Scan& scan) {
  std::vector<storage::FeatureRow> rows;
  std::size_t bytes = 0;
  bool more = false;
  Status misfit;
  FALAJ_TRY(store.scan(target.name, scan.partition, target.ttl(), [&](const storage::FeatureRow& row) {
    if (!scan.after.empty() && row.entity <= scan.after) return true;
    more = rows.size() >= scan.limit || bytes >= kPageBytes;
    if (more) return false;
    rows.push_back(row);
    misfit = target.fit(rows.back());
    bytes += bytes_of(rows.back());
    return misfit.has_value();
  }));
  FALAJ_TRY(misfit);
  return Message::build<messages::ScanPage>(
      [&](messages::ScanPage::Builder out) {
        auto list = out.initRows(static_cast<unsigned>(rows.size()));
        for (unsigned i = 0; i < rows.size(); ++i) {
          list[i].setEntity(rows[i].entity);
          list[i].setEventTimeNs(rows[i].event_time.unix_ns);
          auto values = list[i].initValues(static_cast<unsigned>(rows[i].fields.size()));
          for (unsigned k = 0; k < values.size(); ++k) write_value(values[k], rows[i].fields[k]);
        }
        out.setMore(more);
      },
      bytes / 8 + rows.size() * 4 + 16);
}

Result<std::uint64_t> count_rows(storage::FeatureRows& store, const storage::ViewName& view, const std::vector<Partition>& partitions) {
  std::uint64_t rows = 0;
  for (const auto partition : partitions) {
    FALAJ_ASSIGN(const auto count, store.count(view, partition));
    rows += count;
  }
  return rows;
}

Message row_count(std::uint64_t rows) {
  return Message::build<messages::RowCount>([rows](messages::RowCount::Builder out) { out.setRows(rows); }, 4);
}

// ---- the actor ------------------------------------------------------------------------------------------------------------------

class Shard final : public ActorOf<Shard> {
 public:
  static constexpr std::string_view kType = "features/shard";
  static void handlers(Handlers<Shard>& on) {
    on.message<messages::ShardPut>(&Shard::put);
    on.message<messages::ShardGet>(&Shard::get);
    on.message<messages::ShardErase>(&Shard::erase);
    on.message<messages::ShardCount>(&Shard::count);
    on.message<messages::ScanPartition>(&Shard::scan);
  }

  explicit Shard(ShardOptions options) : options_(std::move(options)) {}

  void on_start(Context& ctx) override {
    const metrics::Labels labels{{"shard", options_.node}};
    rows_written_ = &ctx.metrics().counter("falaj_feature_rows_written_total", "rows committed by this shard", labels);
    rows_read_ = &ctx.metrics().counter("falaj_feature_rows_read_total", "rows asked of this shard by key", labels);
  }

 private:
  struct Put {
    Target target;
    Msg<messages::ShardPut> from;
  };

  template <class T>
  Result<Target> target_of(const Msg<T>& m) const {
    Target target;
    target.snapshot = options_.cluster->get();
    if (!target.snapshot) return error(ErrorCode::unreachable, "this node has no cluster view yet; try again");
    target.name = {std::string(text(m->getTenant())), std::string(text(m->getView()))};
    if (target.name.tenant.empty()) target.name.tenant = "default";
    const auto view = target.snapshot->feature_view(target.name.tenant, target.name.view);
    if (!view) return error(ErrorCode::not_found, format("no feature view '{}' in tenant '{}'", target.name.view, target.name.tenant));
    target.view = *view;
    target.version = schema_version(*view, target.fields());
    return target;
  }

  [[nodiscard]] Status own(const Target& target, Partition partition) const {
    const auto owner = target.snapshot->partition_owner(partition);
    if (owner == options_.node) return {};
    return error(ErrorCode::conflict, format("partition {} belongs to {}, not to {}", partition.value(),
                                             owner.empty() ? std::string("no node yet") : shard_name(owner), shard_name(options_.node)));
  }

  // -- writes
  void put(Context& ctx, Msg<messages::ShardPut> m) {
    auto target = target_of(m);
    if (!target.has_value()) return m.refuse(std::move(target).error());
    for (const auto row : m->getRows()) {
      auto mine = own(*target, storage::partition_of(text(row.getEntity())));
      if (!mine.has_value()) return m.refuse(std::move(mine).error());
      if (row.getValues().size() == target->fields()) continue;
      return m.refuse(error(ErrorCode::conflict, format("view '{}' has {} fields here; a row came with {}", target->name.view,
                                                        target->fields(), row.getValues().size())));
    }
    const std::size_t rows = m->getRows().size();
    if (queued_rows_ + rows > options_.queued_rows_max) {
      return m.refuse(error(ErrorCode::overloaded, format("{} has {} rows waiting for the disk", shard_name(options_.node), queued_rows_)));
    }
    queued_rows_ += rows;
    puts_.push_back(Put{std::move(*target), std::move(m)});
    if (committing_) return;
    committing_ = true;
    ctx.start(commit(ctx));
  }

  std::vector<Put> take_batch() {
    std::size_t rows = 0, count = 0;
    const std::size_t rows_max = fault::rarely("shard-commit-one", 0.25) ? 1 : options_.commit_rows_max;
    while (count < puts_.size() && rows < rows_max) rows += puts_[count++].from->getRows().size();
    std::vector<Put> batch(std::make_move_iterator(puts_.begin()),
                           std::make_move_iterator(puts_.begin() + static_cast<std::ptrdiff_t>(count)));
    puts_.erase(puts_.begin(), puts_.begin() + static_cast<std::ptrdiff_t>(count));
    queued_rows_ -= rows;
    return batch;
  }

  // Group commit: what comes while the disk is busy shares its next turn.
  Task<> commit(Context& ctx) {
    while (!puts_.empty()) {
      auto batch = take_batch();
      std::vector<std::pair<Target, Message>> messages;
      for (const auto& one : batch) messages.emplace_back(one.target, one.from.message());
      auto work = [store = options_.rows, messages = std::move(messages), now = ctx.wall()] { return commit_rows(*store, messages, now); };
      if (fault::planted("row-acknowledged-early")) {
        for (auto& one : batch)
          one.from.reply(Message::build<messages::PutRowsReply>([](messages::PutRowsReply::Builder out) { out.setWritten(1); }, 4));
      }
      const auto done = co_await ctx.blocking(std::move(work));
      for (auto& one : batch) {
        if (!done.has_value()) {
          one.from.refuse(within(shard_name(options_.node), done.error()));
          continue;
        }
        const auto rows = one.from->getRows().size();
        rows_written_->add(rows);
        one.from.reply(Message::build<messages::PutRowsReply>([rows](messages::PutRowsReply::Builder out) { out.setWritten(rows); }, 4));
      }
    }
    committing_ = false;
  }

  Task<> erase(Context& ctx, Msg<messages::ShardErase> m) {
    auto target = target_of(m);
    if (!target.has_value()) co_return m.refuse(std::move(target).error());
    std::string entity(text(m->getEntity()));
    auto mine = own(*target, storage::partition_of(entity));
    if (!mine.has_value()) co_return m.refuse(std::move(mine).error());
    auto work = [store = options_.rows, target = *target, entity = std::move(entity)] { return store->erase(target.name, entity); };
    auto erased = co_await ctx.blocking(std::move(work));
    if (!erased.has_value()) co_return m.refuse(within(shard_name(options_.node), std::move(erased).error()));
    m.reply(row_count(*erased ? 1 : 0));
  }

  // -- reads
  Task<> get(Context& ctx, Msg<messages::ShardGet> m) {
    auto target = target_of(m);
    if (!target.has_value()) co_return m.refuse(std::move(target).error());
    for (const auto entity : m->getEntities()) {
      auto mine = own(*target, storage::partition_of(text(entity)));
      if (!mine.has_value()) co_return m.refuse(std::move(mine).error());
    }
    rows_read_->add(m->getEntities().size());
    auto work = [store = options_.rows, target = *target, request = m.message(), now = ctx.wall()] {
      return read_rows(*store, target, request, now);
    };
    auto answer = co_await ctx.blocking(std::move(work));
    if (!answer.has_value()) co_return m.refuse(within(shard_name(options_.node), std::move(answer).error()));
    m.reply(std::move(*answer));
  }

  Task<> scan(Context& ctx, Msg<messages::ScanPartition> m) {
    auto target = target_of(m);
    if (!target.has_value()) co_return m.refuse(std::move(target).error());
    const Partition partition(m->getPartition());
    auto mine = own(*target, partition);
    if (!mine.has_value()) co_return m.refuse(std::move(mine).error());
    const Scan scan{partition, std::string(text(m->getAfter())), std::clamp<std::uint32_t>(m->getLimit(), 1, 8192)};
    auto work = [store = options_.rows, target = *target, scan] { return scan_rows(*store, target, scan); };
    auto page = co_await ctx.blocking(std::move(work));
    if (!page.has_value()) co_return m.refuse(within(shard_name(options_.node), std::move(page).error()));
    m.reply(std::move(*page));
  }

  Task<> count(Context& ctx, Msg<messages::ShardCount> m) {
    auto target = target_of(m);
    if (!target.has_value()) co_return m.refuse(std::move(target).error());
    std::vector<Partition> partitions;
    for (std::uint16_t p = 0; p < limits::kPartitions; ++p) {
      if (target->snapshot->partition_owner(Partition(p)) == options_.node) partitions.emplace_back(p);
    }
    auto work = [store = options_.rows, name = target->name, partitions = std::move(partitions)] {
      return count_rows(*store, name, partitions);
    };
    auto rows = co_await ctx.blocking(std::move(work));
    if (!rows.has_value()) co_return m.refuse(within(shard_name(options_.node), std::move(rows).error()));
    m.reply(row_count(*rows));
  }

  ShardOptions options_;
  metrics::Counter* rows_written_ = nullptr;
  metrics::Counter* rows_read_ = nullptr;
  std::vector<Put> puts_;
  std::size_t queued_rows_ = 0;
  bool committing_ = false;
};

}  // namespace

std::string shard_name(std::string_view node) { return format("features/shard/{}", node); }

ChildSpec shard(ShardOptions options) {
  ChildSpec spec;
  spec.id = spec.name = shard_name(options.node);
  spec.make = [options = std::move(options)] { return std::make_unique<Shard>(options); };
  return spec;
}

}  // namespace falaj::features
