#include "nodes/http_load.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>

#include "runtime/base/format.hpp"
#include "runtime/base/guarded.hpp"
#include "runtime/base/thread.hpp"

namespace falaj::nodes {
namespace {

class Connection {
 public:
  explicit Connection(const LoadPlan& plan) : plan_(plan) {}
  ~Connection() { drop(); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // The body of a 200; otherwise why not.
  Status exchange(const std::string& body) {
    if (fd_ < 0) FALAJ_TRY(dial());
    auto done = talk(body);
    if (!done) drop();
    return done;
  }

 private:
  Status dial() {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(plan_.port);
    inet_pton(AF_INET, plan_.host.c_str(), &address.sin_addr);
    const int one = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    const timeval limit{30, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      drop();
      return error(ErrorCode::unreachable, format("cannot connect to {}:{}", plan_.host, plan_.port));
    }
    return {};
  }

  void drop() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
    buffer_.clear();
  }

  Status talk(const std::string& body) {
    request_ = format("POST {} HTTP/1.1\r\nHost: {}:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", plan_.path,
                      plan_.host, plan_.port, body.size());
    request_ += body;
    std::size_t sent = 0;
    while (sent < request_.size()) {
      const auto n = ::send(fd_, request_.data() + sent, request_.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return error(ErrorCode::unreachable, "the connection broke while sending");
      sent += static_cast<std::size_t>(n);
    }
    std::size_t header_end = 0;
    while ((header_end = buffer_.find("\r\n\r\n")) == std::string::npos) FALAJ_TRY(read_more());
    const auto status = buffer_.substr(9, 3);
    std::size_t length = 0;
    const auto at = buffer_.find("Content-Length: ");
    if (at != std::string::npos && at < header_end) std::from_chars(buffer_.data() + at + 16, buffer_.data() + header_end, length);
    const auto total = header_end + 4 + length;
    while (buffer_.size() < total) FALAJ_TRY(read_more());
    auto answer = buffer_.substr(header_end + 4, length);
    buffer_.erase(0, total);
    if (status == "200") return {};
    return failed(format("status {}: {}", status, answer.substr(0, 200)));
  }

  Status read_more() {
    char piece[16384];
    const auto n = recv(fd_, piece, sizeof piece, 0);
    if (n <= 0) return error(ErrorCode::unreachable, "the connection broke before the answer was whole");
    buffer_.append(piece, static_cast<std::size_t>(n));
    return {};
  }

  const LoadPlan& plan_;
  int fd_ = -1;
  std::string buffer_;
  std::string request_;
};

}  // namespace

double percentile(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return 0;
  return sorted[static_cast<std::size_t>(std::floor(q * static_cast<double>(sorted.size() - 1)))];
}

LoadReport run_load(const LoadPlan& plan, const Clock& clock) {
  std::atomic<std::uint64_t> next{0};
  std::atomic<std::uint64_t> done{0};
  Guarded<LoadReport> report;
  const auto every = std::max<std::uint64_t>(plan.requests / 100, 1);
  const auto work = [&] {
    Connection connection(plan);
    LoadReport mine;
    for (auto i = next.fetch_add(1); i < plan.requests; i = next.fetch_add(1)) {
      const auto begin = clock.now();
      const auto answered = connection.exchange(plan.bodies[i % plan.bodies.size()]);
      if (answered) {
        ++mine.answered;
        mine.latency_us.push_back(static_cast<double>((clock.now() - begin).count()) * 1e-3);
      } else {
        ++mine.failed;
        if (mine.first_failure.empty()) mine.first_failure = answered.error().message;
      }
      const auto count = done.fetch_add(1) + 1;
      if (plan.progress && count % every == 0) plan.progress(count);
    }
    report.with([&](LoadReport& all) {
      all.answered += mine.answered;
      all.failed += mine.failed;
      all.latency_us.insert(all.latency_us.end(), mine.latency_us.begin(), mine.latency_us.end());
      if (all.first_failure.empty()) all.first_failure = mine.first_failure;
    });
  };
  const auto begin = clock.now();
  {
    std::vector<Thread> threads;
    for (unsigned i = 0; i < plan.connections; ++i) threads.emplace_back("load", work);
  }
  LoadReport all = report.with([](LoadReport& value) { return std::move(value); });
  all.seconds = static_cast<double>((clock.now() - begin).count()) * 1e-9;
  std::ranges::sort(all.latency_us);
  return all;
}

}  // namespace falaj::nodes
