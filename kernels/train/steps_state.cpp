#include "kernels/train/steps_state.hpp"

#include "kernels/codec.hpp"

namespace falaj::kernels {
namespace {

constexpr std::string_view kMagic = "FALAJSTP";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHead = kMagic.size() + sizeof kVersion;

std::string shown(const std::string& value) { return value.empty() ? "not given" : value.substr(0, 60); }

}  // namespace

Bytes encode(const StepsState& state, const StepsIdentity& identity) {
  Writer out;
  out.number(static_cast<std::uint64_t>(identity.size()));
  for (const auto& [name, value] : identity) {
    out.text(name);
    out.text(value);
  }
  out.number(state.step);
  out.floats(state.parameters);
  out.floats(state.optimizer);
  out.floats(state.statistics);
  out.number(state.plateau.factor);
  out.number(state.plateau.best);
  out.number(state.plateau.bad);
  out.number(static_cast<std::uint8_t>(state.plateau.any));
  out.number(state.epoch_loss);
  out.number(state.epoch_count);
  for (const StepReport& report : state.reports) {
    out.number(report.loss);
    out.number(report.learning_rate);
    out.number(report.gradient_norm);
  }
  const Bytes body = out.finish();
  Bytes bytes(kMagic.begin(), kMagic.end());
  for (std::size_t i = 0; i < sizeof kVersion; ++i) bytes.push_back(static_cast<std::uint8_t>(kVersion >> (8 * i)));
  bytes.insert(bytes.end(), body.begin(), body.end());
  return bytes;
}

Result<StepsState> decode_steps(ByteView bytes, const StepsIdentity& identity) {
  if (bytes.size() < kHead || as_text(bytes.first(kMagic.size())) != kMagic) return error(ErrorCode::corrupt, "this is no checkpoint");
  std::uint32_t version = 0;
  std::memcpy(&version, bytes.data() + kMagic.size(), sizeof version);
  if (version != kVersion)
    return error(ErrorCode::unimplemented, format("a checkpoint of format {}, this program knows format {}: resume it with the program "
                                                  "that wrote it, or a newer one",
                                                  version, kVersion));
  FALAJ_ASSIGN(auto in, Reader::open(bytes.subspan(kHead), "the checkpoint is damaged or cut off"));
  const auto count = in.number<std::uint64_t>();
  StepsIdentity found;
  for (std::uint64_t i = 0; i < count && in.ok(); ++i) {
    auto name = in.text();
    found.emplace_back(std::move(name), in.text());
  }
  StepsState state;
  state.step = in.number<std::uint64_t>();
  state.parameters = in.floats();
  state.optimizer = in.floats();
  state.statistics = in.floats();
  state.plateau.factor = in.number<double>();
  state.plateau.best = in.number<double>();
  state.plateau.bad = in.number<std::uint32_t>();
  state.plateau.any = in.number<std::uint8_t>() != 0;
  state.epoch_loss = in.number<double>();
  state.epoch_count = in.number<double>();
  for (std::uint64_t i = 0; i < state.step && in.ok(); ++i) {
    const auto loss = in.number<double>();
    const auto rate = in.number<double>();
    state.reports.push_back({i + 1, loss, rate, in.number<double>()});
  }
  FALAJ_TRY(in.finish());
  for (std::size_t i = 0; i < std::max(found.size(), identity.size()); ++i) {
    if (i >= found.size() || i >= identity.size() || found[i].first != identity[i].first)
      return error(ErrorCode::conflict, "the checkpoint is of another kind of run");
    if (found[i].second != identity[i].second)
      return error(ErrorCode::conflict, format("the checkpoint is of another run: its {} is {}, here it is {}; resume with the same model, "
                                               "data and settings",
                                               found[i].first, shown(found[i].second), shown(identity[i].second)));
  }
  return state;
}

}  // namespace falaj::kernels
