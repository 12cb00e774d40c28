#include "actors/artifacts/store.hpp"

#include "actors/governance/audit.hpp"
#include "actors/governance/policy.hpp"
#include "messages/artifacts.capnp.h"
#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"

namespace falaj::artifacts {

namespace {

Message info_message(const storage::Manifest& manifest) {
  return Message::build<messages::ArtifactInfo>(
      [&](messages::ArtifactInfo::Builder out) {
        out.setDigest(manifest.id.hex());
        out.setContent(manifest.digest.hex());
        out.setBytes(manifest.size);
        out.setMediaType(manifest.meta.media_type);
        out.getOwner().setTenant(manifest.meta.tenant);
        out.getOwner().setResidency(manifest.meta.residency);
        out.setPurpose(manifest.meta.purpose);
        out.setCreatedNs(manifest.created.unix_ns);
        auto chunks = out.initChunks(static_cast<unsigned>(manifest.chunks.size()));
        for (unsigned i = 0; i < chunks.size(); ++i) {
          chunks[i].setDigest(manifest.chunks[i].digest.hex());
          chunks[i].setBytes(static_cast<std::uint32_t>(manifest.chunks[i].size));
        }
      },
      96 + manifest.chunks.size() * 12);
}

Result<storage::Manifest> manifest_of(messages::ArtifactInfo::Reader info, WallTime now) {
  storage::Manifest out;
  FALAJ_ASSIGN(out.digest, storage::Digest::from_hex(text(info.getContent())));
  out.size = info.getBytes();
  out.meta = {std::string(text(info.getMediaType())), std::string(text(info.getOwner().getTenant())), std::string(text(info.getPurpose())),
              std::string(text(info.getOwner().getResidency()))};
  out.created = now;
  for (const auto chunk : info.getChunks()) {
    FALAJ_ASSIGN(const auto digest, storage::Digest::from_hex(text(chunk.getDigest())));
    out.chunks.push_back({digest, chunk.getBytes()});
  }
  out.id = storage::ArtifactStore::id_of(out.digest, out.meta);
  return out;
}

// On the blocking pool.
Result<storage::Manifest> adopt(storage::ArtifactStore& store, const Message& request, WallTime now) {
  FALAJ_ASSIGN(const auto put, request.open<messages::PutManifest>());
  FALAJ_ASSIGN(const auto manifest, manifest_of(put->getInfo(), now));
  FALAJ_TRY(store.adopt(manifest));
  return store.stat(manifest.id);
}

Status write_chunk(storage::ArtifactStore& store, const Message& request) {
  FALAJ_ASSIGN(const auto put, request.open<messages::PutChunk>());
  FALAJ_ASSIGN(const auto digest, storage::Digest::from_hex(text(put->getDigest())));
  if (put->getContent().size() > limits::kChunkBytes) {
    return invalid(format("a chunk of {} bytes; at most {}", put->getContent().size(), limits::kChunkBytes));
  }
  return store.write_chunk(digest, bytes(put->getContent()));
}

Result<Message> read_chunk(storage::ArtifactStore& store, const storage::Digest& digest) {
  FALAJ_ASSIGN(const auto content, store.read_chunk(digest));
  return Message::build<messages::Chunk>([&](messages::Chunk::Builder out) { out.setContent(falaj::data(content)); },
                                         content.size() / 8 + 8);
}

class Store final : public ActorOf<Store> {
 public:
  static constexpr std::string_view kType = "artifacts/store";
  static void handlers(Handlers<Store>& on) {
    on.message<messages::PutChunk>(&Store::put_chunk);
    on.message<messages::PutManifest>(&Store::put_manifest);
    on.message<messages::GetManifest>(&Store::get_manifest);
    on.message<messages::GetChunk>(&Store::get_chunk);
  }
  explicit Store(StoreOptions options) : options_(std::move(options)) {}

 private:
  Task<> put_chunk(Context& ctx, Msg<messages::PutChunk> m) {
    auto work = [store = options_.store, request = m.message()] { return write_chunk(*store, request); };
    auto done = co_await ctx.blocking(std::move(work));
    if (!done.has_value()) co_return m.refuse(std::move(done).error());
    m.reply(Message::build<messages::Empty>());
  }

  Task<> put_manifest(Context& ctx, Msg<messages::PutManifest> m) {
    auto work = [store = options_.store, request = m.message(), now = ctx.wall()] { return adopt(*store, request, now); };
    auto manifest = co_await ctx.blocking(std::move(work));
    if (!manifest.has_value()) co_return m.refuse(std::move(manifest).error());
    m.reply(info_message(*manifest));
  }

  Task<> get_manifest(Context& ctx, Msg<messages::GetManifest> m) {
    auto digest = storage::Digest::from_hex(text(m->getDigest()));
    if (!digest.has_value()) co_return m.refuse(within("artifact digest", std::move(digest).error()));
    auto work = [store = options_.store, id = *digest] { return store->stat(id); };
    auto manifest = co_await ctx.blocking(std::move(work));
    if (!manifest.has_value()) co_return m.refuse(std::move(manifest).error());
    // Made for a purpose: it holds what its view allows to be read for that only. Audited like such a read.
    const auto& purpose = manifest->meta.purpose;
    auto may = governance::tenant_allowed(manifest->meta.tenant, m.scope());
    if (may.has_value() && !purpose.empty() && m.scope() && m.scope()->purpose != purpose) {
      may = error(ErrorCode::denied, format("artifact {} may be read for the purpose '{}' only; name it", digest->hex(), purpose));
    }
    if (!may.has_value() || !purpose.empty()) {
      auto record = governance::record_of(m.scope(), m.trace(), ctx.node_name(), "artifacts.read", digest->hex());
      record.allowed = may.has_value();
      if (!may.has_value()) record.reason = may.error().message;
      auto kept = co_await governance::audit_ask(ctx, std::move(record));
      if (!kept.has_value() && may.has_value()) co_return m.refuse(within("not audited, so not done", std::move(kept).error()));
    }
    if (!may.has_value()) co_return m.refuse(std::move(may).error());
    m.reply(info_message(*manifest));
  }

  Task<> get_chunk(Context& ctx, Msg<messages::GetChunk> m) {
    auto digest = storage::Digest::from_hex(text(m->getDigest()));
    if (!digest.has_value()) co_return m.refuse(within("chunk digest", std::move(digest).error()));
    auto work = [store = options_.store, id = *digest] { return read_chunk(*store, id); };
    auto chunk = co_await ctx.blocking(std::move(work));
    if (!chunk.has_value()) co_return m.refuse(std::move(chunk).error());
    m.reply(std::move(*chunk));
  }

  StoreOptions options_;
};

}  // namespace

ChildSpec store(StoreOptions options) {
  ChildSpec spec;
  spec.id = spec.name = std::string(kStore);
  spec.make = [options = std::move(options)] { return std::make_unique<Store>(options); };
  return spec;
}

}  // namespace falaj::artifacts
