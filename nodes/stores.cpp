#include "nodes/stores.hpp"

namespace falaj::nodes {

Result<std::shared_ptr<SealedStore>> SealedStore::open(const NodeDir& dir, std::string_view which, storage::KeyProvider& keys,
                                                       storage::SealedOptions options) {
  auto store = std::make_shared<SealedStore>();
  FALAJ_ASSIGN(store->inner_, storage::open_lmdb_kv(dir.store(which)));
  FALAJ_ASSIGN(store->sealed_, storage::SealedKv::open(*store->inner_, std::string(which), keys, std::move(options)));
  return store;
}

std::shared_ptr<storage::Kv> as_kv(const std::shared_ptr<SealedStore>& store) { return {store, &store->kv()}; }

}  // namespace falaj::nodes
