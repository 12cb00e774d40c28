// The CAF peer of `falaj bench`: CAF's own actors, messages and mailboxes, and its io and openssl modules between two processes. The same
// exchanges, counted at the receiver, medians of rounds; prints "name value" lines.
//
//   bench_caf actors SECONDS ROUNDS
//   bench_caf links SECONDS ROUNDS KEYS    KEYS: directory of the benchmark's cluster, with certificates of the nodes a and b
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <caf/all.hpp>
#include <caf/io/all.hpp>
#include <caf/openssl/all.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "runtime/base/clock.hpp"

namespace {

using caf::actor;
using caf::behavior;
using caf::event_based_actor;
using caf::scoped_actor;

using next_atom = caf::atom_constant<caf::atom("next")>;
using ball_atom = caf::atom_constant<caf::atom("ball")>;
using done_atom = caf::atom_constant<caf::atom("done")>;
using tally_atom = caf::atom_constant<caf::atom("tally")>;
using echo_atom = caf::atom_constant<caf::atom("echo")>;
using go_atom = caf::atom_constant<caf::atom("go")>;

const falaj::SystemClock kClock;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[(values.size() - 1) / 2];
}

double percentile(const std::vector<double>& sorted, double q) {
  return sorted.empty() ? 0 : sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
}

struct Plan {
  double seconds = 1;
  unsigned rounds = 5;

  double timed(const std::function<void(std::uint64_t)>& run, std::uint64_t units) const {
    const auto begin = kClock.now();
    run(units);
    return std::max(std::chrono::duration<double>(kClock.now() - begin).count(), 1e-9);
  }
  // Units a second: how many make a round is found by trying.
  double rate(const std::function<void(std::uint64_t)>& run) const {
    std::uint64_t units = 16;
    for (;;) {
      const auto took = timed(run, units);
      if (took * 5 >= seconds) {
        units = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(units) * seconds / took));
        break;
      }
      units *= 2;
    }
    std::vector<double> rates;
    for (unsigned i = 0; i < rounds; ++i) rates.push_back(static_cast<double>(units) / timed(run, units));
    return median(rates);
  }
};

void say(const char* name, double value) { std::printf("%s %.3f\n", name, value); }

// ---- one process -----------------------------------------------------------------------------------------------------------------

struct Ring {
  actor next;
  actor main;
};

behavior player(caf::stateful_actor<Ring>* self, const actor& main) {
  self->state.main = main;
  return {
      [self](next_atom, const actor& next) { self->state.next = next; },
      [self](ball_atom, std::uint64_t left, std::uint64_t stamp) {
        if (left == 0) {
          self->send(self->state.main, done_atom::value);
        } else {
          self->send(self->state.next, ball_atom::value, left - 1, stamp);
        }
      },
  };
}

struct Seen {
  std::uint64_t messages = 0;
};

behavior counter(caf::stateful_actor<Seen>* self) {
  return {
      [self](ball_atom, std::uint64_t, std::uint64_t) { ++self->state.messages; },
      [self](tally_atom) { return ++self->state.messages; },
  };
}

behavior sender(event_based_actor* self, const actor& to, const actor& main) {
  return {
      [self, to, main](go_atom, std::uint64_t count) {
        for (std::uint64_t i = 0; i < count; ++i) self->send(to, ball_atom::value, i, std::uint64_t{0});
        self->request(to, caf::infinite, tally_atom::value).then([self, main](std::uint64_t) { self->send(main, done_atom::value); });
      },
  };
}

behavior idle(event_based_actor* self, const actor& main) {
  self->send(main, done_atom::value);
  return {[](ball_atom, std::uint64_t, std::uint64_t) {}};
}

double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  double total = 0;
  double resident = 0;
  file >> total >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

void wait_done(scoped_actor& main, std::uint64_t count) {
  std::uint64_t seen = 0;
  main->receive_while([&] { return seen < count; })([&](done_atom) { ++seen; });
}

std::vector<actor> make_ring(caf::actor_system& system, scoped_actor& main, std::size_t size) {
  std::vector<actor> players;
  for (std::size_t i = 0; i < size; ++i) players.push_back(system.spawn(player, caf::actor_cast<actor>(main)));
  for (std::size_t i = 0; i < size; ++i) main->send(players[i], next_atom::value, players[(i + 1) % size]);
  return players;
}

void stop(scoped_actor& main, const std::vector<actor>& actors) {
  for (const auto& one : actors) main->send_exit(one, caf::exit_reason::user_shutdown);
}

int run_actors(const Plan& plan) {
  caf::actor_system_config config;
  config.set("scheduler.max-threads", std::size_t{2});
  caf::actor_system system(config);
  scoped_actor main(system);
  constexpr std::size_t kIdle = 50'000;
  std::vector<double> spawns;
  std::vector<double> bytes;
  std::vector<actor> kept;
  kept.reserve(kIdle * plan.rounds);
  for (unsigned round = 0; round < plan.rounds; ++round) {
    const auto before = resident_bytes();
    spawns.push_back(static_cast<double>(kIdle) / plan.timed(
                                                      [&](std::uint64_t) {
                                                        for (std::size_t i = 0; i < kIdle; ++i)
                                                          kept.push_back(system.spawn(idle, caf::actor_cast<actor>(main)));
                                                        wait_done(main, kIdle);
                                                      },
                                                      kIdle));
    bytes.push_back((resident_bytes() - before) / static_cast<double>(kIdle));
  }
  stop(main, kept);
  kept.clear();

  const auto play = [&main](const actor& first) {
    return [&main, first](std::uint64_t messages) {
      main->send(first, ball_atom::value, messages, std::uint64_t{0});
      wait_done(main, 1);
    };
  };
  const auto pair = make_ring(system, main, 2);
  say("ping_pong", plan.rate(play(pair[0])));
  const auto sink = system.spawn(counter);
  std::vector<actor> senders;
  for (int i = 0; i < 8; ++i) senders.push_back(system.spawn(sender, sink, caf::actor_cast<actor>(main)));
  say("fan_in", plan.rate([&](std::uint64_t messages) {
    for (const auto& one : senders) main->send(one, go_atom::value, messages / 8);
    wait_done(main, senders.size());
  }));
  const auto ring = make_ring(system, main, 1000);
  say("ring", plan.rate(play(ring[0])));
  say("spawn", median(spawns));
  say("idle_actor_bytes", median(bytes));
  stop(main, pair);
  stop(main, ring);
  stop(main, senders);
  stop(main, {sink});
  return 0;
}

// ---- two processes ---------------------------------------------------------------------------------------------------------------

struct Config : caf::actor_system_config {
  Config(const std::string& keys, const std::string& side) {
    load<caf::io::middleman>();
    load<caf::openssl::manager>();
    openssl_certificate = keys + "/nodes/" + side + "/node.crt";
    openssl_key = keys + "/nodes/" + side + "/node.key";
    openssl_cafile = keys + "/ca/ca.crt";
    set("scheduler.max-threads", std::size_t{2});
  }
};

behavior echo(caf::stateful_actor<Seen>* self) {
  return {
      [self](echo_atom, std::string& parcel) {
        ++self->state.messages;
        return std::move(parcel);
      },
      [self](const std::string&) { ++self->state.messages; },
      [self](tally_atom) { return ++self->state.messages; },
  };
}

int serve(const std::string& keys) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  Config config(keys, "b");
  caf::actor_system system(config);
  const auto port = caf::openssl::publish(system.spawn(echo), 0, "127.0.0.1");
  if (!port) return 1;
  {
    std::ofstream file(keys + "/caf.port.new");
    file << *port << '\n';
  }
  std::rename((keys + "/caf.port.new").c_str(), (keys + "/caf.port").c_str());
  for (;;) pause();
}

struct Drive {
  std::uint64_t left = 0;
  std::uint64_t open = 0;
  std::vector<double>* us = nullptr;
};

// Keeps `width` parcels under way until `count` have come back; or sends all of them, waiting for the count of every `burst`.
behavior driver(caf::stateful_actor<Drive>* self, const actor& to, const actor& main, std::string parcel, std::vector<double>* us) {
  self->state.us = us;
  const auto next = std::make_shared<std::function<void()>>();
  *next = [self, to, main, parcel, weak = std::weak_ptr(next)] {
    auto& state = self->state;
    if (state.left == 0) {
      if (state.open == 0) self->send(main, done_atom::value);
      return;
    }
    --state.left;
    ++state.open;
    const auto begin = kClock.now();
    self->request(to, caf::infinite, echo_atom::value, parcel).then([self, begin, weak](const std::string&) {
      if (self->state.us != nullptr) self->state.us->push_back(static_cast<double>((kClock.now() - begin).count()) * 1e-3);
      --self->state.open;
      if (const auto again = weak.lock()) (*again)();
    });
  };
  const auto burst_on = std::make_shared<std::function<void(std::uint64_t)>>();
  *burst_on = [self, to, main, parcel, weak = std::weak_ptr(burst_on)](std::uint64_t burst) {
    auto& state = self->state;
    if (state.left == 0) return self->send(main, done_atom::value);
    const auto now = std::min(state.left, burst);
    for (std::uint64_t i = 0; i < now; ++i) self->send(to, parcel);
    state.left -= now;
    self->request(to, caf::infinite, tally_atom::value).then([weak, burst](std::uint64_t) {
      if (const auto again = weak.lock()) (*again)(burst);
    });
  };
  return {
      [self, next](go_atom, std::uint64_t count, std::uint64_t width) {
        self->state.left = count;
        for (std::uint64_t i = 0; i < std::min(width, count); ++i) (*next)();
      },
      [self, burst_on](tally_atom, std::uint64_t count, std::uint64_t burst) {
        self->state.left = count;
        (*burst_on)(burst);
      },
  };
}

int measure(const Plan& plan, const std::string& keys, std::uint16_t port) {
  Config config(keys, "a");
  caf::actor_system system(config);
  scoped_actor main(system);
  const auto to = caf::openssl::remote_actor(system, "127.0.0.1", port);
  if (!to) {
    std::printf("%s\n", system.render(to.error()).c_str());
    return 1;
  }
  std::vector<double> us;
  const auto make = [&](std::size_t bytes, std::vector<double>* into) {
    return system.spawn(driver, *to, caf::actor_cast<actor>(main), std::string(bytes, 'x'), into);
  };
  const auto echoes = [&main](const actor& one, std::uint64_t width) {
    return [&main, one, width](std::uint64_t count) {
      main->send(one, go_atom::value, count, width);
      wait_done(main, 1);
    };
  };
  const auto bursts = [&main](const actor& one, std::uint64_t burst) {
    return [&main, one, burst](std::uint64_t count) {
      main->send(one, tally_atom::value, count, burst);
      wait_done(main, 1);
    };
  };
  const std::vector<actor> drivers = {make(100, &us), make(100, nullptr), make(1U << 20, nullptr)};
  Plan once = plan;
  once.rounds = 1;
  const auto per_second = once.rate(echoes(drivers[0], 1));
  std::vector<double> p50;
  std::vector<double> p99;
  std::vector<double> p999;
  for (unsigned round = 0; round < plan.rounds; ++round) {
    us.clear();
    echoes(drivers[0], 1)(std::max<std::uint64_t>(100, static_cast<std::uint64_t>(per_second * plan.seconds)));
    std::sort(us.begin(), us.end());
    p50.push_back(percentile(us, 0.5));
    p99.push_back(percentile(us, 0.99));
    p999.push_back(percentile(us, 0.999));
  }
  say("link_rtt_p50", median(p50));
  say("link_rtt_p99", median(p99));
  say("link_rtt_p999", median(p999));
  say("link_pipelined", plan.rate(echoes(drivers[1], 256)));
  say("link_one_way", plan.rate(bursts(drivers[1], 10'000)));
  say("link_large", static_cast<double>(1U << 20) * plan.rate(bursts(drivers[2], 8)));
  stop(main, drivers);
  return 0;
}

int run_links(const Plan& plan, const std::string& keys, const char* self) {
  std::remove((keys + "/caf.port").c_str());
  const auto other = fork();
  if (other == 0) {
    if (std::getenv("FALAJ_BENCH_PIN") != nullptr) {
      cpu_set_t second;
      CPU_ZERO(&second);
      CPU_SET(1, &second);
      sched_setaffinity(0, sizeof(second), &second);  // where there is only one processor, it stays
    }
    execl("/proc/self/exe", self, "serve", keys.c_str(), nullptr);
    _exit(127);
  }
  std::uint16_t port = 0;
  for (int look = 0; look < 500 && port == 0 && waitpid(other, nullptr, WNOHANG) == 0; ++look) {
    std::ifstream(keys + "/caf.port") >> port;
    if (port == 0) poll(nullptr, 0, 20);
  }
  int code = 1;
  if (port == 0) {
    std::printf("the other process does not listen\n");
  } else {
    code = measure(plan, keys, port);
  }
  std::fflush(stdout);
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string part = argc > 1 ? argv[1] : "";
  if (part == "serve" && argc == 3) return serve(argv[2]);
  Plan plan;
  if (argc > 3) {
    plan.seconds = std::stod(argv[2]);
    plan.rounds = static_cast<unsigned>(std::stoul(argv[3]));
  }
  if (part == "actors" && argc == 4) return run_actors(plan);
  if (part == "links" && argc == 5) return run_links(plan, argv[4], argv[0]);
  std::fprintf(stderr, "usage: bench_caf actors SECONDS ROUNDS | links SECONDS ROUNDS KEYS\n");
  return 2;
}
