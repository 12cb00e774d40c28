// Reading and writing artifacts from any actor: coroutines over the actor artifacts/store, chunk by chunk on the bulk lane.
// Digests are checked here too, and unreachable, gone, overloaded and not-yet-found stores are asked again until the deadline:
// chunks are named by their content, so that doing it twice is doing it once.
#pragma once
#include <functional>
#include <string>

#include "messages/artifacts.capnp.h"
#include "runtime/base/bytes.hpp"
#include "runtime/host/actor.hpp"
#include "storage/digest.hpp"

namespace falaj::artifacts {

struct TransferOptions {
  Duration timeout = std::chrono::seconds(60);       // for the whole transfer
  Duration chunk_timeout = std::chrono::seconds(5);  // for one ask
  Duration retry_min = std::chrono::milliseconds(10);
  Duration retry_max = std::chrono::milliseconds(500);
  std::uint64_t bytes_max = 1ULL << 30;  // fetch_artifact refuses more; 0: no bound (use fetch_chunks)
  ScopeRef scope;                        // with the purpose, for an artifact that was made for one
  TraceContext trace;
};

struct ArtifactLabel {
  std::string media_type;
  std::string tenant = "default";
  std::string residency;
  std::string purpose;  // who reads it must name this; empty: nobody need
};

// The whole content. `corrupt` when it is not what the digest says.
Task<Result<Bytes>> fetch_artifact(Context& ctx, std::string digest, TransferOptions options = {});
// Chunk by chunk, in order, with one chunk held. An error of `visit` ends it.
Task<Status> fetch_chunks(Context& ctx, std::string digest, std::function<Status(ByteView)> visit, TransferOptions options = {});
Task<Result<View<messages::ArtifactInfo>>> fetch_manifest(Context& ctx, std::string digest, TransferOptions options = {});

// The artifact's digest: its name.
Task<Result<std::string>> put_artifact(Context& ctx, Bytes content, ArtifactLabel label, TransferOptions options = {});

// For contents that are made piece by piece. Member of a coroutine; the Context outlives it.
class Upload {
 public:
  Upload(Context& ctx, ArtifactLabel label, TransferOptions options = {});
  Task<Status> write(Bytes piece);  // sends what makes whole chunks
  Task<Result<std::string>> finish();
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  struct Piece {
    storage::Digest digest;
    std::uint32_t size = 0;
  };
  Task<Status> send(Bytes chunk);

  Context& ctx_;
  ArtifactLabel label_;
  TransferOptions options_;
  Instant give_up_;
  storage::Sha256 content_;
  std::vector<Piece> chunks_;
  Bytes pending_;
  std::uint64_t bytes_ = 0;
};

}  // namespace falaj::artifacts
