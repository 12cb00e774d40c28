// The faults of one run: a random subset of all kinds with random rates, drawn from the seed ("swarm"), until calm() mends everything.
#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "runtime/base/fault.hpp"
#include "simulations/cluster.hpp"

namespace falaj::simulations {

enum class Fault : std::uint8_t {
  delay,      // links slow for good, each direction by itself
  loss,       // connections break while sending
  reset,      // connections break, and each end notices in its own time
  one_way,    // what one machine sends another vanishes
  partition,  // a group of machines is cut off
  clog,       // messages of one direction arrive late
  swizzle,    // machines are clogged one by one, and unclogged in another order
  power,      // machines lose their power, and what was not synced
  process,    // node processes end
  worker,     // worker processes end
  slow_disk,  // work on the pool takes long
  full_disk,  // nothing can be written
  skew,       // wall clocks jump
  rare,       // fault points of production code that stand for what is allowed but rare
  count_
};
std::string_view name_of(Fault fault) noexcept;

class Storm final : public fault::Injector {
 public:
  Storm(Cluster& cluster, std::string plant);
  ~Storm() override;

  void begin();  // after the machines were started
  void calm();   // everything is mended and every machine runs; nothing more happens
  // Between two steps of the world: crashes that were set for a certain step, so that they fall between any two messages.
  void between_steps();
  [[nodiscard]] bool has(Fault fault) const { return chosen_.contains(fault); }
  [[nodiscard]] std::string describe() const;
  [[nodiscard]] std::uint64_t faults() const { return done_; }
  std::function<void(const std::string&)> on_fault;  // for traces

  bool planted(std::string_view name) override;
  bool rarely(std::string_view name, double chance) override;

 private:
  void each(Fault fault, Duration mean, void (Storm::*strike)());
  void reset();
  void one_way();
  void partition();
  void clog();
  void swizzle();
  void power();
  void process();
  void worker();
  void slow_disk();
  void full_disk();
  void skew();
  void down(const std::string& machine, bool power);
  void later(Duration after, std::function<void()> call);  // unless calm by then
  void said(const std::string& what);
  const std::string& somebody();
  std::pair<std::string, std::string> some_pair();
  Duration between(Duration min, Duration max);

  Cluster& cluster_;
  SimWorld& world_;
  Random random_, rare_;
  const std::string plant_;
  fault::Injector* before_;
  std::set<Fault> chosen_;
  bool begun_ = false, calm_ = false;
  struct Armed {
    std::string machine;
    bool power = true;
    std::uint64_t step = 0;
  };
  std::optional<Armed> armed_;
  std::map<std::string, bool, std::less<>> rare_points_;  // whether each is active in this run
  std::uint64_t done_ = 0;
};

}  // namespace falaj::simulations
