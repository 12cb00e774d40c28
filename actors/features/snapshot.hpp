// The content of a training snapshot: a SnapshotHeader, then SnapshotBlocks, each a message in stream framing. The same rows in
// the same order under the same view give the same bytes: blocks are cut by counting rows and bytes, and nothing in
// them depends on when or how the rows were read. Writer and reader are pure and hold one block.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "messages/features.capnp.h"
#include "messages/message.hpp"
#include "runtime/base/result.hpp"
#include "storage/feature_rows.hpp"

namespace falaj::features {

constexpr std::uint32_t kSnapshotFormat = 1;
constexpr std::string_view kSnapshotMediaType = "application/vnd.falaj.snapshot";

class SnapshotWriter {
 public:
  explicit SnapshotWriter(messages::FeatureView::Reader view);
  void add(messages::Row::Reader row);
  void finish();  // the last block
  [[nodiscard]] std::uint64_t rows() const { return rows_; }
  // What is ready, up to `limit` bytes; empty when there is less than that, unless finished.
  [[nodiscard]] std::size_t ready() const { return buffer_.size() - taken_; }
  [[nodiscard]] Bytes take(std::size_t limit);

 private:
  struct Held {
    std::string entity;
    std::int64_t event_time_ns = 0;
    std::vector<storage::FieldValue> values;
  };
  void flush();
  void emit(const Message& message);

  std::vector<Held> block_;
  std::size_t held_bytes_ = 0;
  bool finished_ = false;
  std::uint64_t rows_ = 0;
  Bytes buffer_;
  std::size_t taken_ = 0;
};

struct SnapshotRow {
  std::string_view entity;  // borrowed: valid during the visit
  std::int64_t event_time_ns = 0;
  std::vector<storage::FieldValue> values;  // in the order of the view's fields
};

// Push bytes in pieces of any size, in order.
class SnapshotReader {
 public:
  using OnHeader = std::function<Status(messages::FeatureView::Reader)>;
  using OnRow = std::function<Status(const SnapshotRow&)>;
  SnapshotReader(OnHeader on_header, OnRow on_row) : on_header_(std::move(on_header)), on_row_(std::move(on_row)) {}
  // `corrupt`: not a snapshot; `unimplemented`: a newer format. An error of a callback ends it too.
  Status push(ByteView bytes);
  Status finish();  // corrupt: it was cut off
  [[nodiscard]] std::uint64_t rows() const { return rows_; }

 private:
  Status message(ByteView bytes);

  OnHeader on_header_;
  OnRow on_row_;
  Bytes pending_;
  bool header_seen_ = false;
  std::size_t fields_ = 0;
  std::uint64_t rows_ = 0;
};

// All of a small snapshot at once.
struct SnapshotTable {
  Message view;  // a FeatureView
  std::vector<std::string> entities;
  std::vector<std::int64_t> event_times_ns;
  std::vector<std::vector<storage::FieldValue>> columns;  // by field of the view, then row
};
Result<SnapshotTable> read_snapshot(ByteView content);

}  // namespace falaj::features
