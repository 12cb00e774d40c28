// Names with a key: shard/<type>/<key> and singleton/<name>. Whoever asks one asks `shards/<type>` of this node, which knows where the key
// lives (messages/shards.capnp). The right is checked here, where the message is still what it was.
#include "messages/catalog.hpp"
#include "messages/shards.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/host/actor.hpp"
#include "runtime/host/node.hpp"

namespace falaj {

namespace {

constexpr std::string_view kShard = "shard/";
constexpr std::string_view kSingleton = "singleton/";
constexpr std::string_view kRegion = "shards/";
constexpr std::size_t kKeyBytesMax = 256;

struct Place {
  std::string type;
  std::string key;
};

std::optional<Place> place_of(std::string_view name) {
  if (name.starts_with(kSingleton) && name.size() > kSingleton.size()) return Place{std::string(name), {}};
  if (!name.starts_with(kShard)) return std::nullopt;
  const auto rest = name.substr(kShard.size());
  const auto slash = rest.find('/');
  if (slash == rest.npos || slash == 0 || slash + 1 == rest.size() || rest.size() - slash - 1 > kKeyBytesMax) return std::nullopt;
  return Place{std::string(rest.substr(0, slash)), std::string(rest.substr(slash + 1))};
}

class Keyed final : public Target {
 public:
  Keyed(std::shared_ptr<Node> node, std::string name, Place place)
      : node_(std::move(node)), name_(std::move(name)), place_(std::move(place)), region_(std::string(kRegion) + place_.type) {}

  [[nodiscard]] ActorAddress address() const override { return {node_->id, node_->options.incarnation, {}, name_}; }

  void deliver(std::unique_ptr<Delivery> d) override {
    if (d->kind != Kind::ask && d->kind != Kind::tell) return refuse(std::move(d), error(ErrorCode::unimplemented, "keys are not watched"));
    if (d->from_outside) {
      if (auto may = allowed(*d); !may.has_value()) return refuse(std::move(d), may.error());
    }
    const auto region = node_->find_local(region_);
    if (!region) return refuse(std::move(d), error(ErrorCode::gone, format("{} is not there for now; look its name up again", region_)));
    const auto body = d->body.bytes();
    if (body.size() > limits::kMessageBytesMax - limits::kEnvelopeBytesMax)
      return refuse(std::move(d), invalid(format("a message of {} bytes is too long for an actor that is addressed by key", body.size())));
    d->body = Message::build<messages::ShardCall>(
        [&](messages::ShardCall::Builder b) {
          b.setKey(place_.key);
          b.setTypeId(d->body.type().value());
          b.setBody(data(body));
        },
        body.size() / 8 + place_.key.size() / 8 + 16);
    d->from_outside = false;
    region.get()->deliver(std::move(d));
  }

 private:
  void refuse(std::unique_ptr<Delivery> d, const Error& why) { node_->undeliverable(std::move(d), *this, why); }

  [[nodiscard]] Status allowed(const Delivery& d) const {
    const auto schema = find_message(d.body.type());
    const auto verb = schema ? verb_of(*schema) : std::string_view();
    const auto type = place_.key.empty() ? place_.type : std::string(kShard) + place_.type;
    return node_->authorize(d, verb, type, message_label(d.body.type()));
  }

  const std::shared_ptr<Node> node_;
  const std::string name_;
  const Place place_;
  const std::string region_;
};

}  // namespace

ActorRef Node::here(std::string_view name) {
  if (auto found = find_local(name)) return found;
  auto place = place_of(name);
  if (!place || !find_local(std::string(kRegion) + place->type)) return {};
  return ActorRef(new Keyed(shared_from_this(), std::string(name), std::move(*place)));
}

}  // namespace falaj
