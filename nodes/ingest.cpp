#include "nodes/ingest.hpp"

#include <condition_variable>
#include <mutex>
#include <optional>

#include "actors/features/front.hpp"
#include "nodes/progress.hpp"
#include "runtime/base/limits.hpp"

namespace falaj::nodes {
namespace {

constexpr std::size_t kBatchesInFlight = 8;

// Keeps a few batches on their way; the first error ends it.
class BatchSender {
 public:
  explicit BatchSender(Client& client) : client_(client) {}
  Status send(const Message& batch) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return in_flight_ < kBatchesInFlight || failure_; });
      if (failure_) return *failure_;
      ++in_flight_;
    }
    client_.ask_async(features::kFront, batch, std::chrono::seconds(30), [this](const Result<Message>& answer) { done(answer); });
    return {};
  }
  Status finish() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return in_flight_ == 0; });
    if (failure_) return *failure_;
    return {};
  }

 private:
  void done(const Result<Message>& answer) {
    const std::scoped_lock lock(mutex_);
    --in_flight_;
    if (!answer && !failure_) failure_ = answer.error();
    changed_.notify_all();  // under the lock: finish() may drop this object as soon as it is free
  }
  Client& client_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t in_flight_ = 0;
  std::optional<Error> failure_;
};

}  // namespace

Result<features::CsvSummary> ingest_csv(Client& client, messages::FeatureView::Reader view, const std::string& file) {
  const auto name = text(view.getName());
  const auto tenant = text(view.getOwner().getTenant());
  FALAJ_ASSIGN(auto first, features::bytes_of_file(file));
  FALAJ_ASSIGN(const auto summary, features::check_csv(std::move(first), file, view));
  FALAJ_ASSIGN(auto second, features::bytes_of_file(file));
  BatchSender sender(client);
  Progress progress("ingest", summary.rows);
  std::vector<features::CsvRow> rows;
  std::uint64_t sent = 0;
  const auto flush = [&]() -> Status {
    if (rows.empty()) return {};
    FALAJ_TRY(sender.send(features::put_rows(tenant, name, rows)));
    sent += rows.size();
    progress.at(sent);
    rows.clear();
    return {};
  };
  const auto read = features::read_csv(std::move(second), file, view, {}, [&](features::CsvRow&& row) -> Status {
    rows.push_back(std::move(row));
    return rows.size() == limits::kRowsPerBatch ? flush() : Status{};
  });
  auto flushed = read ? flush() : Status(read.error());
  auto finished = sender.finish();  // also after an error: the callbacks point into the sender
  FALAJ_TRY(std::move(flushed));
  FALAJ_TRY(std::move(finished));
  progress.end();
  return summary;
}

}  // namespace falaj::nodes
