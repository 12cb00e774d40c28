// Opening a node's stores: one LMDB directory for each, all sealed under the node's KEK.
#pragma once
#include <memory>

#include "nodes/layout.hpp"
#include "storage/lmdb_kv.hpp"
#include "storage/sealed_kv.hpp"

namespace falaj::nodes {

// An LMDB environment and the seal over it, owned together.
class SealedStore {
 public:
  static Result<std::shared_ptr<SealedStore>> open(const NodeDir& dir, std::string_view which, storage::KeyProvider& keys,
                                                   storage::SealedOptions options = {});
  [[nodiscard]] storage::SealedKv& kv() { return *sealed_; }

 private:
  std::unique_ptr<storage::Kv> inner_;
  std::unique_ptr<storage::SealedKv> sealed_;
};

// The same store seen as a Kv, kept alive by who holds it.
std::shared_ptr<storage::Kv> as_kv(const std::shared_ptr<SealedStore>& store);

}  // namespace falaj::nodes
