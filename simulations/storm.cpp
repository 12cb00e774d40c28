#include "simulations/storm.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "runtime/base/format.hpp"

namespace falaj::simulations {

using namespace std::chrono_literals;

namespace {

constexpr std::array<std::string_view, static_cast<std::size_t>(Fault::count_)> kNames = {
    "delay", "loss",    "reset",  "one-way",   "partition", "clog", "swizzle",
    "power", "process", "worker", "slow-disk", "full-disk", "skew", "rare"};

}  // namespace

std::string_view name_of(Fault fault) noexcept { return kNames[static_cast<std::size_t>(fault)]; }

Storm::Storm(Cluster& cluster, std::string plant)
    : cluster_(cluster),
      world_(cluster.world()),
      random_(world_.random("storm")),
      rare_(world_.random("rare")),
      plant_(std::move(plant)),
      before_(std::exchange(fault::injector, this)) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (random_.chance(0.5)) chosen_.insert(static_cast<Fault>(i));
  }
  auto& options = world_.options();
  if (has(Fault::delay)) options.delay_max = std::chrono::milliseconds(1 + random_.below(30));
  if (has(Fault::loss)) options.loss = 1e-4 * random_.uniform();
  if (has(Fault::reset)) options.uneven = random_.uniform();
}

Storm::~Storm() { fault::injector = before_; }

std::string Storm::describe() const {
  std::string out;
  for (const auto fault : chosen_) out += (out.empty() ? "" : " ") + std::string(name_of(fault));
  return out.empty() ? "none" : out;
}

bool Storm::planted(std::string_view name) { return name == plant_; }

bool Storm::rarely(std::string_view name, double chance) {
  if (calm_ || !begun_ || !has(Fault::rare)) return false;
  auto known = rare_points_.find(name);
  if (known == rare_points_.end()) {
    const auto point = std::string(name);
    known = rare_points_.emplace(point, world_.random("rare/" + point).chance(0.25)).first;
  }
  if (!known->second || !rare_.chance(chance)) return false;
  ++done_;
  if (on_fault) said("rare: " + std::string(name));
  return true;
}

// ---- how often ----------------------------------------------------------------------------------------------------------------------

Duration Storm::between(Duration min, Duration max) {
  return min + Duration(static_cast<Duration::rep>(random_.below(static_cast<std::uint64_t>((max - min).count()) + 1)));
}

void Storm::later(Duration after, std::function<void()> call) {
  world_.at(world_.now() + after, [this, call = std::move(call)] {
    if (!calm_) call();
  });
}

void Storm::each(Fault fault, Duration mean, void (Storm::*strike)()) {
  if (!has(fault)) return;
  const auto wait = Duration(static_cast<Duration::rep>(-std::log(1.0 - random_.uniform()) * static_cast<double>(mean.count())));
  later(wait + 10ms, [this, fault, mean, strike] {
    ++done_;
    (this->*strike)();
    each(fault, mean, strike);
  });
}

void Storm::begin() {
  begun_ = true;
  if (has(Fault::delay)) {
    for (const auto& a : cluster_.names()) {
      for (const auto& b : cluster_.names()) {
        if (a != b && random_.chance(0.3)) cluster_.lag(a, b, between(0ms, 80ms));
      }
    }
  }
  const auto pace = 0.5 + 1.5 * random_.uniform();
  const auto mean = [pace](Duration about) { return std::chrono::duration_cast<Duration>(about * pace); };
  each(Fault::reset, mean(6s), &Storm::reset);
  each(Fault::one_way, mean(20s), &Storm::one_way);
  each(Fault::partition, mean(25s), &Storm::partition);
  each(Fault::clog, mean(8s), &Storm::clog);
  each(Fault::swizzle, mean(40s), &Storm::swizzle);
  each(Fault::power, mean(15s), &Storm::power);
  each(Fault::process, mean(15s), &Storm::process);
  each(Fault::worker, mean(12s), &Storm::worker);
  each(Fault::slow_disk, mean(25s), &Storm::slow_disk);
  each(Fault::full_disk, mean(40s), &Storm::full_disk);
  each(Fault::skew, mean(20s), &Storm::skew);
}

void Storm::said(const std::string& what) {
  if (on_fault) on_fault(what);
}

const std::string& Storm::somebody() { return cluster_.names()[random_.below(cluster_.names().size())]; }

std::pair<std::string, std::string> Storm::some_pair() {
  const auto& a = somebody();
  const auto& b = somebody();
  return {a, b};
}

// ---- the network --------------------------------------------------------------------------------------------------------------------

void Storm::reset() {
  const auto [a, b] = some_pair();
  if (a == b) return;
  said(format("the connection of {} and {} is reset", a, b));
  world_.reset(a, b);
}

void Storm::one_way() {
  const auto [a, b] = some_pair();
  if (a == b) return;
  said(format("what {} sends {} vanishes", a, b));
  cluster_.cut(a, b);
  later(between(200ms, 12s), [this, from = a, to = b] { cluster_.heal(from, to); });
}

void Storm::partition() {
  std::vector<std::string> inside, outside;
  for (const auto& name : cluster_.names()) (random_.chance(0.4) ? inside : outside).push_back(name);
  if (inside.empty() || outside.empty()) return;
  said(format("{} machines are cut off, {} among them", inside.size(), inside.front()));
  const auto together = between(200ms, 15s);
  for (const auto& a : inside) {
    for (const auto& b : outside) {
      cluster_.cut(a, b);
      cluster_.cut(b, a);
      // Not all heal at once.
      later(together + between(0ms, 800ms), [this, a, b] { cluster_.heal(a, b); });
    }
  }
}

void Storm::clog() {
  const auto [a, b] = some_pair();
  if (a == b) return;
  const auto until = between(50ms, 4s);
  said(format("{} to {} is clogged for {} ms", a, b, until / 1ms));
  cluster_.clog(a, b, world_.now() + until);
}

// Clogged one after the other, unclogged in another order: what waits for whom is turned around.
void Storm::swizzle() {
  std::vector<std::string> chosen;
  for (const auto& name : cluster_.names()) {
    if (random_.chance(0.6)) chosen.push_back(name);
  }
  auto opened = chosen;
  std::shuffle(opened.begin(), opened.end(), random_);
  said(format("{} machines are clogged and unclogged", chosen.size()));
  const auto closing = between(100ms, 2s);
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const auto place = static_cast<std::size_t>(std::ranges::find(opened, chosen[i]) - opened.begin());
    const auto until = world_.now() + closing * static_cast<Duration::rep>(chosen.size()) + closing * static_cast<Duration::rep>(place + 1);
    later(closing * static_cast<Duration::rep>(i), [this, name = chosen[i], until] {
      for (const auto& other : cluster_.names()) {
        if (other == name) continue;
        cluster_.clog(name, other, until);
        cluster_.clog(other, name, until);
      }
    });
  }
}

// ---- machines -----------------------------------------------------------------------------------------------------------------------

void Storm::down(const std::string& machine, bool power) {
  said(format("{} of {}", power ? "power failure" : "end of the process", machine));
  power ? cluster_.power_off(machine) : cluster_.kill(machine);
  later(between(100ms, 8s), [this, machine] {
    said(format("{} starts", machine));
    cluster_.restart(machine);
  });
}

// Now, or after some more steps: those of the same moment are the interesting ones.
void Storm::power() { armed_ = Armed{somebody(), true, world_.steps() + random_.below(60)}; }
void Storm::process() { armed_ = Armed{somebody(), false, world_.steps() + random_.below(60)}; }

void Storm::between_steps() {
  if (!armed_ || world_.steps() < armed_->step || calm_) return;
  const auto strike = *std::exchange(armed_, std::nullopt);
  if (cluster_.up(strike.machine)) down(strike.machine, strike.power);
}

void Storm::worker() {
  const auto workers = cluster_.workers();
  if (workers.empty()) return;
  const auto& worker = workers[random_.below(workers.size())];
  said(format("end of worker {}", worker));
  cluster_.kill_worker(worker);
}

void Storm::slow_disk() {
  const auto& name = somebody();
  const auto factor = 5.0 + 200.0 * random_.uniform();
  said(format("the disk of {} is {} times slower", name, static_cast<int>(factor)));
  cluster_.slow(name, factor);
  later(between(500ms, 10s), [this, name] { cluster_.slow(name, 1); });
}

void Storm::full_disk() {
  const auto& name = somebody();
  said(format("the disk of {} is full", name));
  cluster_.set_full(name, true);
  later(between(500ms, 10s), [this, name] { cluster_.set_full(name, false); });
}

void Storm::skew() {
  const auto& name = somebody();
  const auto by = between(0s, 600s) - 300s;
  said(format("the clock of {} is {} s off", name, by / 1s));
  world_.skew(name, by);
}

void Storm::calm() {
  said("calm");
  calm_ = true;
  armed_.reset();
  auto& options = world_.options();
  options.loss = 0;
  options.uneven = 0;
  for (const auto& a : cluster_.names()) {
    cluster_.slow(a, 1);
    cluster_.set_full(a, false);
    for (const auto& b : cluster_.names()) {
      if (a == b) continue;
      cluster_.clog(a, b, world_.now());
      cluster_.lag(a, b, Duration(0));
      cluster_.heal(a, b);
    }
  }
  for (const auto& name : cluster_.names()) cluster_.restart(name);
}

}  // namespace falaj::simulations
