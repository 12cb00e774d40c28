// Small pieces of the messages between a job and its workers.
#pragma once
#include <optional>
#include <string>

#include "actors/training/learner.hpp"
#include "kernels/collective/collective.hpp"
#include "messages/message.hpp"
#include "messages/training.capnp.h"
#include "runtime/host/delivery.hpp"

namespace falaj::training {

// Failures that doing it again later may cure.
[[nodiscard]] bool passes(const Error& why) noexcept;

ActorAddress read_address(messages::Address::Reader address);
void write_address(messages::Address::Builder out, const ActorAddress& address);

Message fit_done_message(std::uint64_t epoch, std::uint32_t fold, const Progress& progress, const Outcome& outcome,
                         const std::string& model);

Message chunk_message(std::uint32_t rank, const kernels::ChunkHeader& header, std::span<const float> floats);
// Nothing: it is not what it claims to be.
std::optional<kernels::ChunkHeader> read_chunk(messages::GradientChunk::Reader chunk);
std::span<const float> floats_of(messages::GradientChunk::Reader chunk);

}  // namespace falaj::training
