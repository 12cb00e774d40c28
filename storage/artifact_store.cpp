#include "storage/artifact_store.hpp"

#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>

#include "runtime/base/format.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kStoreName = "artifacts";
constexpr std::uint64_t kReserve = 1ULL << 20;
constexpr std::size_t kChunkBytesMax = 64U << 20;
constexpr std::size_t kManifestBytesMax = 256U << 20;
constexpr std::array<std::uint8_t, 4> kChunkMagic = {'F', 'J', 'C', 'K'};
constexpr std::array<std::uint8_t, 4> kManifestMagic = {'F', 'J', 'M', 'F'};

fs::path fan_out(const fs::path& dir, const Digest& digest) {
  const auto name = digest.hex();
  return dir / name.substr(0, 2) / name.substr(2);
}

// Chunk and manifest files: magic (4) | u16 format | u32 CRC-32C of all the rest | sealed bytes.
constexpr std::size_t kFileHeader = 4 + 2 + 4;

Bytes file_bytes(ByteView magic, ByteView sealed) {
  Bytes out(magic.begin(), magic.end());
  out.reserve(kFileHeader + sealed.size());
  put_le(out, static_cast<std::uint16_t>(kArtifactFormat));
  put_le(out, crc32c(sealed, crc32c(out)));
  append(out, sealed);
  return out;
}

Result<ByteView> sealed_part(const fs::path& path, ByteView magic, ByteView file) {
  if (file.size() < kFileHeader) return error(ErrorCode::corrupt, format("{}: cut short", path.string()));
  const auto sealed = file.subspan(kFileHeader);
  if (get_le<std::uint32_t>(file.data() + 6) != crc32c(sealed, crc32c(file.first(6)))) {
    return error(ErrorCode::corrupt, format("{}: it fails its checksum; fetch it again from another node or a backup", path.string()));
  }
  if (!std::ranges::equal(file.first(magic.size()), magic))
    return error(ErrorCode::corrupt, format("{}: not the kind of file its folder holds", path.string()));
  const auto version = get_le<std::uint16_t>(file.data() + 4);
  if (version > kArtifactFormat) return newer_format(path.string(), version, kArtifactFormat);
  return sealed;
}

Bytes place_of(ByteView magic, const Digest& name) { return make_aad({magic, name.view()}); }

struct FreeZstd {
  void operator()(ZSTD_CCtx* ctx) const { ZSTD_freeCCtx(ctx); }
};

// u8 how: 0 as it is, 1 zstd | bytes.
Bytes pack(ByteView plain, int level) {
  thread_local const std::unique_ptr<ZSTD_CCtx, FreeZstd> ctx(ZSTD_createCCtx());
  Bytes out(1 + ZSTD_compressBound(plain.size()));
  const auto n = ZSTD_compressCCtx(ctx.get(), out.data() + 1, out.size() - 1, plain.data(), plain.size(), level);
  if (ZSTD_isError(n) != 0 || n >= plain.size()) {
    out.assign(1, 0);
    append(out, plain);
    return out;
  }
  out[0] = 1;
  out.resize(1 + n);
  return out;
}

Result<Bytes> unpack(ByteView packed, std::uint64_t bytes_max) {
  const auto bad = error(ErrorCode::corrupt, "the compressed bytes are damaged");
  if (packed.empty()) return bad;
  const auto body = packed.subspan(1);
  if (packed[0] == 0) return Bytes(body.begin(), body.end());
  if (packed[0] != 1) return newer_format("a chunk's compression", packed[0], 1);
  const auto size = ZSTD_getFrameContentSize(body.data(), body.size());
  if (size == ZSTD_CONTENTSIZE_ERROR || size == ZSTD_CONTENTSIZE_UNKNOWN || size > bytes_max) return bad;
  Bytes out(size);
  if (ZSTD_decompress(out.data(), out.size(), body.data(), body.size()) != size) return bad;
  return out;
}

template <class Visit>
Status each_file(const fs::path& dir, Visit&& visit) {
  FALAJ_ASSIGN(const auto outer, list_dir(dir));
  for (const auto& half : outer) {
    if (!folder_exists(half)) continue;
    FALAJ_ASSIGN(const auto inner, list_dir(half));
    for (const auto& file : inner) {
      const auto name = Digest::from_hex(half.filename().string() + file.filename().string());
      if (name) FALAJ_TRY(visit(*name, file));
    }
  }
  return {};
}

}  // namespace

struct ArtifactStore::State {
  fs::path dir;
  KeyProvider& provider;
  const Clock& clock;
  ArtifactOptions options;
  DirLock lock;
  mutable std::mutex mutex;
  std::shared_ptr<Keyring> ring;           // under mutex; replaced when another process has rotated it
  std::uint64_t sealed = 0;                // messages of this opening
  std::multiset<Digest> pinned;            // under mutex: chunks of writers that have not committed
  std::optional<std::set<Digest>> spared;  // under mutex, during collect(): what was or became pinned
  std::mutex collect_mutex;                // one collect() at a time; taken before mutex

  [[nodiscard]] bool writable() const { return lock.held(); }
  [[nodiscard]] fs::path chunk_path(const Digest& digest) const { return fan_out(dir / "chunks", digest); }
  [[nodiscard]] fs::path manifest_path(const Digest& id) const { return fan_out(dir / "manifests", id); }

  Result<Bytes> seal(ByteView place, ByteView plain) {
    std::shared_ptr<Keyring> keys;
    {
      const std::lock_guard guard(mutex);
      if (++sealed > kReserve) {
        FALAJ_ASSIGN(ring, open_keyring_file(dir / "keys", std::string(kStoreName), provider, kReserve));
        sealed = 1;
      }
      keys = ring;
    }
    return keys->seal(place, plain);
  }

  Result<Bytes> unseal(ByteView place, ByteView bytes) {
    std::shared_ptr<Keyring> keys;
    {
      const std::lock_guard guard(mutex);
      keys = ring;
    }
    auto plain = keys->open(place, bytes);
    if (plain || plain.error().code != ErrorCode::not_found) return plain;
    FALAJ_ASSIGN(keys, open_keyring_file(dir / "keys", std::string(kStoreName), provider, 0));
    {
      const std::lock_guard guard(mutex);
      ring = keys;
    }
    return keys->open(place, bytes);
  }

  Status store_file(const fs::path& path, ByteView magic, const Digest& name, ByteView plain) {
    FALAJ_ASSIGN(const auto sealed_bytes, seal(place_of(magic, name), plain));
    FALAJ_TRY(make_dirs(path.parent_path()));
    return replace_file(path, file_bytes(magic, sealed_bytes), dir / "temp");
  }

  Result<Bytes> load_file(const fs::path& path, ByteView magic, const Digest& name, std::uint64_t bytes_max) {
    FALAJ_ASSIGN(const auto file, read_file(path, bytes_max));
    FALAJ_ASSIGN(const auto bytes, sealed_part(path, magic, file));
    auto plain = unseal(place_of(magic, name), bytes);
    if (!plain) return within(path.string(), plain.error());
    return plain;
  }

  Status store_chunk(const Digest& digest, ByteView plain) {
    if (load_chunk(digest)) return {};  // there and whole; a damaged one is replaced
    return store_file(chunk_path(digest), kChunkMagic, digest, pack(plain, options.zstd_level));
  }

  Result<Bytes> load_chunk(const Digest& digest) {
    const auto path = chunk_path(digest);
    auto packed = load_file(path, kChunkMagic, digest, kChunkBytesMax + (1U << 20));
    if (!packed && packed.error().code == ErrorCode::not_found)
      return error(ErrorCode::not_found, format("chunk {} is not in {}", digest.hex(), dir.string()));
    if (!packed) return packed;
    auto plain = unpack(*packed, kChunkBytesMax);
    if (!plain) return within(path.string(), plain.error());
    if (sha256(*plain) != digest)
      return error(ErrorCode::corrupt, format("{}: the content is not what its name says; fetch the chunk again", path.string()));
    return plain;
  }

  Result<Manifest> load_manifest(const Digest& id) {
    const auto path = manifest_path(id);
    auto plain = load_file(path, kManifestMagic, id, kManifestBytesMax);
    if (!plain && plain.error().code == ErrorCode::not_found)
      return error(ErrorCode::not_found, format("artifact {} is not in {}", id.hex(), dir.string()));
    if (!plain) return std::move(plain).error();
    auto manifest = ArtifactStore::decode(*plain);
    if (!manifest) return within(path.string(), manifest.error());
    if (manifest->id != id) return error(ErrorCode::corrupt, format("{}: the manifest is of another artifact", path.string()));
    return manifest;
  }

  Status store_manifest(const Manifest& manifest) {
    if (load_manifest(manifest.id)) return {};
    return store_file(manifest_path(manifest.id), kManifestMagic, manifest.id, ArtifactStore::encode(manifest));
  }

  void pin(const Digest& digest) {
    const std::lock_guard guard(mutex);
    pinned.insert(digest);
    if (spared) spared->insert(digest);
  }
  void unpin(const std::vector<ChunkRef>& chunks) {
    const std::lock_guard guard(mutex);
    for (const auto& chunk : chunks) {
      if (const auto found = pinned.find(chunk.digest); found != pinned.end()) pinned.erase(found);
    }
  }
};

class ArtifactWriterImpl final : public ArtifactWriter {
 public:
  ArtifactWriterImpl(ArtifactStore::State& state, ArtifactMeta meta) : state_(state) {
    manifest_.meta = std::move(meta);
    buffer_.reserve(state.options.chunk_bytes);
  }
  ~ArtifactWriterImpl() override { state_.unpin(manifest_.chunks); }

  Status write(ByteView bytes) override {
    FALAJ_TRY(alive());
    while (!bytes.empty()) {
      const auto part = bytes.first(std::min(bytes.size(), state_.options.chunk_bytes - buffer_.size()));
      append(buffer_, part);
      bytes = bytes.subspan(part.size());
      if (buffer_.size() == state_.options.chunk_bytes) FALAJ_TRY(flush());
    }
    return {};
  }

  Result<Manifest> commit() override {
    FALAJ_TRY(alive());
    if (!buffer_.empty()) FALAJ_TRY(flush());
    over_ = true;
    manifest_.digest = whole_.finish();
    manifest_.id = ArtifactStore::id_of(manifest_.digest, manifest_.meta);
    manifest_.created = state_.clock.wall();
    FALAJ_TRY(state_.store_manifest(manifest_));
    return state_.load_manifest(manifest_.id);  // the one that was first, where there was one; and read back what was written
  }

 private:
  Status alive() const {
    if (broken_) return *broken_;
    return over_ ? Status(failed("the artifact is already committed")) : Status{};
  }
  Status flush() {
    const auto digest = sha256(buffer_);
    state_.pin(digest);
    manifest_.chunks.push_back({digest, buffer_.size()});
    manifest_.size += buffer_.size();
    whole_.update(buffer_);
    auto status = state_.store_chunk(digest, buffer_);
    buffer_.clear();
    if (!status) broken_ = status.error();
    return status;
  }

  ArtifactStore::State& state_;
  Manifest manifest_;
  Bytes buffer_;
  Sha256 whole_;
  std::optional<Error> broken_;
  bool over_ = false;
};

class ArtifactReaderImpl final : public ArtifactReader {
 public:
  ArtifactReaderImpl(ArtifactStore::State& state, Manifest manifest) : state_(state), manifest_(std::move(manifest)) {}
  const Manifest& manifest() const override { return manifest_; }

  Result<std::size_t> read(std::span<std::uint8_t> out) override {
    std::size_t done = 0;
    while (done < out.size()) {
      if (at_ == chunk_.size()) {
        if (next_ == manifest_.chunks.size()) break;
        FALAJ_TRY(load_next());
      }
      const auto n = std::min(out.size() - done, chunk_.size() - at_);
      std::copy_n(chunk_.begin() + static_cast<std::ptrdiff_t>(at_), n, out.begin() + static_cast<std::ptrdiff_t>(done));
      at_ += n;
      done += n;
    }
    return done;
  }

  Status seek(std::uint64_t offset) override {
    if (offset > manifest_.size)
      return invalid(format("offset {} is behind the end ({}) of artifact {}", offset, manifest_.size, manifest_.id.hex()));
    whole_valid_ = false;
    chunk_.clear();
    at_ = 0;
    for (next_ = 0; next_ < manifest_.chunks.size() && offset >= manifest_.chunks[next_].size; ++next_)
      offset -= manifest_.chunks[next_].size;
    if (offset > 0) {
      FALAJ_TRY(load_next());
      at_ = offset;
    }
    return {};
  }

 private:
  Status load_next() {
    const auto& ref = manifest_.chunks[next_];
    FALAJ_ASSIGN(chunk_, state_.load_chunk(ref.digest));
    at_ = 0;
    if (chunk_.size() != ref.size || chunk_.empty())
      return error(ErrorCode::corrupt, format("chunk {} has {} bytes, the manifest says {}", ref.digest.hex(), chunk_.size(), ref.size));
    ++next_;
    if (!whole_valid_) return {};
    whole_.update(chunk_);
    if (next_ == manifest_.chunks.size() && whole_.finish() != manifest_.digest)
      return error(ErrorCode::corrupt, format("artifact {}: the whole content is not what its digest says", manifest_.id.hex()));
    return {};
  }

  ArtifactStore::State& state_;
  Manifest manifest_;
  Bytes chunk_;
  std::size_t at_ = 0;
  std::size_t next_ = 0;
  Sha256 whole_;
  bool whole_valid_ = true;
};

ArtifactStore::ArtifactStore(std::unique_ptr<State> state) : state_(std::move(state)) {}
ArtifactStore::~ArtifactStore() = default;

Result<std::unique_ptr<ArtifactStore>> ArtifactStore::open(const fs::path& dir, KeyProvider& provider, const Clock& clock,
                                                           ArtifactOptions options) {
  if (options.chunk_bytes == 0 || options.chunk_bytes > kChunkBytesMax)
    return invalid(format("a chunk size of {} bytes; 1 to {} are allowed", options.chunk_bytes, kChunkBytesMax));
  for (const auto* part : {"chunks", "manifests", "temp"}) FALAJ_TRY(make_dirs(dir / part));
  FALAJ_ASSIGN(auto lock, DirLock::take(dir, "LOCK", DirLock::Kind::shared, DirLock::Wait::yes));
  FALAJ_TRY(claim_format(dir, kStoreName, kArtifactFormat));
  if (lock.upgrade()) {  // alone: nobody's temporary files but those of the dead
    FALAJ_ASSIGN(const auto left, list_dir(dir / "temp"));
    for (const auto& file : left) static_cast<void>(remove_file(file));
    lock.downgrade();
  }
  FALAJ_ASSIGN(auto ring, open_keyring_file(dir / "keys", std::string(kStoreName), provider, kReserve));
  return std::unique_ptr<ArtifactStore>(new ArtifactStore(std::unique_ptr<State>(new State{.dir = dir,
                                                                                           .provider = provider,
                                                                                           .clock = clock,
                                                                                           .options = options,
                                                                                           .lock = std::move(lock),
                                                                                           .mutex = {},
                                                                                           .ring = std::move(ring),
                                                                                           .pinned = {},
                                                                                           .spared = {},
                                                                                           .collect_mutex = {}})));
}

Result<std::unique_ptr<ArtifactStore>> ArtifactStore::inspect(const fs::path& dir, KeyProvider& provider, const Clock& clock) {
  FALAJ_ASSIGN(const auto form, read_format(dir));
  if (form.kind != kStoreName) return invalid(format("{} holds a store of kind \"{}\", not \"{}\"", dir.string(), form.kind, kStoreName));
  if (form.version > kArtifactFormat) return newer_format(dir.string(), form.version, kArtifactFormat);
  FALAJ_ASSIGN(auto ring, open_keyring_file(dir / "keys", std::string(kStoreName), provider, 0));
  return std::unique_ptr<ArtifactStore>(new ArtifactStore(std::unique_ptr<State>(new State{.dir = dir,
                                                                                           .provider = provider,
                                                                                           .clock = clock,
                                                                                           .options = {},
                                                                                           .lock = {},
                                                                                           .mutex = {},
                                                                                           .ring = std::move(ring),
                                                                                           .pinned = {},
                                                                                           .spared = {},
                                                                                           .collect_mutex = {}})));
}

Result<std::unique_ptr<ArtifactWriter>> ArtifactStore::create(ArtifactMeta meta) {
  if (!state_->writable()) return failed(format("{} was opened for reading only", state_->dir.string()));
  return std::unique_ptr<ArtifactWriter>(std::make_unique<ArtifactWriterImpl>(*state_, std::move(meta)));
}

Result<std::unique_ptr<ArtifactReader>> ArtifactStore::open_artifact(const Digest& id) {
  FALAJ_ASSIGN(auto manifest, state_->load_manifest(id));
  return std::unique_ptr<ArtifactReader>(std::make_unique<ArtifactReaderImpl>(*state_, std::move(manifest)));
}

Result<Manifest> ArtifactStore::put(ByteView content, ArtifactMeta meta) {
  FALAJ_ASSIGN(const auto writer, create(std::move(meta)));
  FALAJ_TRY(writer->write(content));
  return writer->commit();
}

Result<Bytes> ArtifactStore::read_all(const Digest& id, std::uint64_t bytes_max) {
  FALAJ_ASSIGN(const auto reader, open_artifact(id));
  if (reader->manifest().size > bytes_max)
    return invalid(format("artifact {} has {} bytes; at most {} were asked for", id.hex(), reader->manifest().size, bytes_max));
  Bytes out(reader->manifest().size);
  FALAJ_ASSIGN(const auto n, reader->read(out));
  if (n != out.size())
    return error(ErrorCode::corrupt, format("artifact {}: its chunks have {} bytes, the manifest says {}", id.hex(), n, out.size()));
  return out;
}

Result<Manifest> ArtifactStore::stat(const Digest& id) { return state_->load_manifest(id); }

Result<std::vector<Manifest>> ArtifactStore::list() {
  std::vector<Manifest> out;
  FALAJ_TRY(each_file(state_->dir / "manifests", [&](const Digest& id, const fs::path&) -> Status {
    auto manifest = state_->load_manifest(id);
    if (!manifest && manifest.error().code == ErrorCode::not_found) return {};  // removed meanwhile
    if (!manifest) return std::move(manifest).error();
    out.push_back(std::move(*manifest));
    return {};
  }));
  std::ranges::sort(out, {}, [](const Manifest& m) { return std::pair(m.created, m.id); });
  return out;
}

Status ArtifactStore::verify(const Digest& id) {
  FALAJ_ASSIGN(const auto reader, open_artifact(id));
  Bytes buffer(state_->options.chunk_bytes);
  std::uint64_t total = 0;
  for (;;) {
    FALAJ_ASSIGN(const auto n, reader->read(buffer));
    if (n == 0) break;
    total += n;
  }
  if (total != reader->manifest().size)
    return error(ErrorCode::corrupt,
                 format("artifact {}: its chunks have {} bytes, the manifest says {}", id.hex(), total, reader->manifest().size));
  return {};
}

Status ArtifactStore::remove(const Digest& id) {
  const auto path = state_->manifest_path(id);
  if (auto gone = remove_file(path); !gone) {
    if (gone.error().code == ErrorCode::not_found)
      return error(ErrorCode::not_found, format("artifact {} is not in {}", id.hex(), state_->dir.string()));
    return gone;
  }
  return sync_dir(path.parent_path());
}

Result<CollectReport> ArtifactStore::collect() {
  const std::lock_guard collecting(state_->collect_mutex);
  FALAJ_TRY(state_->lock.upgrade());
  struct AtEnd {
    State& state;
    ~AtEnd() {
      const std::lock_guard guard(state.mutex);
      state.spared.reset();
      state.lock.downgrade();
    }
  } const at_end{*state_};
  {
    const std::lock_guard guard(state_->mutex);
    state_->spared.emplace(state_->pinned.begin(), state_->pinned.end());
  }
  // From here on every chunk that a writer takes in hand is spared, whether it commits before or after we come to that chunk.
  FALAJ_ASSIGN(const auto manifests, list());
  std::set<Digest> used;
  for (const auto& manifest : manifests) {
    for (const auto& chunk : manifest.chunks) used.insert(chunk.digest);
  }
  CollectReport report;
  FALAJ_TRY(each_file(state_->dir / "chunks", [&](const Digest& name, const fs::path& path) -> Status {
    const std::lock_guard guard(state_->mutex);
    if (used.contains(name) || state_->spared->contains(name)) {
      ++report.chunks_kept;
      return {};
    }
    const auto bytes = bytes_of_file(path);
    if (auto gone = remove_file(path); !gone) return gone;
    ++report.chunks_removed;
    report.bytes_freed += bytes;
    return {};
  }));
  return report;
}

bool ArtifactStore::has_chunk(const Digest& digest) const { return file_exists(state_->chunk_path(digest)); }

Result<Bytes> ArtifactStore::read_chunk(const Digest& digest) { return state_->load_chunk(digest); }

Status ArtifactStore::write_chunk(const Digest& digest, ByteView plain) {
  if (plain.empty() || plain.size() > kChunkBytesMax)
    return invalid(format("a chunk of {} bytes; 1 to {} are allowed", plain.size(), kChunkBytesMax));
  if (sha256(plain) != digest)
    return invalid(format("chunk {}: the bytes have another digest ({}); fetch them again", digest.hex(), sha256(plain).hex()));
  return state_->store_chunk(digest, plain);
}

Status ArtifactStore::adopt(const Manifest& manifest) {
  if (manifest.id != ArtifactStore::id_of(manifest.digest, manifest.meta))
    return invalid(format("manifest {}: its name does not follow from its content", manifest.id.hex()));
  std::uint64_t total = 0;
  for (const auto& chunk : manifest.chunks) {
    state_->pin(chunk.digest);
    total += chunk.size;
  }
  const auto attempt = [&]() -> Status {
    if (total != manifest.size)
      return invalid(format("manifest {}: its chunks have {} bytes, it says {}", manifest.id.hex(), total, manifest.size));
    for (const auto& chunk : manifest.chunks) {
      if (!has_chunk(chunk.digest))
        return error(ErrorCode::not_found,
                     format("chunk {} of artifact {} is not here: send it first", chunk.digest.hex(), manifest.id.hex()));
    }
    return state_->store_manifest(manifest);
  };
  auto status = attempt();
  state_->unpin(manifest.chunks);
  return status;
}

Status ArtifactStore::rewrap() {
  FALAJ_TRY(rewrap_keyring_file(state_->dir / "keys", std::string(kStoreName), state_->provider));
  FALAJ_ASSIGN(auto fresh, open_keyring_file(state_->dir / "keys", std::string(kStoreName), state_->provider, 0));
  const std::lock_guard guard(state_->mutex);
  state_->ring = std::move(fresh);
  return {};
}

Result<ArtifactFiles> artifact_files(const fs::path& dir) {
  FALAJ_ASSIGN(const auto form, read_format(dir));
  if (form.version > kArtifactFormat) return newer_format(dir.string(), form.version, kArtifactFormat);
  ArtifactFiles out;
  const auto look = [&](const fs::path& path, ByteView magic, std::uint64_t bytes_max) {
    if (!out.first_bad.empty()) return;
    const auto file = read_file(path, bytes_max);
    const auto good = file ? sealed_part(path, magic, *file) : Result<ByteView>(file.error());
    if (!good && good.error().code != ErrorCode::not_found) out.first_bad = good.error().message;
  };
  FALAJ_TRY(each_file(dir / "manifests", [&](const Digest& id, const fs::path& path) -> Status {
    ++out.manifests;
    out.ids.push_back(id);
    look(path, kManifestMagic, kManifestBytesMax);
    return {};
  }));
  FALAJ_TRY(each_file(dir / "chunks", [&](const Digest&, const fs::path& path) -> Status {
    ++out.chunks;
    look(path, kChunkMagic, kChunkBytesMax + (1U << 20));
    return {};
  }));
  std::ranges::sort(out.ids);
  return out;
}

}  // namespace falaj::storage
