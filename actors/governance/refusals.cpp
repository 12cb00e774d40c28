#include "actors/governance/refusals.hpp"

#include <utility>

#include "runtime/base/format.hpp"

namespace falaj::governance {

namespace {

std::string key_of(const AuditRecord& record) {
  std::string key;
  for (const auto* part : {&record.principal, &record.verb, &record.target, &record.tenant, &record.purpose}) {
    key += *part;
    key += '\0';
  }
  return key;
}

}  // namespace

void RefusalQueue::push(AuditRecord record) {
  const auto wake = state_.with([&](State& s) {
    const bool was_empty = s.waiting.empty();
    ++s.pushed;
    if (s.waiting.size() < entries_max_) {
      s.waiting.push_back(Waiting{std::move(record)});
      return was_empty ? s.wake : std::function<void()>{};
    }
    // Half as many counted entries as plain ones, then a quarter for each principal, then one for everybody.
    auto key = key_of(record);
    if (!s.counted.contains(key) && s.waiting.size() >= entries_max_ + entries_max_ / 2) {
      key = record.principal;
      record.verb = record.target = record.tenant = record.purpose = "*";
      record.reason = "refused; too many kinds of refusals at once to list each";
      if (!s.counted.contains(key) && s.waiting.size() >= entries_max_ + entries_max_ / 2 + entries_max_ / 4) {
        key.clear();
        record.principal = "*";
      }
    }
    const auto [at, fresh] = s.counted.emplace(std::move(key), s.waiting.size());
    if (fresh) {
      s.waiting.push_back(Waiting{std::move(record)});
    } else {
      ++s.waiting[at->second].times;
    }
    return std::function<void()>{};
  });
  if (wake) wake();
}

std::vector<AuditRecord> RefusalQueue::take_all() {
  auto waiting = state_.with([](State& s) {
    s.counted.clear();
    return std::exchange(s.waiting, {});
  });
  std::vector<AuditRecord> out;
  out.reserve(waiting.size());
  for (auto& entry : waiting) {
    if (entry.times > 1) entry.record.reason += format(" ({} times since then)", entry.times);
    out.push_back(std::move(entry.record));
  }
  return out;
}

void RefusalQueue::on_push(std::function<void()> wake) {
  state_.with([&](State& s) { s.wake = std::move(wake); });
}

std::uint64_t RefusalQueue::pushed() const {
  return state_.with([](const State& s) { return s.pushed; });
}

}  // namespace falaj::governance
