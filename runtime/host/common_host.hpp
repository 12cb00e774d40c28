// What both hosts do alike: Host on top of Node. Internal to runtime/host.
#pragma once
#include "runtime/host/node.hpp"
#include "runtime/host/remote.hpp"

namespace falaj {

class CommonHost : public Host {
 public:
  explicit CommonHost(std::shared_ptr<Node> node) : node_(std::move(node)) {}
  ActorRef spawn(ChildSpec child) override { return node_->spawn(std::move(child)); }
  void stop_child(std::string_view id) override { node_->stop_child(id); }
  void on_fatal(std::move_only_function<void(Error)> call) override { node_->on_fatal(std::move(call)); }
  [[nodiscard]] ActorRef find(std::string_view name) const override { return node_->find(name); }
  [[nodiscard]] ActorRef at(const ActorAddress& address) override { return node_->at(address); }
  void set_transport(Transport* transport) override { node_->remote().set_transport(transport); }
  void set_directory(std::shared_ptr<const Directory> directory) override { node_->set_directory(std::move(directory)); }
  void ask(const ActorRef& to, Message message, const SendOptions& options, std::move_only_function<void(Result<Message>)> done) override {
    node_->ask(to, std::move(message), options, std::move(done));
  }
  void tell(const ActorRef& to, Message message, const SendOptions& options) override { node_->tell(to, std::move(message), options); }
  void on_message(const Peer& sender, Lane lane, const Header& header, Message body) override {
    node_->remote().on_message(sender, lane, header, std::move(body));
  }
  void on_message(const Peer& sender, Lane lane, ByteView envelope, Message body) override {
    node_->remote().on_message(sender, lane, envelope, std::move(body));
  }
  void on_peer_down(NodeId node, Incarnation incarnation, const Error& why) override {
    node_->remote().on_peer_down(node, incarnation, why);
  }
  [[nodiscard]] bool waits_for(NodeId node) override { return node_->remote().waits_for(node); }
  [[nodiscard]] std::vector<ActorInfo> actors() const override { return node_->actors(); }
  [[nodiscard]] std::vector<DeadLetter> dead_letters() const override { return node_->dead_letters(); }
  [[nodiscard]] NodeId node() const override { return node_->id; }
  [[nodiscard]] Incarnation incarnation() const override { return node_->options.incarnation; }
  [[nodiscard]] metrics::Registry& metrics() override { return *node_->options.metrics; }
  [[nodiscard]] const Clock& clock() const override { return *node_->options.clock; }
  [[nodiscard]] Tracer& tracer() override { return node_->tracer; }

 protected:
  [[nodiscard]] Node& core() const noexcept { return *node_; }

 private:
  std::shared_ptr<Node> node_;
};

}  // namespace falaj
