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

  // A model and how it is compiled; `options` tells options apart that lead to other graphs or packed forms.
  struct Wanted {
    std::string path;
    std::string options;
  };
  // Null: it is not there, or is out of date or damaged (which keep() mends).
  [[nodiscard]] Result<std::shared_ptr<const kernels::Compiled>> find(const Wanted& wanted, const kernels::CompileOptions& options) const;
  // `others`: as load_model gives them.
  Status keep(const Wanted& wanted, const kernels::Compiled& compiled, const std::vector<std::string>& others) const;

 private:
  ModelCache(std::string directory, const Clock& clock) : directory_(std::move(directory)), clock_(&clock) {}
  [[nodiscard]] Result<std::string> digest_of(const std::string& path) const;
  [[nodiscard]] Result<std::string> entry_of(const Wanted& wanted) const;
  void make_room(const std::string& kept) const;

  std::string directory_;
  const Clock* clock_;
};

}  // namespace falaj::nodes
