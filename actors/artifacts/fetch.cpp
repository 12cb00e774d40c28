#include "actors/artifacts/fetch.hpp"

#include <algorithm>

#include "actors/artifacts/store.hpp"
#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "storage/artifact_store.hpp"

namespace falaj::artifacts {

namespace {

bool worth_retrying(const Error& error, bool found) {
  switch (error.code) {
    case ErrorCode::unreachable:
    case ErrorCode::gone:
    case ErrorCode::deadline:
    case ErrorCode::overloaded:
      return true;
    case ErrorCode::not_found:
      return !found;  // the actor, not the artifact: control is away
    default:
      return false;
  }
}

// One question to the store, again until `give_up`.
template <class Reply>
Task<Result<View<Reply>>> ask_store(Context& ctx, Message question, TransferOptions options, Instant give_up) {
  Duration delay = options.retry_min;
  for (;;) {
    SendOptions send;
    send.lane = Lane::bulk;
    send.scope = options.scope;
    send.trace = options.trace;
    send.timeout = std::max<Duration>(std::min<Duration>(options.chunk_timeout, give_up - ctx.now()), std::chrono::milliseconds(1));
    const auto to = ctx.find(kStore);
    auto answer = co_await ctx.ask<Reply>(to, question, send);
    if (answer.has_value() || !worth_retrying(answer.error(), static_cast<bool>(to))) co_return answer;
    if (ctx.now() + delay >= give_up) co_return within(kStore, std::move(answer).error());
    co_await ctx.sleep(delay);
    delay = std::min(delay * 2, options.retry_max);
  }
}

Error not_as_named(std::string_view what, std::string_view digest) {
  return error(ErrorCode::corrupt, format("{} {}: its content is not what the digest says", what, digest));
}

Task<Result<View<messages::ArtifactInfo>>> manifest_until(Context& ctx, std::string digest, TransferOptions options, Instant give_up) {
  auto question = Message::build<messages::GetManifest>([&](messages::GetManifest::Builder out) { out.setDigest(digest); }, 16);
  auto info = co_await ask_store<messages::ArtifactInfo>(ctx, std::move(question), options, give_up);
  if (!info.has_value()) co_return info;
  const auto& got = **info;
  const auto content = storage::Digest::from_hex(text(got.getContent()));
  const storage::ArtifactMeta meta{std::string(text(got.getMediaType())), std::string(text(got.getOwner().getTenant())),
                                   std::string(text(got.getPurpose())), std::string(text(got.getOwner().getResidency()))};
  if (!content.has_value() || storage::ArtifactStore::id_of(*content, meta).hex() != digest) co_return not_as_named("artifact", digest);
  co_return info;
}

}  // namespace

Task<Result<View<messages::ArtifactInfo>>> fetch_manifest(Context& ctx, std::string digest, TransferOptions options) {
  const auto give_up = ctx.now() + options.timeout;
  auto info = co_await manifest_until(ctx, std::move(digest), std::move(options), give_up);
  co_return info;
}

Task<Status> fetch_chunks(Context& ctx, std::string digest, std::function<Status(ByteView)> visit, TransferOptions options) {
  const auto give_up = ctx.now() + options.timeout;
  auto info = co_await manifest_until(ctx, digest, options, give_up);
  if (!info.has_value()) co_return std::move(info).error();
  if (options.bytes_max != 0 && (*info)->getBytes() > options.bytes_max) {
    co_return invalid(format("artifact {} has {} bytes; at most {} were wanted", digest, (*info)->getBytes(), options.bytes_max));
  }
  storage::Sha256 whole;
  for (const auto chunk : (*info)->getChunks()) {
    auto question = Message::build<messages::GetChunk>([&](messages::GetChunk::Builder out) { out.setDigest(chunk.getDigest()); }, 16);
    auto got = co_await ask_store<messages::Chunk>(ctx, std::move(question), options, give_up);
    if (!got.has_value()) co_return std::move(got).error();
    const auto content = bytes((*got)->getContent());
    if (storage::sha256(content).hex() != text(chunk.getDigest())) co_return not_as_named("chunk", text(chunk.getDigest()));
    whole.update(content);
    FALAJ_CO_TRY(visit(content));
  }
  if (whole.finish().hex() != text((*info)->getContent())) co_return not_as_named("artifact", digest);
  co_return Status{};
}

Task<Result<Bytes>> fetch_artifact(Context& ctx, std::string digest, TransferOptions options) {
  Bytes content;
  std::function<Status(ByteView)> visit = [&content](ByteView chunk) -> Status {
    content.insert(content.end(), chunk.begin(), chunk.end());
    return {};
  };
  const auto done = co_await fetch_chunks(ctx, std::move(digest), std::move(visit), std::move(options));
  if (!done.has_value()) co_return done.error();
  co_return content;
}

Task<Result<std::string>> put_artifact(Context& ctx, Bytes content, ArtifactLabel label, TransferOptions options) {
  Upload upload(ctx, std::move(label), std::move(options));
  const auto written = co_await upload.write(std::move(content));
  if (!written.has_value()) co_return written.error();
  auto digest = co_await upload.finish();
  co_return digest;
}

Upload::Upload(Context& ctx, ArtifactLabel label, TransferOptions options)
    : ctx_(ctx), label_(std::move(label)), options_(std::move(options)), give_up_(ctx.now() + options_.timeout) {}

Task<Status> Upload::write(Bytes piece) {
  bytes_ += piece.size();
  std::size_t at = 0;
  while (pending_.size() + piece.size() - at >= limits::kChunkBytes) {
    const std::size_t n = limits::kChunkBytes - pending_.size();
    const auto from = piece.begin() + static_cast<std::ptrdiff_t>(at);
    pending_.insert(pending_.end(), from, from + static_cast<std::ptrdiff_t>(n));
    at += n;
    const auto sent = co_await send(std::exchange(pending_, {}));
    if (!sent.has_value()) co_return sent;
  }
  pending_.insert(pending_.end(), piece.begin() + static_cast<std::ptrdiff_t>(at), piece.end());
  co_return Status{};
}

Task<Status> Upload::send(Bytes chunk) {
  // Hashing a megabyte takes a millisecond: not on the actor's turn.
  struct Hashed {
    storage::Sha256 content;
    storage::Digest digest;
    Message question;
  };
  const auto size = static_cast<std::uint32_t>(chunk.size());
  auto work = [content = std::move(content_), chunk = std::move(chunk)]() mutable -> Result<Hashed> {
    content.update(chunk);
    const auto digest = storage::sha256(chunk);
    auto question = Message::build<messages::PutChunk>(
        [&](messages::PutChunk::Builder out) {
          out.setDigest(digest.hex());
          out.setContent(falaj::data(chunk));
        },
        chunk.size() / 8 + 24);
    return Hashed{std::move(content), digest, std::move(question)};
  };
  auto hashed = co_await ctx_.blocking(std::move(work));
  if (!hashed.has_value()) co_return std::move(hashed).error();
  content_ = std::move(hashed->content);
  chunks_.push_back({hashed->digest, size});
  auto kept = co_await ask_store<messages::Empty>(ctx_, std::move(hashed->question), options_, give_up_);
  if (!kept.has_value()) co_return std::move(kept).error();
  co_return Status{};
}

Task<Result<std::string>> Upload::finish() {
  if (!pending_.empty()) {
    const auto sent = co_await send(std::exchange(pending_, {}));
    if (!sent.has_value()) co_return sent.error();
  }
  const auto content = content_.finish();
  auto question = Message::build<messages::PutManifest>(
      [&](messages::PutManifest::Builder out) {
        auto info = out.initInfo();
        info.setContent(content.hex());
        info.setBytes(bytes_);
        info.setMediaType(label_.media_type);
        info.getOwner().setTenant(label_.tenant);
        info.getOwner().setResidency(label_.residency);
        info.setPurpose(label_.purpose);
        auto list = info.initChunks(static_cast<unsigned>(chunks_.size()));
        for (unsigned i = 0; i < list.size(); ++i) {
          list[i].setDigest(chunks_[i].digest.hex());
          list[i].setBytes(chunks_[i].size);
        }
      },
      96 + chunks_.size() * 12);
  auto info = co_await ask_store<messages::ArtifactInfo>(ctx_, std::move(question), options_, give_up_);
  if (!info.has_value()) co_return std::move(info).error();
  co_return std::string(text((*info)->getDigest()));
}

}  // namespace falaj::artifacts
