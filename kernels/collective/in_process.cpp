#include "kernels/collective/in_process.hpp"

namespace falaj::kernels {

InProcessRing::InProcessRing(std::uint32_t world, CommunicatorOptions options, std::size_t queue_max) : queue_max_(queue_max) {
  for (std::uint32_t index = 0; index < world; ++index) {
    auto& member = ranks_.emplace_back(std::make_unique<Member>());
    member->ring = this;
    member->index = index;
    member->communicator = std::make_unique<Communicator>(*member, options);
  }
}

Status InProcessRing::reform(Epoch epoch) {
  alive_.clear();
  for (const auto& member : ranks_) {
    if (!member->dead) alive_.push_back(member->index);
  }
  for (std::uint32_t rank = 0; rank < alive_.size(); ++rank) {
    FALAJ_TRY(ranks_[alive_[rank]]->communicator->reform(epoch, Rank(rank), static_cast<std::uint32_t>(alive_.size())));
  }
  return {};
}

bool InProcessRing::Member::send(Rank to, const ChunkHeader& header, std::span<const float> floats) {
  if (ring->queue_max_ != 0 && queue.size() >= ring->queue_max_) {
    refused = true;
    return false;
  }
  ++ring->sent_;
  if (!dead) queue.push_back({ring->alive_[to.value()], communicator->self(), header, {floats.begin(), floats.end()}});
  return true;
}

bool InProcessRing::step(Random& random) {
  std::vector<Member*> ready;
  for (const auto& member : ranks_) {
    if (!member->queue.empty()) ready.push_back(member.get());
  }
  if (ready.empty()) return false;
  Member& sender = *ready[random.below(ready.size())];
  const Parcel parcel = std::move(sender.queue.front());
  sender.queue.pop_front();
  if (Member& receiver = *ranks_[parcel.to]; !receiver.dead) receiver.communicator->on_chunk(parcel.from, parcel.header, parcel.floats);
  if (sender.refused) {
    sender.refused = false;
    sender.communicator->resume();
  }
  return true;
}

void InProcessRing::kill(std::uint32_t rank) {
  ranks_[rank]->dead = true;
  ranks_[rank]->queue.clear();
}

}  // namespace falaj::kernels
