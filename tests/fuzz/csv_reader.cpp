// Any bytes are read onto a view or refused; whatever the pieces they come in, with the same outcome.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "actors/features/csv.hpp"

namespace {

using falaj::messages::FeatureView;
using falaj::messages::FieldType;

const falaj::Message& view() {
  static const auto made = falaj::Message::build<FeatureView>([](FeatureView::Builder out) {
    out.setName("fuzz");
    out.setEntity("id");
    out.setEventTime("at");
    const FieldType types[] = {FieldType::FLOAT32, FieldType::FLOAT64, FieldType::INT64, FieldType::BOOL, FieldType::STRING};
    const char* names[] = {"f", "d", "i", "b", "s"};
    auto fields = out.initField(5);
    for (unsigned k = 0; k < 5; ++k) {
      fields[k].setName(names[k]);
      fields[k].setType(types[k]);
    }
    fields[2].setRequired(true);
  });
  return made;
}

struct Outcome {
  std::vector<falaj::features::CsvRow> rows;
  std::string error;
};

Outcome read(std::string_view text, std::size_t piece) {
  Outcome out;
  falaj::features::ByteSource source = [text, piece](std::span<char> into) mutable -> falaj::Result<std::size_t> {
    const auto n = std::min({text.size(), into.size(), piece});
    std::ranges::copy(text.substr(0, n), into.begin());
    text.remove_prefix(n);
    return n;
  };
  falaj::features::CsvOptions options;
  options.bounds = {.field_bytes = 4096, .columns = 64};
  const auto done = falaj::features::read_csv(std::move(source), "fuzz.csv", *view().view<FeatureView>(), options,
                                              [&out](falaj::features::CsvRow&& row) -> falaj::Status {
                                                out.rows.push_back(std::move(row));
                                                return {};
                                              });
  if (!done.has_value()) out.error = done.error().message;
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  // The header is given, so that more than the search for it is tried; a first byte asks for none.
  std::string text = size > 0 && bytes[0] % 4 == 0 ? "" : "id,at,f,d,i,b,s\n";
  text.append(reinterpret_cast<const char*>(bytes) + (size > 0 ? 1 : 0), size > 0 ? size - 1 : 0);
  const auto whole = read(text, text.size() + 1);
  const auto pieces = read(text, 3);
  if (whole.error != pieces.error || whole.rows.size() != pieces.rows.size()) std::abort();
  for (std::size_t k = 0; k < whole.rows.size(); ++k) {
    if (whole.rows[k].entity != pieces.rows[k].entity || whole.rows[k].values != pieces.rows[k].values) std::abort();
    if (whole.rows[k].entity.empty() || whole.rows[k].values.size() != 5) std::abort();
  }
  if (!whole.rows.empty() && whole.rows.size() <= falaj::limits::kRowsPerBatch) {
    static_cast<void>(falaj::features::put_rows("default", "fuzz", whole.rows));
  }
  return 0;
}
