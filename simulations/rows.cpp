#include "simulations/rows.hpp"

#include <algorithm>

#include "actors/features/front.hpp"
#include "messages/features.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::simulations {

using namespace std::chrono_literals;
using messages::Features;
using messages::GetFeatures;
using messages::PutRows;
using messages::PutRowsReply;

namespace {
constexpr std::size_t kEntities = 24;
}

Rows::Rows(Cluster& cluster, Client& client, Verdict& verdict)
    : cluster_(cluster), client_(client), verdict_(verdict), random_(cluster.world().random("rows")) {
  for (std::size_t i = 0; i < kEntities; ++i) entities_[format("e{:02}", i)];
}

std::string Rows::somebody() { return cluster_.names()[random_.below(cluster_.names().size())]; }

void Rows::begin() { next(); }

void Rows::next() {
  auto& world = cluster_.world();
  world.at(world.now() + 50ms + std::chrono::milliseconds(random_.below(500)), [this] {
    if (stopped_) return;
    if (random_.chance(0.5)) {
      write();
    } else {
      std::vector<std::string> names;
      for (std::size_t i = 0; i <= random_.below(4); ++i) names.push_back(format("e{:02}", random_.below(kEntities)));
      std::ranges::sort(names);
      names.erase(std::unique(names.begin(), names.end()), names.end());
      read(somebody(), std::move(names), [](bool) {});
    }
    next();
  });
}

void Rows::write() {
  std::vector<std::pair<std::string, std::int64_t>> rows;
  const auto count = 1 + random_.below(4);
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto entity = format("e{:02}", random_.below(kEntities));
    const auto at = ++clock_;
    entities_[entity].written[at] = at * 7;
    rows.emplace_back(entity, at);
  }
  auto message = Message::build<PutRows>([&](PutRows::Builder b) {
    b.setView(std::string(kLiveView));
    auto list = b.initRows(static_cast<unsigned>(rows.size()));
    for (unsigned i = 0; i < rows.size(); ++i) {
      list[i].setEntity(rows[i].first);
      list[i].setEventTimeNs(rows[i].second);
      auto values = list[i].initValues(2);
      values[0].setInt64(rows[i].second * 7);
      values[1].setString("somebody");
    }
  });
  client_.ask_for<PutRowsReply>({somebody(), std::string(features::kFront), {}, 3s}, std::move(message),
                                [this, rows](const Result<View<PutRowsReply>>& done) {
                                  if (!done.has_value()) return;
                                  acknowledged_ += rows.size();
                                  for (const auto& [entity, at] : rows) {
                                    auto& newest = entities_[entity].acknowledged;
                                    newest = std::max(newest, at);
                                  }
                                });
}

void Rows::check(const std::string& entity, std::int64_t at_least, std::int64_t event_time, std::int64_t value) {
  const auto& known = entities_[entity].written;
  const auto found = known.find(event_time);
  if (found == known.end()) {
    verdict_.fail(format("row {} has the event time {}, which nobody wrote", entity, event_time));
  } else if (found->second != value) {
    verdict_.fail(format("row {} of event time {} has the value {}, written was {}", entity, event_time, value, found->second));
  } else if (event_time < at_least) {
    verdict_.fail(
        format("row {}: event time {} was acknowledged, {} is read: an acknowledged write is lost", entity, at_least, event_time));
  }
}

void Rows::read(const std::string& machine, std::vector<std::string> names, std::function<void(bool)> done) {
  std::vector<std::int64_t> at_least;
  for (const auto& name : names) at_least.push_back(entities_[name].acknowledged);
  auto message = Message::build<GetFeatures>([&](GetFeatures::Builder b) {
    b.setView(std::string(kLiveView));
    auto list = b.initEntities(static_cast<unsigned>(names.size()));
    for (unsigned i = 0; i < names.size(); ++i) list.set(i, names[i]);
  });
  client_.ask_for<Features>(
      {machine, std::string(features::kFront), std::string(kPurpose), 3s}, std::move(message),
      [this, names = std::move(names), at_least = std::move(at_least), machine,
       done = std::move(done)](const Result<View<Features>>& answer) {
        if (!answer.has_value()) {
          trouble_ = format("reading through {}: {}", machine, to_string(answer.error()));
          return done(false);
        }
        ++personal_reads_;
        const auto rows = (*answer)->getRows();
        for (unsigned i = 0; i < rows.size(); ++i) {
          if (rows[i].getStatus() == messages::RowStatus::PRESENT) {
            check(names[i], at_least[i], rows[i].getEventTimeNs(), rows[i].getValues()[0].getInt64());
          } else if (at_least[i] != 0) {
            verdict_.fail(
                format("row {}: event time {} was acknowledged, it is not found: an acknowledged write is lost", names[i], at_least[i]));
          }
        }
        done(true);
      });
}

void Rows::read_all() {
  begun_ = true;
  unread_ = cluster_.names().size();
  for (const auto& machine : cluster_.names()) read_from(machine);
}

void Rows::read_from(const std::string& machine) {
  std::vector<std::string> names;
  for (const auto& [name, entity] : entities_) names.push_back(name);
  read(machine, std::move(names), [this, machine](bool good) {
    if (good) {
      --unread_;
      return;
    }
    auto& world = cluster_.world();
    world.at(world.now() + 500ms, [this, machine] { read_from(machine); });
  });
}

}  // namespace falaj::simulations
