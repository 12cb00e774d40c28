// A ring inside one process, stepped by hand: every chunk waits in a queue until somebody delivers it, in an order that the
// caller chooses. Used by tests, and by a node that runs several ranks on one actor thread.
#pragma once
#include <deque>
#include <memory>
#include <vector>

#include "kernels/collective/collective.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {

class InProcessRing {
 public:
  // queue_max: chunks a link holds before it refuses; 0 means no bound.
  InProcessRing(std::uint32_t world, CommunicatorOptions options = {}, std::size_t queue_max = 0);

  [[nodiscard]] Communicator& rank(std::uint32_t rank) { return *ranks_[rank]->communicator; }
  [[nodiscard]] std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(ranks_.size()); }

  // All ranks form one ring with this epoch, in their order; dead ones are left out.
  Status reform(Epoch epoch);
  // Delivers one chunk over a link chosen by `random`; false when all queues are empty.
  bool step(Random& random);
  void run(Random& random) {
    while (step(random)) {
    }
  }
  void kill(std::uint32_t rank);  // nothing leaves or reaches it any more
  [[nodiscard]] std::uint64_t chunks_sent() const noexcept { return sent_; }

 private:
  struct Parcel {
    std::uint32_t to;  // index, not rank: ranks change with each reform
    Rank from;
    ChunkHeader header;
    std::vector<float> floats;
  };
  struct Member final : PeerLinks {
    bool send(Rank to, const ChunkHeader& header, std::span<const float> floats) override;
    InProcessRing* ring = nullptr;
    std::uint32_t index = 0;
    bool dead = false;
    bool refused = false;
    std::deque<Parcel> queue;
    std::unique_ptr<Communicator> communicator;
  };
  std::vector<std::unique_ptr<Member>> ranks_;
  std::vector<std::uint32_t> alive_;  // rank -> index
  std::size_t queue_max_;
  std::uint64_t sent_ = 0;
};

}  // namespace falaj::kernels
