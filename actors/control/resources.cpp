#include "actors/control/resources.hpp"

#include <map>

#include "actors/control/agent.hpp"
#include "actors/control/placement.hpp"
#include "actors/control/records.hpp"
#include "actors/governance/audit.hpp"
#include "messages/control_internal.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/registry.capnp.h"
#include "messages/training.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/retry.hpp"

namespace falaj::control {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;
using std::chrono::milliseconds;

constexpr auto kTick = milliseconds(500);

class Resources final : public ActorOf<Resources> {
 public:
  static constexpr std::string_view kType = "control/resources";
  static void handlers(Handlers<Resources>& on) {
    on.message<Apply>(&Resources::apply);
    on.message<GetResource>(&Resources::get);
    on.message<ListResources>(&Resources::list);
    on.message<DeleteResource>(&Resources::remove);
    on.message<ViewChanged>(&Resources::view_changed);
  }
  explicit Resources(const ResourcesOptions& options)
      : options_(options),
        commands_("control/resources", *options.store, options.commands),
        placer_(*options.store, *options.view, options.epoch) {}

  void on_start(Context& ctx) override {
    if (const auto loaded = commands_.load(); !loaded) throw std::runtime_error(loaded.error().message);
    const auto listing = options_.store->list("resource/");
    if (!listing.has_value()) throw std::runtime_error(listing.error().message);
    for (const auto& item : listing->items) {
      auto record = open_record(item);
      if (!record.has_value()) throw std::runtime_error(item.key + ": " + record.error().message);
      records_.insert_or_assign(item.key, std::move(record).value());
    }
    placer_.load();
    ctx.start(run(ctx));
  }

 private:
  // ---- commands ----
  Task<> apply(Context& ctx, Msg<Apply> m) {
    const auto name = name_of(m->getResource());
    if (!name) co_return m.refuse(name.error());
    if (auto good = check(m->getResource()); !good) co_return m.refuse(within(name->kind + " '" + name->name + "'", good.error()));
    if (m.scope() && !m.scope()->tenant.empty() && m.scope()->tenant != name->tenant) {
      co_return m.refuse(error(
          ErrorCode::denied, format("the message speaks for tenant '{}', the resource belongs to '{}'", m.scope()->tenant, name->tenant)));
    }
    auto admitting = commands_.admit(ctx, m);
    auto turn = co_await std::move(admitting);
    if (!turn) co_return m.refuse(turn.error());
    if (turn->before()) co_return answer_again(m, *turn->before());
    const auto key = name->key();
    const auto known = records_.find(key);
    const Revision now(known == records_.end() ? 0 : known->second->getRevision());
    if (auto fits = as_expected(key, now, m->getExpected()); !fits) co_return m.refuse(fits.error());
    if (known != records_.end() && !m->getAgain() && same(known->second->getResource(), m->getResource())) {
      const auto answer = known->second.message();
      auto keeping = keep_only(ctx, *turn, answer);
      if (const auto kept = co_await std::move(keeping); !kept) co_return m.refuse(kept.error());
      co_return m.reply(answer);
    }
    if (name->kind == "feature_view") {
      auto dealt = ctx.ask<Empty>(ctx.find("control/membership"), Message::build<DealPartitions>());
      const auto done = co_await dealt;
      if (!done) co_return m.refuse(done.error());
      if (auto fits = compatible(key, m->getResource()); !fits) co_return m.refuse(fits.error());
    }
    auto audited = governance::audit_ask(ctx, governance::record_of(m.scope(), m.trace(), ctx.node_name(), "resources.write", key));
    if (const auto kept = co_await std::move(audited); !kept) co_return m.refuse(within("not audited, so not done", kept.error()));
    const auto record = pending(ctx, m);
    auto write = commit(ctx, *turn, {key, record_bytes(record), {}}, now, record);
    const auto revision = co_await std::move(write);
    if (!revision) co_return m.refuse(revision.error());
    auto stored = open_record(storage::KeyValue{key, record_bytes(record), now, *revision, {}});
    if (!stored) co_return m.refuse(stored.error());
    const auto answer = stored->message();
    records_.insert_or_assign(key, std::move(stored).value());
    if (name->kind == "feature_view" || name->kind == "deployment") {
      const auto published = co_await publish(ctx);
      if (!published) co_return m.refuse(published.error());
    }
    look_again(ctx);
    m.reply(answer);
  }

  static Message pending(Context& ctx, const Msg<Apply>& m) {
    const std::string by = m.scope() ? m.scope()->principal : "node/" + ctx.node_name();
    return Message::build<ResourceRecord>(
        [&](ResourceRecord::Builder b) {
          b.setResource(m->getResource());
          b.setCreatedNs(ctx.wall().unix_ns);
          b.setCreatedBy(by);
          b.getStatus().setPhase("pending");
        },
        256);
  }

  static Status as_expected(const std::string& key, Revision now, std::uint64_t expected) {
    if (expected == 0 || expected == now.value()) return {};
    return error(ErrorCode::conflict, format("{} has revision {}, not {}; read it again", key, now.value(), expected));
  }

  // The write and, when the command has a key, its answer, at once.
  Task<Result<Revision>> commit(Context& ctx, CommandBook::Turn& turn, storage::Write change, Revision now, Message answer) {
    storage::Transaction transaction;
    transaction.conditions.push_back({change.key, now});
    transaction.writes.push_back(std::move(change));
    turn.keep(transaction, answer, ctx.wall());
    auto* store = options_.store;
    auto write = ctx.blocking([store, now, transaction = std::move(transaction)]() -> Result<Revision> {
      if (fault::planted("command-not-stored")) return Revision(now.value() + 1);
      return store->commit(transaction);
    });
    const auto revision = co_await write;
    if (revision) turn.kept();
    co_return revision;
  }

  // A command that found everything done: with a key, its answer must hold when somebody else has changed it since.
  Task<Status> keep_only(Context& ctx, CommandBook::Turn& turn, Message answer) {
    if (!turn.keyed()) co_return Status{};
    storage::Transaction transaction;
    turn.keep(transaction, answer, ctx.wall());
    auto* store = options_.store;
    auto write = ctx.blocking([store, transaction = std::move(transaction)] { return store->commit(transaction); });
    const auto done = co_await write;
    if (!done) co_return done.error();
    turn.kept();
    co_return Status{};
  }

  // A record knows its revision only when it is stored: that of its transaction.
  static void answer_again(Msg<Apply>& m, const CommandBook::Answered& before) {
    const auto record = before.answer.open<ResourceRecord>();
    if (!record) return m.refuse(record.error());
    if ((*record)->getRevision() != 0) return m.reply(before.answer);
    auto whole = open_record(storage::KeyValue{{}, record_bytes(before.answer), {}, before.revision, {}});
    if (!whole) return m.refuse(whole.error());
    m.reply(whole->message());
  }

  // A feature view may gain fields; a field that rows hold keeps its type and its place.
  Status compatible(const std::string& key, Resource::Reader wanted) {
    const auto known = records_.find(key);
    if (known == records_.end()) return {};
    const auto old_fields = known->second->getResource().getFeatureView().getField();
    const auto new_fields = wanted.getFeatureView().getField();
    for (unsigned i = 0; i < old_fields.size(); ++i) {
      if (i >= new_fields.size() || text(old_fields[i].getName()) != text(new_fields[i].getName()) ||
          old_fields[i].getType() != new_fields[i].getType()) {
        return error(ErrorCode::conflict, format("{}: field '{}' holds rows already; append new fields after it, or make a new view", key,
                                                 text(old_fields[i].getName())));
      }
    }
    return {};
  }

  void get(Context&, Msg<GetResource> m) {
    const auto found = records_.find(
        ResourceName{std::string(text(m->getKind())), std::string(text(m->getTenant())), std::string(text(m->getName()))}.key());
    if (found == records_.end())
      return m.refuse(
          error(ErrorCode::not_found, format("no {} '{}' in tenant '{}'", text(m->getKind()), text(m->getName()), text(m->getTenant()))));
    m.reply(with_status(found->first, found->second));
  }

  void list(Context&, Msg<ListResources> m) {
    std::vector<Message> found;
    const std::string prefix = "resource/" + (text(m->getKind()).empty() ? std::string() : std::string(text(m->getKind())) + "/");
    for (auto it = records_.lower_bound(prefix); it != records_.end() && it->first.starts_with(prefix); ++it) {
      const auto name = name_of(it->second->getResource());
      if (name && (text(m->getTenant()).empty() || text(m->getTenant()) == name->tenant))
        found.push_back(with_status(it->first, it->second));
    }
    m.reply(Message::build<ResourceList>(
        [&](ResourceList::Builder b) {
          auto records = b.initRecords(static_cast<unsigned>(found.size()));
          for (unsigned i = 0; i < found.size(); ++i) records.setWithCaveats(i, *found[i].view<ResourceRecord>());
        },
        1024));
  }

  Message with_status(const std::string& key, const View<ResourceRecord>& record) {
    const auto status = status_.find(key);
    if (status == status_.end()) return record.message();
    return Message::build<ResourceRecord>(
        [&](ResourceRecord::Builder b) {
          b.setResource(record->getResource());
          b.setRevision(record->getRevision());
          b.setCreatedNs(record->getCreatedNs());
          b.setCreatedBy(record->getCreatedBy());
          b.setStatus(*status->second.view<ResourceStatus>());
        },
        256);
  }

  Task<> remove(Context& ctx, Msg<DeleteResource> m) {
    const auto key =
        ResourceName{std::string(text(m->getKind())), std::string(text(m->getTenant())), std::string(text(m->getName()))}.key();
    auto admitting = commands_.admit(ctx, m);
    auto turn = co_await std::move(admitting);
    if (!turn) co_return m.refuse(turn.error());
    if (turn->before()) co_return m.reply(turn->before()->answer);
    const auto known = records_.find(key);
    if (known == records_.end()) co_return m.refuse(error(ErrorCode::not_found, format("there is no {}", key)));
    const Revision now(known->second->getRevision());
    if (auto fits = as_expected(key, now, m->getExpected()); !fits) co_return m.refuse(fits.error());
    auto audited = governance::audit_ask(ctx, governance::record_of(m.scope(), m.trace(), ctx.node_name(), "resources.delete", key));
    if (const auto kept = co_await std::move(audited); !kept) co_return m.refuse(within("not audited, so not done", kept.error()));
    auto write = commit(ctx, *turn, {key, std::nullopt, {}}, now, Message::build<Empty>());
    const auto done = co_await std::move(write);
    if (!done) co_return m.refuse(done.error());
    records_.erase(key);
    status_.erase(key);
    const auto published = co_await publish(ctx);
    if (!published) co_return m.refuse(published.error());
    look_again(ctx);
    m.reply(Message::build<Empty>());
  }

  void view_changed(Context& ctx, Msg<ViewChanged>) { look_again(ctx); }

  // ---- making it so ----
  // One reconciliation at a time; what changes while it runs is looked at by the next.
  void look_again(Context& ctx) {
    dirty_ = true;
    if (!started_ || making_) return;
    making_ = true;
    ctx.start(make(ctx));
  }

  Task<> make(Context& ctx) {
    while (dirty_) {
      dirty_ = false;
      co_await reconcile(ctx);
    }
    making_ = false;
  }

  // After each change at once, and from time to time anyway.
  void tick(Context& ctx) {
    look_again(ctx);
    ctx.after(kTick, [this](Context& later) { tick(later); });
  }

  Task<> run(Context& ctx) {
    RetryDelay wait(milliseconds(20), kTick);
    for (;;) {
      const auto published = co_await publish(ctx);
      if (published) break;
      co_await ctx.sleep(wait.next(ctx.random()));
    }
    started_ = true;
    tick(ctx);
  }

  Task<Status> publish(Context& ctx) {
    const auto message = Message::build<PublishResources>(
        [this](PublishResources::Builder b) {
          std::vector<Resource::Reader> shown;
          for (const auto& [key, record] : records_) {
            if (!record->getResource().isJob()) shown.push_back(record->getResource());
          }
          auto list = b.initResources(static_cast<unsigned>(shown.size()));
          for (unsigned i = 0; i < shown.size(); ++i) list.setWithCaveats(i, shown[i]);
        },
        1024);
    auto asked = ctx.ask<Empty>(ctx.find("control/membership"), message);
    const auto done = co_await asked;
    if (!done) co_return done.error();
    co_return Status{};
  }

  Task<> reconcile(Context& ctx) {
    // Again each time: control/membership may have been restarted, or been too busy when a command was stored.
    if (const auto published = co_await publish(ctx); !published) {
      log::debug("control", "resources not published", {{"reason", published.error().message}});
    }
    const auto view = options_.view->get();
    const bool deciding = view && view->view().getDeciding();
    if (deciding) co_await placer_.begin(ctx);
    // Copies of the messages: a command may change records_ while this waits.
    std::vector<std::pair<std::string, Message>> wanted;
    for (const auto& [key, record] : records_) wanted.emplace_back(key, record.message());
    std::set<std::string> deployments;
    for (const auto& [key, message] : wanted) {
      const auto record = message.view<ResourceRecord>();
      const auto resource = record->getResource();
      if (resource.isDeployment() && !deciding) {
        note(key, undecided(key));
      } else if (resource.isDeployment()) {
        deployments.emplace(text(resource.getDeployment().getName()));
        const auto status = co_await placer_.deployment(ctx, message);
        note(key, status);
      } else if (resource.isJob()) {
        co_await job(ctx, key, message);
      } else {
        note(key, Message::build<ResourceStatus>([](ResourceStatus::Builder b) { b.setPhase("ready"); }));
      }
    }
    if (deciding) co_await placer_.remove_others(ctx, deployments);
  }

  // As it was known last; nothing is moved by a control that may be the one cut off.
  Message undecided(const std::string& key) const {
    const auto last = status_.find(key);
    return Message::build<ResourceStatus>([&](ResourceStatus::Builder b) {
      if (last != status_.end()) {
        const auto before = last->second.view<ResourceStatus>();
        b.setReady(before->getReady());
        b.setWanted(before->getWanted());
      }
      b.setPhase(b.getReady() == 0 ? "pending" : "degraded");
      b.setMessage("control sees fewer than half of its nodes and moves nothing; bring them back, or `falaj forget` those that stay away");
    });
  }

  void note(const std::string& key, const Message& status) {
    if (records_.contains(key)) status_.insert_or_assign(key, status);
  }

  Task<> job(Context& ctx, const std::string& key, const Message& message) {
    const auto record = message.view<ResourceRecord>();
    const auto revision = record->getRevision();
    if (handed_[key] == revision) {
      co_await note_run(ctx, key, text(record->getResource().getJob().getName()));
      co_return;
    }
    const auto run = Message::build<RunJob>(
        [&](RunJob::Builder b) {
          b.setJob(record->getResource().getJob());
          b.setGeneration(revision);
        },
        256);
    auto asked = ctx.ask<Empty>(ctx.find("training/jobs"), run);
    const auto done = co_await asked;
    if (done) handed_[key] = revision;
    note(key, Message::build<ResourceStatus>([&](ResourceStatus::Builder b) {
           b.setPhase(done ? "running" : "pending");
           if (!done) b.setMessage(done.error().message);
         }));
  }

  Task<> note_run(Context& ctx, std::string key, std::string_view job_name) {
    const auto question = Message::build<GetRun>([&](GetRun::Builder b) { b.setJob(std::string(job_name)); });
    auto asked = ctx.ask<RunInfo>(ctx.find("training/jobs"), question);
    const auto run = co_await asked;
    if (!run) co_return;
    note(key, Message::build<ResourceStatus>([&](ResourceStatus::Builder b) {
           b.setPhase((*run)->getPhase());
           b.setMessage((*run)->getMessage());
         }));
  }

  ResourcesOptions options_;
  CommandBook commands_;
  Placer placer_;
  std::map<std::string, View<ResourceRecord>> records_;
  std::map<std::string, Message> status_;        // ResourceStatus, by key; made anew, never stored
  std::map<std::string, std::uint64_t> handed_;  // jobs given to training/jobs: revision
  bool started_ = false;                         // what is stored has been published
  bool making_ = false;
  bool dirty_ = true;
};

}  // namespace

ChildSpec resources(ResourcesOptions options) {
  ChildSpec spec;
  spec.id = "control/resources";
  spec.name = spec.id;
  spec.make = [options] { return std::make_unique<Resources>(options); };
  return spec;
}

}  // namespace falaj::control
