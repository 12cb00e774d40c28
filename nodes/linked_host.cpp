#include "nodes/linked_host.hpp"

#include "runtime/base/random.hpp"

namespace falaj::nodes {

Result<std::unique_ptr<LinkedHost>> LinkedHost::make(std::string cluster, net::Identity identity, HostOptions options, const Clock& clock) {
  std::unique_ptr<LinkedHost> self(new LinkedHost());
  options.incarnation = Incarnation(static_cast<std::uint64_t>(clock.wall().unix_ns));
  options.seed = entropy_seed();
  options.clock = &clock;
  options.metrics = &self->metrics_;
  self->host_ = make_caf_host(options);
  self->transport_ = std::make_unique<cluster::LinkTransport>(*self->host_);
  net::LinkOptions link_options;
  link_options.cluster = std::move(cluster);
  link_options.name = options.node_name;
  link_options.incarnation = options.incarnation;
  link_options.identity = std::move(identity);
  link_options.seed = entropy_seed();
  FALAJ_ASSIGN(self->links_, net::Links::create(std::move(link_options), clock, self->metrics_, *self->transport_));
  self->transport_->attach(*self->links_);
  self->host_->set_transport(self->transport_.get());
  return self;
}

LinkedHost::~LinkedHost() {
  if (host_) host_->shutdown(std::chrono::seconds(2));
  if (links_) links_->stop();
}

}  // namespace falaj::nodes
