// A host with its links and nothing else: what a process needs to exchange actor messages with nodes. Destroyed in the right order.
#pragma once
#include <memory>
#include <string>

#include "runtime/cluster/transport.hpp"
#include "runtime/host/host.hpp"
#include "runtime/net/links.hpp"

namespace falaj::nodes {

class LinkedHost {
 public:
  // `options`: name, threads; clock, metrics, seed and incarnation are set here. Nothing is sent before a listener or a peer is named.
  static Result<std::unique_ptr<LinkedHost>> make(std::string cluster, net::Identity identity, HostOptions options, const Clock& clock);
  ~LinkedHost();
  LinkedHost(const LinkedHost&) = delete;
  LinkedHost& operator=(const LinkedHost&) = delete;

  [[nodiscard]] Host& host() { return *host_; }
  [[nodiscard]] net::Links& links() { return *links_; }
  [[nodiscard]] cluster::LinkTransport& transport() { return *transport_; }

 private:
  LinkedHost() = default;
  metrics::Registry metrics_;
  std::unique_ptr<Host> host_;
  std::unique_ptr<cluster::LinkTransport> transport_;
  std::unique_ptr<net::Links> links_;
};

}  // namespace falaj::nodes
