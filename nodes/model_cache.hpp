// Compiled models kept on disk, so that the next start maps what this one computed (kernels/compiled_file.hpp).
//
// In the directory: DIGEST-VARIANT.model, the compiled form of the model whose file has that SHA-256, with DIGEST-VARIANT.files beside it,
// which names the files that its external data lay in; and IDENTITY.digest, which remembers the digest of a file that has not changed
// since (device, inode, size, times), for to read 50 MB takes longer than all the rest. Files are complete when they appear. What has
// not been used for longest goes when the directory holds more than kCacheBytesMax.
//
// The directory is believed, so it must be the user's own and nobody else's to write to. Several processes may use one at a time.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/plan.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

constexpr std::uint64_t kCacheBytesMax = std::uint64_t{8} << 30;

class ModelCache {
 public:
  // Makes the directory if there is none. `clock` must outlive the cache.
  static Result<ModelCache> open(const std::string& directory, const Clock& clock);

  // A model's file as it was when it was looked at, and how it is compiled. Made before the file is read.
  struct Entry {
    std::string path;
    std::string identity;  // of the file
    std::string name;      // of the entry, the directory with it
  };
  // `options` tells options apart that lead to other graphs or packed forms.
  [[nodiscard]] Result<Entry> entry(const std::string& path, std::string_view options) const;

  struct Kept {
    std::shared_ptr<const kernels::Compiled> compiled;  // null: it is not there, or is out of date or damaged (which keep() mends)
    std::vector<std::string> others;                    // files of the model's folder, as load_model gives them
  };
  [[nodiscard]] Result<Kept> find(const Entry& entry, const kernels::CompileOptions& options) const;
  // Not if a file has changed since the entry was made, or may have.
  Status keep(const Entry& entry, const Kept& kept) const;

 private:
  ModelCache(std::string directory, const Clock& clock) : directory_(std::move(directory)), clock_(&clock) {}
  void make_room(const std::string& kept) const;

  std::string directory_;
  const Clock* clock_;
};

}  // namespace falaj::nodes
