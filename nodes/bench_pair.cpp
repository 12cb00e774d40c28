#include "nodes/bench_pair.hpp"

#include <unistd.h>

#include <csignal>
#include <fstream>

#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using messages::Ball;
using messages::Parcel;
using messages::Tally;

constexpr std::string_view kCluster = "bench";

class Echo final : public ActorOf<Echo> {
 public:
  static constexpr std::string_view kType = "bench/echo";
  static void handlers(Handlers<Echo>& on) { on.message<Parcel>(&Echo::parcel); }
  void parcel(Context&, Msg<Parcel> m) {
    ++messages_;
    bytes_ += m->getData().size();
    if (!m.wants_reply()) return;
    if (m->getEcho()) {
      m.reply(m.message());
    } else {
      m.reply(Message::build<Tally>(
          [this](Tally::Builder b) {
            b.setMessages(messages_);
            b.setBytes(bytes_);
          },
          4));
    }
  }

 private:
  std::uint64_t messages_ = 0;
  std::uint64_t bytes_ = 0;
};

// Holds its thread as long as a real request would: what overload is about.
class Service final : public ActorOf<Service> {
 public:
  static constexpr std::string_view kType = "bench/service";
  static void handlers(Handlers<Service>& on) { on.message<Parcel>(&Service::serve); }
  void serve(Context& ctx, Msg<Parcel> m) {
    const auto end = ctx.now() + kServiceTime;
    while (ctx.now() < end) {
    }
    ++served_;
    if (m.wants_reply()) m.reply(Message::build<Tally>([this](Tally::Builder b) { b.setMessages(served_); }, 4));
  }

 private:
  std::uint64_t served_ = 0;
};

Result<std::unique_ptr<LinkedHost>> make_side(const ClusterDir& dir, std::string_view name, const Clock& clock) {
  FALAJ_ASSIGN(auto identity, node_identity(dir.node(name)));
  HostOptions options;
  options.node_name = name;
  options.threads = 1;
  return LinkedHost::make(std::string(kCluster), std::move(identity), options, clock);
}

}  // namespace

Message parcel(std::size_t bytes, bool echo) {
  const std::vector<std::uint8_t> data(bytes, 'x');
  return Message::build<Parcel>(
      [&](Parcel::Builder b) {
        b.setEcho(echo);
        b.setData({data.data(), data.size()});
      },
      bytes / 8 + 8);
}

BenchPair::~BenchPair() {
  side_.reset();
  processes_.stop_all(plan_.clock, std::chrono::seconds(2));
  std::error_code none;
  if (!dir_.root.empty()) fs::remove_all(dir_.root, none);
}

Status BenchPair::start() {
  std::string name = (fs::temp_directory_path() / "falaj-bench.XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) return failed("cannot make a temporary directory");
  dir_.root = name;
  FALAJ_TRY(init_cluster(dir_, std::string(kCluster), plan_.clock));
  for (const auto* node : {"a", "b"}) {
    NodePlan node_plan;
    node_plan.name = node;
    FALAJ_TRY(add_node(dir_, node_plan, plan_.clock));
  }
  ProcessSpec other;
  other.arguments = {self_executable(), "bench", "other-side", "--dir", name};
  FALAJ_ASSIGN(other_, processes_.start(other, [this](ProcessExit) { ended_.open(); }));
  FALAJ_ASSIGN(const auto ports, wait_ports());
  FALAJ_ASSIGN(side_, make_side(dir_, "a", plan_.clock));
  const auto met = std::make_shared<Gate>();
  side_->transport().on_up([met](const net::PeerInfo&) { met->open(); });
  FALAJ_ASSIGN(const auto peer, net::parse_peer_address("b", format("127.0.0.1:{}", ports.links)));
  side_->links().connect(peer);
  if (!met->wait(std::chrono::seconds(30))) return error(ErrorCode::unreachable, "the two processes have not met");
  FALAJ_ASSIGN(const auto identity, node_identity(dir_.node("a")));
  FALAJ_ASSIGN(bare_, net::BareTlsClient::connect(ports.bare, identity, plan_.clock));
  return {};
}

Result<BenchPair::Ports> BenchPair::wait_ports() {
  for (int look = 0; look < 600; ++look) {
    std::ifstream file(dir_.root / "ready");
    Ports ports;
    if (file >> ports.links >> ports.bare) return ports;
    if (ended_.wait(std::chrono::milliseconds(50))) return failed("the other process has ended");
  }
  return error(ErrorCode::deadline, "the other process is not ready");
}

Status BenchPair::drive(std::string_view driver, std::uint64_t units) {
  Gate done;
  Status how;
  SendOptions patient;
  patient.timeout = std::chrono::minutes(15);
  host().ask(host().find(driver), Message::build<Ball>([&](Ball::Builder b) { b.setLeft(units); }), patient, [&](Result<Message> answer) {
    if (!answer) how = std::move(answer).error();
    done.open();
  });
  return done.wait(std::chrono::minutes(16)) ? how : failed("no answer");
}

Status serve_bench_links(const std::string& dir) {
  const ClusterDir cluster{dir};
  SystemClock clock;
  FALAJ_ASSIGN(const auto side, make_side(cluster, "b", clock));
  for (const auto name : {kEcho, kSink}) {
    ChildSpec echo;
    echo.id = echo.name = name;
    echo.make = [] { return std::make_unique<Echo>(); };
    echo.mailbox.normal = 8192;
    side->host().spawn(std::move(echo));
  }
  ChildSpec service;  // with the mailbox that any actor gets
  service.id = service.name = kService;
  service.make = [] { return std::make_unique<Service>(); };
  side->host().spawn(std::move(service));
  FALAJ_ASSIGN(const auto port, side->links().listen("127.0.0.1", 0));
  FALAJ_ASSIGN(const auto identity, node_identity(cluster.node("b")));
  FALAJ_ASSIGN(const auto bare, net::BareTlsServer::start(identity, clock));
  FALAJ_TRY(net::write_private_file(cluster.root / "ready", format("{} {}\n", port, bare->port())));
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT}) sigaddset(&set, number);
  int number = 0;
  sigwait(&set, &number);
  return {};
}

}  // namespace falaj::nodes
