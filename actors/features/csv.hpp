// CSV (RFC 4180) onto a feature view. Streaming, bounded, pure: no actors, no files of its own.
//
// The first record is the header. Columns are found by name: the view's entity, its event time where it names one, and its
// fields; others are ignored and noted. Errors say "file:line:column: field 'x': what; remedy", several at once, and
// whoever sends rows reads the file twice: check_csv() first, so that a bad file changes nothing.
//
// Ways to get hurt:
//  - A ByteSource is used up by one pass; make a new one for the second.
//  - Columns count bytes from 1, lines count from 1, and a quoted field may span lines: an error names where its field began.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "messages/message.hpp"
#include "messages/resources.capnp.h"
#include "runtime/base/limits.hpp"
#include "runtime/base/result.hpp"
#include "storage/feature_rows.hpp"

namespace falaj::features {

// Fills as much of the span as there is; 0 at the end.
using ByteSource = std::move_only_function<Result<std::size_t>(std::span<char>)>;
ByteSource bytes_of(std::string_view text);  // borrows
Result<ByteSource> bytes_of_file(const std::string& path);

// ---- records -----------------------------------------------------------------------------------------------------------------

struct CsvField {
  std::string text;
  bool quoted = false;
  std::uint64_t line = 0;    // where it begins
  std::uint64_t column = 0;  // in bytes
};

struct CsvBounds {
  std::size_t field_bytes = limits::kCsvFieldBytesMax;
  std::size_t columns = limits::kCsvColumnsMax;
};

struct CsvFault {
  std::uint64_t line = 0;
  std::uint64_t column = 0;
  std::string what;
  bool fatal = false;  // records cannot be told apart after it
};

// Cuts bytes into records. Knows nothing of headers or types. A byte order mark at the start is skipped, CRLF and LF both end a
// record, empty lines are passed over.
class CsvRecords {
 public:
  explicit CsvRecords(ByteSource source, CsvBounds bounds = {}, char separator = ',');
  enum class Next : std::uint8_t { record, fault, end };
  // fault: the record is unusable; after a fatal one only `end` follows. An error: the source failed.
  Result<Next> next();
  [[nodiscard]] std::span<const CsvField> fields() const { return {fields_.data(), count_}; }
  [[nodiscard]] const CsvFault& fault() const { return fault_; }
  [[nodiscard]] std::uint64_t line() const { return record_line_; }  // where the record began
  [[nodiscard]] std::uint64_t bytes() const { return consumed_; }

 private:
  bool fill();  // false: the end, or the source failed
  int peek() { return at_ < filled_ || fill() ? static_cast<unsigned char>(buffer_[at_]) : -1; }
  void take();
  void end_line(int c);
  void skip_mark();
  void read_record();
  void read_field(CsvField& field);
  void read_quoted(CsvField& field);
  void read_plain(CsvField& field);
  void append(CsvField& field, std::string_view piece);
  void skip_line();
  void blame(std::uint64_t line, std::uint64_t column, std::string what, bool fatal = false);

  ByteSource source_;
  CsvBounds bounds_;
  char separator_;
  std::vector<char> buffer_;
  std::size_t at_ = 0;
  std::size_t filled_ = 0;
  bool source_ended_ = false;
  bool started_ = false;
  bool over_ = false;
  bool bad_ = false;
  Status source_status_;
  std::uint64_t consumed_ = 0;
  std::uint64_t line_ = 1;
  std::uint64_t column_ = 1;
  std::uint64_t record_line_ = 1;
  std::vector<CsvField> fields_;
  std::size_t count_ = 0;
  CsvFault fault_;
};

// ---- rows of a view ---------------------------------------------------------------------------------------------------------

struct CsvOptions {
  std::vector<std::string> missing = {"NA", "?", "null"};  // besides the empty field; a quoted one is text as it stands
  std::size_t errors_max = 20;                             // 1: stop at the first
  char separator = ',';
  CsvBounds bounds;
};

struct CsvRow {
  std::string entity;
  std::int64_t event_time_ns = 0;           // 0: none in the file
  std::vector<storage::FieldValue> values;  // in the order of the view's fields
  std::uint64_t line = 0;
};

struct CsvSummary {
  std::uint64_t rows = 0;
  std::uint64_t bytes = 0;
  std::uint64_t missing = 0;         // values
  std::vector<std::string> ignored;  // columns that the view does not know
};

using CsvVisitor = std::function<Status(CsvRow&& row)>;  // an error ends the reading with it
using CsvProgress = std::function<void(std::uint64_t rows, std::uint64_t bytes)>;

// Reads all of it. `invalid` with one line for each error (at most errors_max) when any row is bad: `visit` has then seen the good
// rows before and between them. `name` is the file's name in errors.
Result<CsvSummary> read_csv(ByteSource source, std::string_view name, messages::FeatureView::Reader view, const CsvOptions& options,
                            const CsvVisitor& visit, const CsvProgress& progress = {});
// The first of two passes: the same without rows.
Result<CsvSummary> check_csv(ByteSource source, std::string_view name, messages::FeatureView::Reader view, const CsvOptions& options = {},
                             const CsvProgress& progress = {});

// A PutRows message for the second pass, of at most limits::kRowsPerBatch rows.
Message put_rows(std::string_view tenant, std::string_view view, std::span<const CsvRow> rows);

// Unix seconds (with a fraction, or not) or RFC 3339 with a time zone.
Result<std::int64_t> parse_time_ns(std::string_view text);

}  // namespace falaj::features
