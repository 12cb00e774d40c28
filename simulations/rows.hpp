// Rows that clients write and read all the while, and the oracle over them: what was acknowledged is never lost, and what is read was
// written by somebody.
#pragma once
#include <map>
#include <string>

#include "simulations/client.hpp"

namespace falaj::simulations {

inline constexpr std::string_view kLiveView = "live";
inline constexpr std::string_view kPurpose = "scoring";

class Rows {
 public:
  Rows(Cluster& cluster, Client& client, Verdict& verdict);
  void begin();  // writes and reads from now on
  void stop() { stopped_ = true; }
  // Reads every row through every machine, until all that was acknowledged was seen everywhere.
  void read_all();
  [[nodiscard]] bool all_read() const { return begun_ && unread_ == 0; }
  [[nodiscard]] std::string missing() const { return trouble_; }
  [[nodiscard]] std::uint64_t acknowledged() const { return acknowledged_; }
  [[nodiscard]] std::uint64_t personal_reads() const { return personal_reads_; }

 private:
  struct Entity {
    std::map<std::int64_t, std::int64_t> written;  // value by event time, whether or not acknowledged
    std::int64_t acknowledged = 0;                 // event time
  };
  void next();
  void write();
  void read(const std::string& machine, std::vector<std::string> entities, std::function<void(bool)> done);
  void check(const std::string& entity, std::int64_t at_least, std::int64_t event_time, std::int64_t value);
  void read_from(const std::string& machine);
  std::string somebody();

  Cluster& cluster_;
  Client& client_;
  Verdict& verdict_;
  Random random_;
  std::map<std::string, Entity> entities_;
  std::int64_t clock_ = 1'000'000;
  bool stopped_ = false;
  bool begun_ = false;
  std::size_t unread_ = 0;
  std::string trouble_;
  std::uint64_t acknowledged_ = 0, personal_reads_ = 0;
};

}  // namespace falaj::simulations
