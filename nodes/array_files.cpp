#include "nodes/array_files.hpp"

#include <array>

#include "kernels/npz.hpp"
#include "nodes/artifacts.hpp"
#include "nodes/csv_columns.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using kernels::Tensor;
using Kind = ArraySource::Kind;

Result<Tensor> from_npz(const ArraySource& source, std::string_view entry, kernels::DType wanted) {
  FALAJ_ASSIGN(const auto content, read_binary_file(source.file));
  if (!entry.empty()) {
    auto tensor = kernels::read_npz(content, entry, wanted);
    return tensor ? std::move(tensor) : within(source.file, tensor.error());
  }
  auto names = kernels::npz_names(content);
  if (!names) return within(source.file, names.error());
  const std::string only = names->size() == 1 ? names->front() : "labels";
  auto tensor = kernels::read_npz(content, only, wanted);
  return tensor ? std::move(tensor) : within(source.file, tensor.error());
}

}  // namespace

ArraySource array_source(std::string_view text) {
  struct Ending {
    std::string_view text;
    Kind kind;
  };
  for (const auto& [ending, kind] : std::array<Ending, 2>{{{".npz", Kind::npz}, {".csv", Kind::csv}}}) {
    if (text.ends_with(ending)) return {kind, std::string(text), {}};
    const auto at = text.find(std::string(ending) + ":");
    if (at == std::string_view::npos) continue;
    ArraySource source{kind, std::string(text.substr(0, at + ending.size())), {}};
    auto rest = text.substr(at + ending.size() + 1);
    while (kind == Kind::csv && rest.find(',') != std::string_view::npos) {
      source.parts.emplace_back(rest.substr(0, rest.find(',')));
      rest.remove_prefix(rest.find(',') + 1);
    }
    source.parts.emplace_back(rest);
    return source;
  }
  return {Kind::npy, std::string(text), {}};
}

Result<Tensor> read_array(std::string_view text, const kernels::ValueInfo& wanted) {
  const auto source = array_source(text);
  if (source.kind == Kind::csv) return csv_tensor(source.file, source.parts, wanted);
  if (source.kind == Kind::npz) return from_npz(source, source.parts.empty() ? wanted.name : source.parts[0], wanted.dtype);
  FALAJ_ASSIGN(const auto content, read_binary_file(source.file));
  auto tensor = kernels::read_npy(content, wanted.dtype);
  return tensor ? std::move(tensor) : within(source.file, tensor.error());
}

Result<Tensor> read_label_array(std::string_view text) {
  const auto source = array_source(text);
  if (source.kind == Kind::csv) return csv_labels(source.file, source.parts);
  if (source.kind == Kind::npz) return from_npz(source, source.parts.empty() ? "" : source.parts[0], kernels::DType::undefined);
  FALAJ_ASSIGN(const auto content, read_binary_file(source.file));
  auto tensor = kernels::read_npy(content);
  return tensor ? std::move(tensor) : within(source.file, tensor.error());
}

}  // namespace falaj::nodes
