// Manifests of artifacts: their names and their bytes.
#include <cstring>

#include "messages/message.hpp"
#include "messages/storage.capnp.h"
#include "runtime/base/format.hpp"
#include "storage/artifact_store.hpp"
#include "storage/files.hpp"

namespace falaj::storage {

Digest ArtifactStore::id_of(const Digest& content, const ArtifactMeta& meta) {
  Sha256 sha;
  sha.update(make_aad({as_bytes("falaj/artifact/1"), content.view(), as_bytes(meta.media_type), as_bytes(meta.tenant),
                       as_bytes(meta.purpose), as_bytes(meta.residency)}));
  return sha.finish();
}

Bytes ArtifactStore::encode(const Manifest& manifest) {
  const auto message = Message::build<messages::ArtifactManifest>(
      [&](messages::ArtifactManifest::Builder out) {
        const auto data = [](const Digest& digest) { return capnp::Data::Reader(digest.bytes.data(), digest.bytes.size()); };
        const auto text = [](const std::string& t) { return capnp::Text::Reader(t.c_str(), t.size()); };
        out.setFormatVersion(kArtifactFormat);
        out.setId(data(manifest.id));
        out.setDigest(data(manifest.digest));
        out.setSize(manifest.size);
        out.setMediaType(text(manifest.meta.media_type));
        out.setTenant(text(manifest.meta.tenant));
        out.setPurpose(text(manifest.meta.purpose));
        out.setResidency(text(manifest.meta.residency));
        out.setCreatedUnixNs(manifest.created.unix_ns);
        auto chunks = out.initChunks(static_cast<unsigned>(manifest.chunks.size()));
        for (unsigned i = 0; i < chunks.size(); ++i) {
          chunks[i].setDigest(data(manifest.chunks[i].digest));
          chunks[i].setSize(manifest.chunks[i].size);
        }
      },
      64 + manifest.chunks.size() * 7);
  const auto bytes = message.bytes();
  return {bytes.begin(), bytes.end()};
}

Result<Manifest> ArtifactStore::decode(ByteView bytes) {
  if (bytes.size() % 8 != 0 || bytes.empty()) return error(ErrorCode::corrupt, "the manifest is cut short");
  const auto digest_of = [](capnp::Data::Reader data) { return Digest::from_bytes({data.begin(), data.size()}); };
  const auto text_of = [](capnp::Text::Reader text) { return std::string(text.begin(), text.end()); };
  try {
    std::vector<capnp::word> words(bytes.size() / 8);  // aligned
    std::memcpy(static_cast<void*>(words.data()), bytes.data(), bytes.size());
    capnp::ReaderOptions limits;
    limits.traversalLimitInWords = words.size() * 4 + 1024;
    limits.nestingLimit = 8;
    capnp::FlatArrayMessageReader reader(kj::arrayPtr(words.data(), words.size()), limits);
    const auto in = reader.getRoot<messages::ArtifactManifest>();
    if (in.getFormatVersion() > kArtifactFormat) return newer_format("the manifest", in.getFormatVersion(), kArtifactFormat);
    if (in.getFormatVersion() == 0) return error(ErrorCode::corrupt, "the manifest has no format version");
    Manifest out;
    FALAJ_ASSIGN(out.id, digest_of(in.getId()));
    FALAJ_ASSIGN(out.digest, digest_of(in.getDigest()));
    out.size = in.getSize();
    out.meta = {text_of(in.getMediaType()), text_of(in.getTenant()), text_of(in.getPurpose()), text_of(in.getResidency())};
    out.created.unix_ns = in.getCreatedUnixNs();
    out.chunks.reserve(in.getChunks().size());
    for (const auto chunk : in.getChunks()) {
      FALAJ_ASSIGN(const auto digest, digest_of(chunk.getDigest()));
      out.chunks.push_back({digest, chunk.getSize()});
    }
    return out;
  } catch (const kj::Exception& e) {
    return error(ErrorCode::corrupt, format("the manifest is damaged: {}", e.getDescription().cStr()));
  }
}

}  // namespace falaj::storage
