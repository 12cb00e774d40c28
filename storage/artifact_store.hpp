// Artifacts: immutable contents, cut into chunks that are named by the SHA-256 of their plaintext, compressed, then sealed, one
// file each. A manifest names the chunks of one artifact; it is written last, so what a manifest names is there.
//
// Nothing is ever held whole: writer and reader hold one chunk. Equal chunks are stored once. A crash leaves at most
// unreferenced chunks, which collect() removes, and temporary files, which open() removes.
//
// Thread rules: ArtifactStore may be used by any thread; a Writer or Reader by one at a time. All calls touch the disk. Several
// processes may have one store open; collect() needs to be the only one.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "runtime/base/clock.hpp"
#include "storage/digest.hpp"
#include "storage/seal.hpp"

namespace falaj::storage {

struct ArtifactMeta {
  std::string media_type;  // "application/onnx", "application/vnd.falaj.snapshot"...
  std::string tenant;
  std::string purpose;
  std::string residency;  // label of where it may lie; empty: anywhere
};

struct ChunkRef {
  Digest digest;           // of the plaintext
  std::uint64_t size = 0;  // of the plaintext
};

struct Manifest {
  Digest id;      // SHA-256 over content digest and meta: the artifact's name, the same on every node
  Digest digest;  // SHA-256 of the whole content
  std::uint64_t size = 0;
  ArtifactMeta meta;
  WallTime created;
  std::vector<ChunkRef> chunks;
};

struct ArtifactOptions {
  std::size_t chunk_bytes = 1U << 20;
  int zstd_level = 1;
};

class ArtifactWriter {
 public:
  virtual ~ArtifactWriter() = default;  // without commit() nothing becomes visible
  [[nodiscard]] virtual Status write(ByteView bytes) = 0;
  [[nodiscard]] virtual Result<Manifest> commit() = 0;  // durable when it returns; the same content and meta again is no error
};

class ArtifactReader {
 public:
  virtual ~ArtifactReader() = default;
  [[nodiscard]] virtual const Manifest& manifest() const = 0;
  // Fills as much of `out` as there is; 0 at the end. Each chunk is checked against its name, the whole against the digest.
  [[nodiscard]] virtual Result<std::size_t> read(std::span<std::uint8_t> out) = 0;
  [[nodiscard]] virtual Status seek(std::uint64_t offset) = 0;  // afterwards the total digest is not checked any more
};

struct CollectReport {
  std::uint64_t chunks_removed = 0, bytes_freed = 0, chunks_kept = 0;
};

class ArtifactStore {
 public:
  [[nodiscard]] static Result<std::unique_ptr<ArtifactStore>> open(const std::filesystem::path& dir, KeyProvider& provider,
                                                                   const Clock& clock, ArtifactOptions options = {});
  // For reading only, beside its owner: takes no lock, counts nothing, writes nothing.
  [[nodiscard]] static Result<std::unique_ptr<ArtifactStore>> inspect(const std::filesystem::path& dir, KeyProvider& provider,
                                                                      const Clock& clock);
  ~ArtifactStore();
  ArtifactStore(const ArtifactStore&) = delete;
  ArtifactStore& operator=(const ArtifactStore&) = delete;

  [[nodiscard]] Result<std::unique_ptr<ArtifactWriter>> create(ArtifactMeta meta);
  [[nodiscard]] Result<std::unique_ptr<ArtifactReader>> open_artifact(const Digest& id);
  // For what is small: a whole content at once. read_all refuses more than bytes_max.
  [[nodiscard]] Result<Manifest> put(ByteView content, ArtifactMeta meta);
  [[nodiscard]] Result<Bytes> read_all(const Digest& id, std::uint64_t bytes_max = 1ULL << 30);

  [[nodiscard]] Result<Manifest> stat(const Digest& id);
  [[nodiscard]] Result<std::vector<Manifest>> list();
  [[nodiscard]] Status verify(const Digest& id);  // reads and checks all of it
  [[nodiscard]] Status remove(const Digest& id);  // the manifest; its chunks go with the next collect()
  [[nodiscard]] Result<CollectReport> collect();  // removes chunks that no manifest names

  // For moving artifacts between nodes: chunks first, then the manifest (not_found names the first chunk that is missing).
  [[nodiscard]] bool has_chunk(const Digest& digest) const;
  [[nodiscard]] Result<Bytes> read_chunk(const Digest& digest);
  [[nodiscard]] Status write_chunk(const Digest& digest, ByteView plain);  // invalid: the bytes are not what the name says
  [[nodiscard]] Status adopt(const Manifest& manifest);
  [[nodiscard]] static Digest id_of(const Digest& content, const ArtifactMeta& meta);  // what a manifest's id must be
  [[nodiscard]] static Bytes encode(const Manifest& manifest);                         // Cap'n Proto, messages/storage.capnp
  [[nodiscard]] static Result<Manifest> decode(ByteView bytes);

  [[nodiscard]] Status rewrap();  // after a rotation of the KEK

 private:
  friend class ArtifactWriterImpl;
  friend class ArtifactReaderImpl;
  struct State;
  explicit ArtifactStore(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// What lies in the folders, with the checksums of the files checked; needs no key.
struct ArtifactFiles {
  std::uint64_t manifests = 0;
  std::uint64_t chunks = 0;
  std::vector<Digest> ids;
  std::string first_bad;  // path and reason; empty: none
};
[[nodiscard]] Result<ArtifactFiles> artifact_files(const std::filesystem::path& dir);

constexpr std::uint32_t kArtifactFormat = 1;

}  // namespace falaj::storage
