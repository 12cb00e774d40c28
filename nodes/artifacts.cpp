#include "nodes/artifacts.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>

#include "actors/artifacts/store.hpp"
#include "actors/serving/model.hpp"
#include "messages/artifacts.capnp.h"
#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "storage/digest.hpp"

namespace falaj::nodes {

namespace {
constexpr auto kTimeout = std::chrono::seconds(30);
constexpr std::uint64_t kFileBytesMax = 2ULL << 30;
}  // namespace

Result<Bytes> fetch_artifact(Client& client, const std::string& digest) {
  FALAJ_ASSIGN(const auto info,
               client.ask<messages::ArtifactInfo>(
                   artifacts::kStore, Message::build<messages::GetManifest>([&](messages::GetManifest::Builder b) { b.setDigest(digest); }),
                   kTimeout));
  Bytes content;
  for (const auto part : info->getChunks()) {
    const std::string name(text(part.getDigest()));
    FALAJ_ASSIGN(
        const auto chunk,
        client.ask<messages::Chunk>(
            artifacts::kStore, Message::build<messages::GetChunk>([&](messages::GetChunk::Builder b) { b.setDigest(name); }), kTimeout));
    const auto piece = bytes(chunk->getContent());
    if (storage::sha256(piece).hex() != name)
      return error(ErrorCode::corrupt, format("chunk {} of artifact {} is not what its name says", name, digest));
    content.insert(content.end(), piece.begin(), piece.end());
  }
  return content;
}

Result<std::string> put_artifact(Client& client, ByteView content, std::string_view media_type, const std::string& tenant) {
  struct Part {
    std::string digest;
    std::size_t size;
  };
  std::vector<Part> parts;
  for (std::size_t at = 0; at < content.size(); at += limits::kChunkBytes) {
    const auto piece = content.subspan(at, std::min(limits::kChunkBytes, content.size() - at));
    parts.push_back({storage::sha256(piece).hex(), piece.size()});
    FALAJ_ASSIGN(const auto done, client.ask<messages::Empty>(artifacts::kStore,
                                                              Message::build<messages::PutChunk>(
                                                                  [&](messages::PutChunk::Builder b) {
                                                                    b.setDigest(parts.back().digest);
                                                                    b.setContent(data(piece));
                                                                  },
                                                                  piece.size() / 8 + 32),
                                                              kTimeout));
    static_cast<void>(done);
  }
  const auto digest = storage::sha256(content).hex();
  FALAJ_ASSIGN(const auto stored, client.ask<messages::ArtifactInfo>(
                                      artifacts::kStore, Message::build<messages::PutManifest>([&](messages::PutManifest::Builder b) {
                                        auto info = b.initInfo();
                                        info.setContent(digest);
                                        info.setBytes(content.size());
                                        info.setMediaType(std::string(media_type));
                                        info.initOwner().setTenant(tenant);
                                        auto chunks = info.initChunks(static_cast<unsigned>(parts.size()));
                                        for (unsigned i = 0; i < parts.size(); ++i) {
                                          chunks[i].setDigest(parts[i].digest);
                                          chunks[i].setBytes(static_cast<std::uint32_t>(parts[i].size));
                                        }
                                      }),
                                      kTimeout));
  return std::string(text(stored->getDigest()));
}

Result<Bytes> read_binary_file(const std::string& path) {
  std::error_code none;
  if (fs::is_directory(path, none)) return invalid(format("{}: a directory; give a file", path));
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return error(ErrorCode::not_found, format("{}: cannot be read: {}", path, std::strerror(errno)));
  const auto size = static_cast<std::uint64_t>(file.tellg());
  if (size > kFileBytesMax) return invalid(format("{}: {} bytes; at most {} are read", path, size, kFileBytesMax));
  Bytes content(size);
  file.seekg(0);
  file.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(size));
  if (!file) return failed(format("{}: cannot be read whole", path));
  return content;
}

Status write_file(const std::string& path, ByteView content) {
  const auto temporary = path + ".part";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
  file.close();
  std::error_code code;
  if (file) fs::rename(temporary, path, code);
  if (file && !code) return {};
  fs::remove(temporary, code);
  return failed(format("{}: cannot be written: {}", path, std::strerror(errno)));
}

// As a replica would load it: what cannot be served is refused here, where somebody reads why.
Status check_onnx(ByteView content, std::string_view name) {
  const auto named = [name](Error why) { return why.message.starts_with(name) ? why : within(name, std::move(why)); };
  auto model = serving::Model::load(content, name);
  if (!model) return named(std::move(model).error());
  if (auto ready = serving::Session(std::move(model).value()).warm_up(1); !ready) return named(std::move(ready).error());
  return {};
}

}  // namespace falaj::nodes
