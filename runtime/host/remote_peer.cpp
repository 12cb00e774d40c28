#include "runtime/host/remote_peer.hpp"

namespace falaj {

std::uint64_t Remote::Peer::add_ask(Ask ask, Instant now) {
  if (open_asks() >= sweep_at) {
    sweep(now);
    sweep_at = std::max(kSweepAsks, open_asks() * 2);
  }
  if (free_asks.empty()) {
    free_asks.push_back(static_cast<std::uint32_t>(asks.size()));
    asks.emplace_back();
  }
  const auto index = free_asks.back();
  free_asks.pop_back();
  ask.generation = asks[index].generation;
  asks[index] = std::move(ask);
  return std::uint64_t{asks[index].generation} << 32 | index;
}

// An asker whose deadline has passed has answered itself.
void Remote::Peer::sweep(Instant now) {
  for (std::size_t i = 0; i < asks.size(); ++i) {
    if (asks[i].asker && asks[i].deadline < now) free_ask(i);
  }
}

void Remote::Peer::free_ask(std::size_t index) {
  auto& ask = asks[index];
  if (++ask.generation == 0) ask.generation = 1;
  free_asks.push_back(static_cast<std::uint32_t>(index));
  ask.asker = {};
}

std::optional<Remote::Peer::Ask> Remote::Peer::take_ask(std::uint64_t wire, ActorId actor) {
  const auto index = static_cast<std::uint32_t>(wire);
  if (index >= asks.size()) return std::nullopt;
  auto& ask = asks[index];
  if (!ask.asker || ask.generation != wire >> 32 || ask.actor != actor) return std::nullopt;
  std::optional<Ask> taken(std::move(ask));
  free_ask(index);
  return taken;
}

}  // namespace falaj
