#include "actors/features/snapshot.hpp"

#include <cstring>

#include "actors/features/values.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"

namespace falaj::features {

// ---- writing -----------------------------------------------------------------------------------------------------------------

SnapshotWriter::SnapshotWriter(messages::FeatureView::Reader view) {
  const auto size = view.totalSize();
  emit(Message::build<messages::SnapshotHeader>(
      [&](messages::SnapshotHeader::Builder out) {
        out.setFormatVersion(kSnapshotFormat);
        out.setView(view);
      },
      size.wordCount + 16));
}

void SnapshotWriter::emit(const Message& message) {
  const auto bytes = message.bytes();
  if (taken_ > 0) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(taken_));
    taken_ = 0;
  }
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
}

void SnapshotWriter::add(messages::Row::Reader row) {
  Held held{std::string(text(row.getEntity())), row.getEventTimeNs(), {}};
  const auto values = row.getValues();
  held.values.reserve(values.size());
  // Rows of many long texts must not make a block that is no message any more. Counted from the values, not from the message they
  // came in, whose layout says nothing about them.
  held_bytes_ += 64 + held.entity.size();
  for (const auto value : values) {
    held_bytes_ += 24;
    if (value.isString()) held_bytes_ += value.getString().size() + 8;
    held.values.push_back(read_value(value));
  }
  block_.push_back(std::move(held));
  ++rows_;
  if (block_.size() >= limits::kRowsPerBatch || held_bytes_ >= limits::kChunkBytes) flush();
}

void SnapshotWriter::flush() {
  if (block_.empty()) return;
  emit(Message::build<messages::SnapshotBlock>(
      [this](messages::SnapshotBlock::Builder out) {
        auto rows = out.initRows(static_cast<unsigned>(block_.size()));
        for (unsigned i = 0; i < rows.size(); ++i) {
          const auto& held = block_[i];
          rows[i].setEntity(held.entity);
          rows[i].setEventTimeNs(held.event_time_ns);
          auto values = rows[i].initValues(static_cast<unsigned>(held.values.size()));
          for (unsigned k = 0; k < values.size(); ++k) write_value(values[k], held.values[k]);
        }
      },
      held_bytes_ / sizeof(capnp::word) + 16));
  block_.clear();
  held_bytes_ = 0;
}

void SnapshotWriter::finish() {
  flush();
  finished_ = true;
}

Bytes SnapshotWriter::take(std::size_t limit) {
  if (ready() < limit && !finished_) return {};
  const std::size_t n = std::min(limit, ready());
  const auto begin = buffer_.begin() + static_cast<std::ptrdiff_t>(taken_);
  Bytes out(begin, begin + static_cast<std::ptrdiff_t>(n));
  taken_ += n;
  return out;
}

// ---- reading -----------------------------------------------------------------------------------------------------------------

namespace {

Error cut_off() { return error(ErrorCode::corrupt, "snapshot: it is cut off; fetch it again"); }

// Size of the first message in `bytes` with its segment table; 0: more bytes are needed to know.
Result<std::size_t> framed_size(ByteView bytes) {
  const auto word = [&](std::size_t at) {
    std::uint32_t value = 0;
    std::memcpy(&value, bytes.data() + at * 4, 4);
    return value;
  };
  if (bytes.size() < 8) return std::size_t{0};
  const std::uint64_t segments = std::uint64_t{word(0)} + 1;
  if (segments > limits::kSegmentsMax) return error(ErrorCode::corrupt, "snapshot: a block with too many segments");
  const std::size_t table = (segments / 2 + 1) * 8;
  if (bytes.size() < table) return std::size_t{0};
  std::uint64_t size = table;
  for (std::size_t i = 1; i <= segments; ++i) size += std::uint64_t{word(i)} * 8;
  if (size > limits::kMessageBytesMax) return error(ErrorCode::corrupt, format("snapshot: a block of {} bytes", size));
  return static_cast<std::size_t>(size);
}

}  // namespace

Status SnapshotReader::message(ByteView bytes) {
  if (!header_seen_) {
    FALAJ_ASSIGN(const auto header, message_from_bytes(TypeId(capnp::typeId<messages::SnapshotHeader>()), bytes));
    FALAJ_ASSIGN(const auto view, header.open<messages::SnapshotHeader>());
    if (view->getFormatVersion() > kSnapshotFormat) {
      return error(ErrorCode::unimplemented, format("snapshot: format {}, but this build knows up to {}; upgrade this node",
                                                    view->getFormatVersion(), kSnapshotFormat));
    }
    FALAJ_TRY(check_view(view->getView()));
    header_seen_ = true;
    fields_ = view->getView().getField().size();
    return on_header_ ? on_header_(view->getView()) : Status{};
  }
  FALAJ_ASSIGN(const auto block, message_from_bytes(TypeId(capnp::typeId<messages::SnapshotBlock>()), bytes));
  FALAJ_ASSIGN(const auto view, block.open<messages::SnapshotBlock>());
  SnapshotRow out;
  for (const auto row : view->getRows()) {
    if (row.getValues().size() != fields_) return error(ErrorCode::corrupt, "snapshot: a row does not fit the view in its header");
    out.entity = text(row.getEntity());
    out.event_time_ns = row.getEventTimeNs();
    out.values.clear();
    for (const auto value : row.getValues()) out.values.push_back(read_value(value));
    ++rows_;
    if (on_row_) FALAJ_TRY(on_row_(out));
  }
  return {};
}

Status SnapshotReader::push(ByteView bytes) {
  pending_.insert(pending_.end(), bytes.begin(), bytes.end());
  std::size_t at = 0;
  for (;;) {
    const auto rest = ByteView(pending_).subspan(at);
    FALAJ_ASSIGN(const std::size_t size, framed_size(rest));
    if (size == 0 || rest.size() < size) break;
    FALAJ_TRY(message(rest.first(size)));
    at += size;
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(at));
  return {};
}

Status SnapshotReader::finish() {
  if (!header_seen_ || !pending_.empty()) return cut_off();
  return {};
}

Result<SnapshotTable> read_snapshot(ByteView content) {
  SnapshotTable table;
  SnapshotReader reader(
      [&](messages::FeatureView::Reader view) -> Status {
        table.view = Message::copy_of<messages::FeatureView>(view);
        table.columns.resize(view.getField().size());
        return {};
      },
      [&](const SnapshotRow& row) -> Status {
        table.entities.emplace_back(row.entity);
        table.event_times_ns.push_back(row.event_time_ns);
        for (std::size_t i = 0; i < row.values.size(); ++i) table.columns[i].push_back(row.values[i]);
        return {};
      });
  FALAJ_TRY(reader.push(content));
  FALAJ_TRY(reader.finish());
  return table;
}

}  // namespace falaj::features
