#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "actors/features/csv.hpp"
#include "actors/features/snapshot.hpp"
#include "actors/features/values.hpp"
#include "messages/features.capnp.h"
#include "runtime/base/random.hpp"
#include "tests/actors/features_views.hpp"

namespace falaj::features {
namespace {

using test::make_view;

const Message& people() {
  static const Message view = make_view(
      "people", "id", {{"age", "int64", true}, {"score", "float32"}, {"paid", "float64"}, {"member", "bool"}, {"city", "string"}});
  return view;
}

Result<CsvSummary> read(std::string_view text, std::vector<CsvRow>* rows = nullptr, const CsvOptions& options = {},
                        const Message& view = people()) {
  return read_csv(bytes_of(text), "people.csv", *view.view<messages::FeatureView>(), options, [rows](CsvRow&& row) -> Status {
    if (rows != nullptr) rows->push_back(std::move(row));
    return {};
  });
}

constexpr std::string_view kHeader = "id,age,score,paid,member,city\n";

std::string error_of(std::string_view lines) {
  const auto result = read(std::string(kHeader) + std::string(lines));
  return result.has_value() ? "" : result.error().message;
}

TEST(Csv, ReadsTypesMissingValuesQuotesAndLineEndings) {
  std::vector<CsvRow> rows;
  const auto summary = read(
      "\xEF\xBB\xBF"
      "city,id,age,score,paid,member,extra\r\n"
      "\"Al Ain, \"\"oasis\"\"\nnorth\",a1,+41, 0.5 ,1e300,TRUE,x\r\n"
      "\r\n"
      "NA,a2,7,?,null,,\n"
      "\"NA\",a3,-9223372036854775808,nan,-0,0,",
      &rows);
  ASSERT_TRUE(summary.has_value()) << to_string(summary.error());
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(summary->rows, 3U);
  EXPECT_EQ(summary->ignored, std::vector<std::string>{"extra"});
  EXPECT_EQ(rows[0].entity, "a1");
  EXPECT_EQ(rows[0].line, 2U);
  const std::vector<storage::FieldValue> first{std::int64_t{41}, 0.5F, 1e300, true, std::string("Al Ain, \"oasis\"\nnorth")};
  EXPECT_EQ(rows[0].values, first);
  const std::vector<storage::FieldValue> second{std::int64_t{7}, {}, {}, {}, {}};
  EXPECT_EQ(rows[1].values, second);
  EXPECT_EQ(rows[1].line, 5U);
  EXPECT_EQ(std::get<std::string>(rows[2].values[4]), "NA") << "a quoted field is text as it stands";
  EXPECT_TRUE(std::holds_alternative<std::monostate>(rows[2].values[1])) << "NaN is missing";
  EXPECT_EQ(std::get<std::int64_t>(rows[2].values[0]), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(summary->missing, 5U);
}

TEST(Csv, BadRowsNamePlaceFieldAndRemedy) {
  struct Case {
    std::string lines;
    std::string wanted;
  };
  const std::string huge(limits::kCsvFieldBytesMax + 1, 'x');
  const std::vector<Case> cases = {
      {"a,1,2,3,true\n", "people.csv:2:9: 5 columns, but the header has 6"},
      {"a,1,2,3,true,x,y\n", "people.csv:2:16: 7 columns, but the header has 6; quote a field that holds the separator"},
      {"a,4x,2,3,true,x\n", "people.csv:2:3: field 'age': '4x' is not a whole number of 64 bits"},
      {"a,4.0,2,3,true,x\n", "people.csv:2:3: field 'age': '4.0' is not a whole number"},
      {"a,99999999999999999999,2,3,true,x\n", "field 'age': '99999999999999999999' is not a whole number"},
      {"a,1,\"1,5\",3,true,x\n", "people.csv:2:5: field 'score': '1,5' is not a number; write the decimal point as '.'"},
      {"a,1,1e39,3,true,x\n", "field 'score': '1e39' is too large for float32; declare the field as float64"},
      {"a,1,inf,3,true,x\n", "field 'score': 'inf' is not finite"},
      {"a,1,2,1e999,true,x\n", "field 'paid': '1e999' is not a number"},
      {"a,1,2,3,maybe,x\n", "field 'member': 'maybe' is not true or false"},
      {"a,,2,3,true,x\n", "people.csv:2:3: field 'age': a value is required"},
      {",1,2,3,true,x\n", "people.csv:2:1: field 'id': the entity is empty"},
      {std::string(300, 'e') + ",1,2,3,true,x\n", "field 'id': an entity of 300 bytes; at most 256"},
      {"a,1,2,3,true," + huge + "\nb,1,2,3,true,x\n", "people.csv:2:14: a field of more than 65536 bytes"},
      {"a,1,2,3,true,\"" + huge + "\"\nb,2x,2,3,true,x\n", "people.csv:2:14: a field of more than 65536 bytes"},
      {"a,1,2,3,true,\"open\nb,1,2,3,true,x\n", "people.csv:2:14: this quote is not closed before the end of the file"},
      {"a,1,2,3,true,\"x\"y\n", "people.csv:2:17: text after a closing quote"},
      {"a,1,2,3,true,5\" pipe\n", "people.csv:2:15: a quote inside an unquoted field"},
      {"a,1,2,3,true,\xff\xfe\n", "people.csv:2:14: text that is not UTF-8; save the file as UTF-8"},
      {std::string("a,1,2,3,true,x\0y\n", 17), "a NUL byte"},
  };
  for (const auto& one : cases) {
    const auto message = error_of(one.lines);
    EXPECT_NE(message.find(one.wanted), std::string::npos)
        << one.lines.substr(0, 60) << "\n  got: " << message << "\n  wanted: " << one.wanted;
  }
  const auto both = error_of("a,1,2,3,true,\"" + huge + "\"\nb,2x,2,3,true,x\n");
  EXPECT_NE(both.find("people.csv:3:3: field 'age'"), std::string::npos) << "reading goes on after a bad record: " << both;
}

TEST(Csv, BadHeadersAreRefused) {
  const auto message = [](std::string_view text) {
    const auto result = read(text);
    return result.has_value() ? std::string("accepted") : result.error().message;
  };
  EXPECT_NE(message("").find("people.csv:1:1: the file is empty"), std::string::npos);
  EXPECT_NE(message("\n\n").find("the file is empty"), std::string::npos);
  EXPECT_NE(message("id,age,age,score,paid,member,city\n").find("people.csv:1:8: field 'age': this column is in the header twice"),
            std::string::npos);
  EXPECT_NE(message("age,score,paid,member,city\n").find("field 'id': the file has no such column, which is the view's entity"),
            std::string::npos);
  EXPECT_NE(message("id,age,paid,member,city\n").find("field 'score': the file has no such column"), std::string::npos);
  EXPECT_NE(message("id,,age,score,paid,member,city\n").find("people.csv:1:4: column 2 has no name"), std::string::npos);
  const std::string wide(limits::kCsvColumnsMax, ',');
  EXPECT_NE(message("id" + wide + "\n").find("more than 4096 columns"), std::string::npos);
  EXPECT_TRUE(read(kHeader).has_value()) << "a header alone has no rows, and no error";
}

TEST(Csv, CollectsErrorsUpToTheBound) {
  std::string text(kHeader);
  for (int i = 0; i < 50; ++i) text += "a,x,2,3,true,x\n";
  const auto all = read(text);
  ASSERT_FALSE(all.has_value());
  EXPECT_EQ(all.error().code, ErrorCode::invalid);
  EXPECT_EQ(std::ranges::count(all.error().message, '\n'), 20) << "20 errors and a last line that says so";
  CsvOptions first;
  first.errors_max = 1;
  const auto one = read(text, nullptr, first);
  ASSERT_FALSE(one.has_value());
  EXPECT_EQ(std::ranges::count(one.error().message, '\n'), 0);
}

TEST(Csv, TheSameRecordsWhateverThePieces) {
  Random random(7);
  std::string text(kHeader);
  for (int i = 0; i < 200; ++i)
    text += "e" + std::to_string(i) + ",1,2,3,yes,\"a\r\nb \"\"" + std::string(random.below(40), 'z') + "\"\"\"\r\n";
  std::vector<CsvRow> whole;
  ASSERT_TRUE(read(text, &whole).has_value());
  std::vector<CsvRow> pieces;
  std::string_view rest = text;
  ByteSource dribble = [&](std::span<char> out) -> Result<std::size_t> {
    const auto n = std::min<std::size_t>({1 + random.below(9), rest.size(), out.size()});
    std::ranges::copy(rest.substr(0, n), out.begin());
    rest.remove_prefix(n);
    return n;
  };
  const auto done = read_csv(std::move(dribble), "p", *people().view<messages::FeatureView>(), {}, [&](CsvRow&& row) -> Status {
    pieces.push_back(std::move(row));
    return {};
  });
  ASSERT_TRUE(done.has_value()) << to_string(done.error());
  ASSERT_EQ(pieces.size(), whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(pieces[i].values, whole[i].values);
    EXPECT_EQ(pieces[i].line, whole[i].line);
  }
}

TEST(Csv, ReadsTimes) {
  EXPECT_EQ(parse_time_ns("1700000000").value(), 1'700'000'000'000'000'000);
  EXPECT_EQ(parse_time_ns("-1.5").value(), -1'500'000'000);
  EXPECT_EQ(parse_time_ns("1970-01-01T04:00:00+04:00").value(), 0);
  EXPECT_EQ(parse_time_ns("2023-11-14T22:13:20.25Z").value(), 1'700'000'000'250'000'000);
  for (const auto* bad : {"", "yesterday", "2023-02-30T00:00:00Z", "2023-11-14T22:13:20", "2023-11-14", "99999999999999", "1.5x", "-"}) {
    EXPECT_FALSE(parse_time_ns(bad).has_value()) << bad;
  }
}

TEST(Csv, TheGermanCreditFileFits) {
  const auto path = std::string(FALAJ_SOURCE_DIR) + "/configs/examples/data/german_credit.csv";
  const auto view = make_view("credit", "applicant_id", {{"duration", "float32"}, {"checking_status", "string"}, {"class", "string"}});
  auto source = bytes_of_file(path);
  ASSERT_TRUE(source.has_value());
  std::uint64_t seen = 0;
  const auto summary =
      check_csv(std::move(*source), path, *view.view<messages::FeatureView>(), {}, [&](std::uint64_t rows, std::uint64_t) { seen = rows; });
  ASSERT_TRUE(summary.has_value()) << to_string(summary.error());
  EXPECT_EQ(summary->rows, 1000U);
  EXPECT_EQ(seen, 1000U);
  EXPECT_EQ(summary->ignored.size(), 18U);
}

TEST(Values, RowsAreCheckedAgainstTheView) {
  const auto view = people().view<messages::FeatureView>();
  const auto row = [](std::string_view entity, std::vector<storage::FieldValue> values) {
    CsvRow out;
    out.entity = entity;
    out.values = std::move(values);
    const std::vector<CsvRow> rows{out};
    return put_rows("default", "people", rows);
  };
  const auto check = [&](const Message& message) {
    const auto put = message.view<messages::PutRows>();
    const auto status = check_row(*view, put->getRows()[0], 0);
    return status.has_value() ? std::string("ok") : status.error().message;
  };
  EXPECT_EQ(check(row("a", {std::int64_t{1}, {}, {}, {}, {}})), "ok");
  EXPECT_EQ(check(row("a", {{}, {}, {}, {}, {}})), "row 1: field 'age': a value is required");
  EXPECT_EQ(check(row("a", {1.0, {}, {}, {}, {}})), "row 1: field 'age': the value is not a int64");
  EXPECT_EQ(check(row("a", {std::int64_t{1}, 1.0, {}, {}, {}})), "row 1: field 'score': the value is not a float32");
  EXPECT_EQ(check(row("a", {std::int64_t{1}, {}, std::numeric_limits<double>::infinity(), {}, {}})),
            "row 1: field 'paid': the value is not finite");
  EXPECT_EQ(check(row("a", {std::int64_t{1}})), "row 1: 1 values, but view 'people' has 5 fields");
  EXPECT_NE(check(row("", {std::int64_t{1}, {}, {}, {}, {}})).find("field 'id': an entity is"), std::string::npos);
}

TEST(Snapshot, ReadsBackWhatWasWrittenInPiecesOfAnySize) {
  std::vector<CsvRow> rows;
  for (int i = 0; i < 1300; ++i) {
    CsvRow row;
    row.entity = "e" + std::to_string(i);
    row.event_time_ns = i + 1;
    row.values = {std::int64_t{i},
                  i % 3 == 0 ? storage::FieldValue{} : storage::FieldValue{0.5F * static_cast<float>(i)},
                  {},
                  i % 2 == 0,
                  std::string(static_cast<std::size_t>(i % 50), 'c')};
    rows.push_back(std::move(row));
  }
  const auto content = [&] {
    SnapshotWriter writer(*people().view<messages::FeatureView>());
    const auto message = put_rows("default", "people", rows);
    for (const auto row : message.view<messages::PutRows>()->getRows()) writer.add(row);
    writer.finish();
    return writer.take(writer.ready());
  };
  const Bytes bytes = content();
  EXPECT_EQ(bytes, content()) << "the same rows give the same bytes";
  const auto table = read_snapshot(bytes);
  ASSERT_TRUE(table.has_value()) << to_string(table.error());
  ASSERT_EQ(table->entities.size(), rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(table->entities[i], rows[i].entity);
    EXPECT_EQ(table->event_times_ns[i], rows[i].event_time_ns);
    for (std::size_t k = 0; k < 5; ++k) EXPECT_EQ(table->columns[k][i], rows[i].values[k]);
  }
  Random random(3);
  SnapshotReader reader({}, {});
  for (std::size_t at = 0; at < bytes.size();) {
    const auto n = std::min<std::size_t>(1 + random.below(5000), bytes.size() - at);
    ASSERT_TRUE(reader.push(ByteView(bytes).subspan(at, n)).has_value());
    at += n;
  }
  ASSERT_TRUE(reader.finish().has_value());
  EXPECT_EQ(reader.rows(), rows.size());

  SnapshotReader cut({}, {});
  ASSERT_TRUE(cut.push(ByteView(bytes).first(bytes.size() - 8)).has_value());
  EXPECT_EQ(cut.finish().error().code, ErrorCode::corrupt);
  for (int i = 0; i < 300; ++i) {  // damage is an error or other values, never a crash
    Bytes bad = bytes;
    bad[random.below(bad.size())] ^= static_cast<std::uint8_t>(1 + random.below(255));
    static_cast<void>(read_snapshot(bad));
  }
}

}  // namespace
}  // namespace falaj::features
