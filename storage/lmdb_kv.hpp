// Kv on LMDB: one directory, one process. All tables share one B-tree (key = table, 0x00, key), so a table needs no handle and
// comes into being with its first key. The file grows as it is filled, up to map_bytes_max; beyond it, and when the disk is
// full, a commit says no_space and nothing has changed.
//
// Ways to get hurt:
//  - A second process (or a second open in this one) is refused with the pid of the first. Mode::inspect takes no lock and
//    never writes: it is for `falaj store check|dump` in another process than the owner.
//  - Put it on a local disk: LMDB's locks do not work on network file systems.
#pragma once
#include <filesystem>

#include "storage/kv.hpp"

namespace falaj::storage {

struct LmdbOptions {
  std::uint64_t map_bytes_max = 64ULL << 30;  // address space, not disk; halved until the system grants it
  Sync sync = Sync::every_commit;
  enum class Mode : std::uint8_t { own, inspect } mode = Mode::own;
};

[[nodiscard]] Result<std::unique_ptr<Kv>> open_lmdb_kv(const std::filesystem::path& dir, const LmdbOptions& options = {});

}  // namespace falaj::storage
