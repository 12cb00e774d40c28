#include "kernels/train/columns.hpp"

#include <algorithm>

#include "runtime/base/format.hpp"

namespace falaj::kernels {

Result<Tensor> column_input(const ValueInfo& info, bool only, const Table& table, std::size_t first, std::size_t count) {
  Shape shape = info.shape;
  if (shape.empty()) return invalid(format("input '{}' is a scalar: rows cannot be fed to it", info.name));
  shape[0] = static_cast<std::int64_t>(count);
  std::int64_t width = 1;
  for (std::size_t i = 1; i < shape.rank(); ++i) width *= shape[i];
  if (!shape.is_static()) return invalid(format("input '{}' has shape {}: only the rows may be unknown", info.name, to_string(info.shape)));
  std::vector<const Column*> columns;
  for (std::size_t i = 0; i < table.columns.size(); ++i) {
    const bool named = table.columns[i].name == info.name;
    const bool all = only && width > 1 && table.columns[i].kind == ColumnKind::numeric;
    if (named || all) columns.push_back(&table.values[i]);
  }
  if (columns.empty()) return invalid(format("the model reads column '{}', which the data do not have", info.name));
  if (static_cast<std::int64_t>(columns.size()) != width) {
    return invalid(format("input '{}' has {} values in each row, the data have {} columns for it", info.name, width, columns.size()));
  }
  if (info.dtype == DType::string) {
    const auto* texts = std::get_if<CategoricalColumn>(columns[0]);
    if (texts == nullptr) return invalid(format("the model reads column '{}' as a category, the data have numbers", info.name));
    return Tensor::const_view(DType::string, shape, texts->data() + first);
  }
  Tensor out = Tensor::uninitialised(info.dtype, shape);
  for (std::size_t c = 0; c < columns.size(); ++c) {
    const auto* numbers = std::get_if<NumericColumn>(columns[c]);
    if (numbers == nullptr) return invalid(format("the model reads column '{}' as a number, the data have categories", info.name));
    const auto copy = [&]<class T>(std::span<T> to) {
      for (std::size_t row = 0; row < count; ++row) to[row * columns.size() + c] = static_cast<T>((*numbers)[first + row]);
    };
    switch (info.dtype) {
      case DType::f32:
        copy(out.mutable_data<float>());
        break;
      case DType::f64:
        copy(out.mutable_data<double>());
        break;
      case DType::i64:
        copy(out.mutable_data<std::int64_t>());
        break;
      case DType::i32:
        copy(out.mutable_data<std::int32_t>());
        break;
      default:
        return invalid(format("input '{}' is {}: columns are numbers or categories", info.name, to_string(info.dtype)));
    }
  }
  return out;
}

}  // namespace falaj::kernels
