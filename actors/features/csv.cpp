#include "actors/features/csv.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "runtime/base/format.hpp"

namespace falaj::features {

namespace {
constexpr std::size_t kBufferBytes = 1U << 16;
}

ByteSource bytes_of(std::string_view text) {
  return [text](std::span<char> out) mutable -> Result<std::size_t> {
    const std::size_t n = std::min(out.size(), text.size());
    std::ranges::copy(text.substr(0, n), out.begin());
    text.remove_prefix(n);
    return n;
  };
}

Result<ByteSource> bytes_of_file(const std::string& path) {
  struct Close {
    void operator()(std::FILE* file) const { static_cast<void>(std::fclose(file)); }  // only read from: nothing to lose
  };
  std::error_code none;
  if (std::filesystem::is_directory(path, none)) return invalid(format("{}: a directory; give a CSV file", path));
  std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (!file) return error(ErrorCode::not_found, format("{}: cannot be opened for reading", path));
  return ByteSource([file = std::move(file), path](std::span<char> out) -> Result<std::size_t> {
    const std::size_t n = std::fread(out.data(), 1, out.size(), file.get());
    if (n == 0 && std::ferror(file.get()) != 0) return failed(format("{}: read error", path));
    return n;
  });
}

CsvRecords::CsvRecords(ByteSource source, CsvBounds bounds, char separator)
    : source_(std::move(source)), bounds_(bounds), separator_(separator), buffer_(kBufferBytes) {}

bool CsvRecords::fill() {
  if (source_ended_) return false;
  auto got = source_(buffer_);
  at_ = filled_ = 0;
  if (!got.has_value() || *got == 0) {
    source_ended_ = true;
    if (!got.has_value()) source_status_ = std::move(got).error();
    return false;
  }
  filled_ = *got;
  consumed_ += filled_;
  return true;
}

void CsvRecords::take() {
  ++at_;
  ++column_;
}

void CsvRecords::end_line(int c) {
  take();
  if (c == '\r' && peek() == '\n') take();
  ++line_;
  column_ = 1;
}

void CsvRecords::blame(std::uint64_t line, std::uint64_t column, std::string what, bool fatal) {
  if (!bad_) fault_ = CsvFault{line, column, std::move(what), fatal};
  bad_ = true;
  over_ = over_ || fatal;
}

void CsvRecords::skip_mark() {
  started_ = true;
  static constexpr std::string_view kMark = "\xEF\xBB\xBF";
  if (peek() < 0) return;
  if (filled_ - at_ >= kMark.size() && std::string_view(buffer_.data() + at_, kMark.size()) == kMark) at_ += kMark.size();
}

void CsvRecords::skip_line() {
  for (int c = peek(); c >= 0 && c != '\n' && c != '\r'; c = peek()) take();
}

// Too much is counted, not kept: a field that never ends must not fill the memory.
void CsvRecords::append(CsvField& field, std::string_view piece) {
  if (field.text.size() + piece.size() > bounds_.field_bytes) {
    return blame(
        field.line, field.column,
        format("a field of more than {} bytes; shorten it, or look for a quote that is not closed before it", bounds_.field_bytes));
  }
  field.text.append(piece);
}

void CsvRecords::read_quoted(CsvField& field) {
  take();
  for (;;) {
    if (peek() < 0) return blame(field.line, field.column, "this quote is not closed before the end of the file; close or double it", true);
    const char* begin = buffer_.data() + at_;
    const char* end = buffer_.data() + filled_;
    const char* stop = std::find_if(begin, end, [](char c) { return c == '"' || c == '\n' || c == '\r'; });
    append(field, {begin, stop});
    at_ += static_cast<std::size_t>(stop - begin);
    column_ += static_cast<std::uint64_t>(stop - begin);
    if (stop == end) continue;
    if (*stop != '"') {
      // Kept as it stands, CRLF included; only the place moves on.
      const int c = static_cast<unsigned char>(*stop);
      append(field, {stop, 1});
      take();
      if (c == '\r' && peek() == '\n') {
        append(field, "\n");
        take();
      }
      ++line_;
      column_ = 1;
      continue;
    }
    take();
    if (peek() != '"') break;
    append(field, "\"");
    take();
  }
  const int c = peek();
  if (c < 0 || c == separator_ || c == '\n' || c == '\r') return;
  blame(line_, column_, "text after a closing quote; double quotes that belong to the text");
  skip_line();
}

void CsvRecords::read_plain(CsvField& field) {
  for (;;) {
    if (peek() < 0) return;
    const char* begin = buffer_.data() + at_;
    const char* end = buffer_.data() + filled_;
    const char* stop = std::find_if(begin, end, [this](char c) { return c == separator_ || c == '\n' || c == '\r' || c == '"'; });
    append(field, {begin, stop});
    at_ += static_cast<std::size_t>(stop - begin);
    column_ += static_cast<std::uint64_t>(stop - begin);
    if (stop == end) continue;
    if (*stop != '"') return;
    blame(line_, column_, "a quote inside an unquoted field; quote the whole field and double this one");
    return skip_line();
  }
}

void CsvRecords::read_field(CsvField& field) {
  field.text.clear();
  field.line = line_;
  field.column = column_;
  field.quoted = peek() == '"';
  if (field.quoted) {
    read_quoted(field);
  } else {
    read_plain(field);
  }
  if (bad_) return;
  if (!is_utf8(field.text)) blame(field.line, field.column, "text that is not UTF-8; save the file as UTF-8");
  if (field.text.find('\0') != std::string::npos) blame(field.line, field.column, "a NUL byte; this is no text file");
}

void CsvRecords::read_record() {
  for (;;) {
    if (count_ == bounds_.columns) return blame(line_, column_, format("more than {} columns", bounds_.columns), true);
    if (count_ == fields_.size()) fields_.emplace_back();
    read_field(fields_[count_++]);
    if (over_) return;
    const int c = peek();
    if (c == separator_) {
      take();
      continue;
    }
    if (c >= 0) end_line(c);
    return;
  }
}

Result<CsvRecords::Next> CsvRecords::next() {
  if (over_) return Next::end;
  if (!started_) skip_mark();
  for (int c = peek(); c == '\n' || c == '\r'; c = peek()) end_line(c);
  if (peek() < 0) {
    over_ = true;
    FALAJ_TRY(source_status_);
    return Next::end;
  }
  count_ = 0;
  bad_ = false;
  record_line_ = line_;
  read_record();
  if (!source_status_.has_value()) {
    over_ = true;
    return source_status_.error();
  }
  return bad_ ? Next::fault : Next::record;
}

}  // namespace falaj::features
