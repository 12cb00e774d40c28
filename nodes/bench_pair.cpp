#include "nodes/bench_pair.hpp"

#include <unistd.h>

#include <csignal>
#include <fstream>

#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"

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

// Sends as many messages as a Ball says; answers when the last is counted, or when it is told to stop.
class Driver final : public ActorOf<Driver> {
 public:
  static constexpr std::string_view kType = "bench/driver";
  static void handlers(Handlers<Driver>& on) { on.message<Ball>(&Driver::drive); }
  explicit Driver(const Drive& plan) : plan_(plan), parcel_(parcel(plan.bytes, plan.echo)) {}
  void drive(Context& ctx, Msg<Ball> m) {
    const auto total = m->getLeft();
    const auto shared = std::make_shared<Under>(Under{plan_.width, {}, std::move(m)});
    for (std::size_t i = 0; i < plan_.width; ++i) ctx.start(send(ctx, total / plan_.width + (i < total % plan_.width ? 1 : 0), shared));
  }

 private:
  struct Under {
    std::size_t open;
    std::optional<Error> why;
    Msg<Ball> from;
  };

  Task<> send(Context& ctx, std::uint64_t left, std::shared_ptr<Under> under) {
    const auto to = ctx.at(BenchPair::at(plan_.to));
    SendOptions options;
    options.lane = plan_.lane;
    SendOptions patient = options;
    patient.timeout = std::chrono::seconds(30);
    while (left > 0 && !under->why && !(plan_.stop != nullptr && plan_.stop->load(std::memory_order_relaxed))) {
      const auto burst = std::min(left, plan_.burst);
      for (std::uint64_t i = 1; i < burst; ++i) ctx.tell(to, parcel_, options);
      const auto begin = ctx.now();
      if (plan_.echo) {
        auto back = co_await ctx.ask<Parcel>(to, parcel_, patient);
        if (!back.has_value()) under->why = std::move(back).error();
      } else {
        auto counted = co_await ctx.ask<Tally>(to, parcel_, patient);
        if (!counted.has_value()) under->why = std::move(counted).error();
      }
      if (plan_.us != nullptr) plan_.us->push_back(static_cast<double>((ctx.now() - begin).count()) * 1e-3);
      if (plan_.messages != nullptr) plan_.messages->fetch_add(burst, std::memory_order_relaxed);
      left -= burst;
    }
    if (--under->open > 0) co_return;
    if (under->why) co_return under->from.refuse(*under->why);
    under->from.reply(Message::build<Tally>());
  }

  Drive plan_;
  Message parcel_;
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
  if (plan_.pin) other.arguments.emplace_back("--pin");
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

void BenchPair::spawn(const std::string& name, std::function<std::unique_ptr<Actor>()> make) {
  ChildSpec spec;
  spec.id = spec.name = name;
  spec.make = std::move(make);
  host().spawn(std::move(spec));
}

void BenchPair::spawn(const std::string& name, const Drive& plan) {
  spawn(name, [plan] { return std::make_unique<Driver>(plan); });
}

std::shared_ptr<BenchPair::Run> BenchPair::begin(std::string_view driver, std::uint64_t units) {
  auto run = std::make_shared<Run>();
  SendOptions patient;
  patient.timeout = std::chrono::minutes(15);
  host().ask(host().find(driver), Message::build<Ball>([&](Ball::Builder b) { b.setLeft(units); }), patient, [run](Result<Message> answer) {
    if (!answer) run->how_ = std::move(answer).error();
    run->ended_.open();
  });
  return run;
}

Status BenchPair::drive(std::string_view driver, std::uint64_t units) {
  const auto run = begin(driver, units);
  return run->ended_within(std::chrono::minutes(16)) ? run->how() : failed("no answer");
}

Status serve_bench_links(const std::string& dir, bool pin) {
  if (pin) FALAJ_TRY(keep_to_processor(1));
  const ClusterDir cluster{dir};
  SystemClock clock;
  FALAJ_ASSIGN(const auto side, make_side(cluster, "b", clock));
  for (const auto name : {kEcho, kSink, kPulse}) {
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
