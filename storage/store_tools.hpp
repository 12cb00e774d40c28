// check and dump for every kind of store on disk, for `falaj store check|dump`. The kind is found from the directory itself.
// Nothing is changed; the owner may be running. Values are shown only where a KeyProvider is given.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "storage/seal.hpp"

namespace falaj::storage {

enum class StoreKind : std::uint8_t { kv, artifacts, audit };
std::string_view to_string(StoreKind kind) noexcept;

struct TableCount {
  std::string name;  // table, or what the store counts: "artifacts", "chunks", "entries", "heads"
  std::uint64_t count = 0;
};

struct StoreReport {
  StoreKind kind{};
  std::uint32_t format_version = 0;
  std::vector<TableCount> counts;
  bool good = true;
  std::string first_bad;  // table and key, file, or segment, index and offset; with the reason
};

[[nodiscard]] Result<StoreKind> kind_of(const std::filesystem::path& dir);
// With a provider, sealed contents are opened and checked too; without, frames and checksums only.
[[nodiscard]] Result<StoreReport> check(const std::filesystem::path& dir, KeyProvider* provider = nullptr);
// One line for each thing stored, to `line`.
[[nodiscard]] Status dump(const std::filesystem::path& dir, KeyProvider* provider, const std::function<void(std::string_view)>& line);

}  // namespace falaj::storage
