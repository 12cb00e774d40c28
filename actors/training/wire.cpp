#include "actors/training/wire.hpp"

namespace falaj::training {

using messages::FitDone;
using messages::GradientChunk;

bool passes(const Error& why) noexcept {
  return why.code == ErrorCode::unreachable || why.code == ErrorCode::overloaded || why.code == ErrorCode::deadline ||
         why.code == ErrorCode::gone;
}

ActorAddress read_address(messages::Address::Reader address) {
  return {NodeId(address.getNode()), Incarnation(address.getIncarnation()), ActorId(address.getActor()),
          std::string(text(address.getName()))};
}

void write_address(messages::Address::Builder out, const ActorAddress& address) {
  out.setNode(address.node.value());
  out.setIncarnation(address.incarnation.value());
  out.setActor(address.actor.value());
  out.setName(address.name);
}

Message fit_done_message(std::uint64_t epoch, std::uint32_t fold, const Progress& progress, const Outcome& outcome,
                         const std::string& model) {
  return Message::build<FitDone>(
      [&](FitDone::Builder b) {
        b.setEpoch(epoch);
        b.setFold(fold);
        b.setSteps(progress.step);
        b.setSamples(progress.samples);
        b.setWeightsDigest(outcome.weights_digest);
        b.setArtifact(model);
        auto metrics = b.initMetrics(static_cast<unsigned>(outcome.metrics.size()));
        unsigned i = 0;
        for (const auto& [name, value] : outcome.metrics) {
          metrics[i].setName(name);
          metrics[i++].setValue(value);
        }
        auto confusion = b.initConfusion(static_cast<unsigned>(outcome.confusion.size()));
        for (i = 0; i < confusion.size(); ++i) confusion.set(i, outcome.confusion[i]);
      },
      256);
}

Message chunk_message(std::uint32_t rank, const kernels::ChunkHeader& header, std::span<const float> floats) {
  return Message::build<GradientChunk>(
      [&](GradientChunk::Builder b) {
        b.setEpoch(header.epoch.value());
        b.setSequence(header.sequence);
        b.setFrom(rank);
        b.setKind(static_cast<std::uint8_t>(header.kind));
        b.setChunk(header.chunk);
        b.setHop(header.hop);
        b.setCount(header.count);
        b.setContent(data({reinterpret_cast<const std::uint8_t*>(floats.data()), floats.size_bytes()}));
      },
      floats.size() / 2 + 24);
}

std::optional<kernels::ChunkHeader> read_chunk(messages::GradientChunk::Reader chunk) {
  const bool fits = chunk.getContent().size() == std::size_t{chunk.getCount()} * sizeof(float);
  if (!fits || chunk.getKind() > static_cast<std::uint8_t>(kernels::CollectiveKind::barrier)) return std::nullopt;
  return kernels::ChunkHeader{Epoch(chunk.getEpoch()), chunk.getSequence(), static_cast<kernels::CollectiveKind>(chunk.getKind()),
                              chunk.getChunk(),        chunk.getHop(),      chunk.getCount()};
}

// Cap'n Proto keeps byte lists on word boundaries.
std::span<const float> floats_of(messages::GradientChunk::Reader chunk) {
  return {reinterpret_cast<const float*>(chunk.getContent().begin()), chunk.getContent().size() / sizeof(float)};
}

}  // namespace falaj::training
