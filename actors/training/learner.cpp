// Learners over kernels/train: how a job's words become rows, splits, a graph, and an optimizer.
#include "actors/training/learner.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "actors/features/snapshot.hpp"
#include "actors/training/material.hpp"
#include "actors/training/words.hpp"
#include "kernels/collective/float_mode.hpp"
#include "kernels/onnx/onnx.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/json.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "storage/digest.hpp"

namespace falaj::training {
namespace {

using messages::FeatureView;
using messages::FieldType;
using messages::TrainingJob;

// What must be summed over ranks behind the gradient and the statistics. The count of rows is exact in a float: batches are far below 2^24.
constexpr std::size_t kLossAt = 0, kRowsAt = 1, kExtra = 2;
constexpr std::uint32_t kStateMagic = 0x534c4c46;  // "FLLS"
constexpr std::uint32_t kStateFormat = 2;

// ---- rows ------------------------------------------------------------------------------------------------------------------------------

std::string label_text(const storage::FieldValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::monostate>) {
          return {};
        } else if constexpr (std::is_same_v<T, bool>) {
          return v ? "true" : "false";
        } else if constexpr (std::is_same_v<T, std::string>) {
          return v;
        } else {
          return format("{}", v);
        }
      },
      value);
}

float number(const storage::FieldValue& value) {
  return std::visit(
      [](const auto& v) -> float {
        if constexpr (std::is_arithmetic_v<std::decay_t<decltype(v)>>) {
          return static_cast<float>(v);
        } else {
          return std::numeric_limits<float>::quiet_NaN();
        }
      },
      value);
}

class TableReader {
 public:
  explicit TableReader(TrainingJob::Reader job) : job_(job) {}

  Status read(ByteView content) {
    features::SnapshotReader reader([this](FeatureView::Reader view) { return header(view); },
                                    [this](const features::SnapshotRow& row) { return add(row); });
    FALAJ_TRY(reader.push(content));
    FALAJ_TRY(reader.finish());
    if (labels.empty())
      return invalid(format("view {} has no rows with a value of {}: ingest some first", text(job_.getView()), text(job_.getLabel())));
    if (unlabelled_ > 0) log::warn("training", "rows without a label are left out", {{"rows", unlabelled_}});
    return {};
  }

  kernels::Table table;
  std::vector<std::string> labels, entities, required;

 private:
  Status header(FeatureView::Reader view) {
    std::vector<std::string> unknown;
    for (const auto name : job_.getExclude()) unknown.emplace_back(text(name));
    bool found = false;
    for (const auto field : view.getField()) {
      const std::string name(text(field.getName()));
      if (name == text(job_.getLabel())) {
        found = true;
        places_.push_back(kLabelPlace);
      } else if (std::erase(unknown, name) > 0) {
        places_.push_back(kNoPlace);
      } else {
        if (field.getRequired()) required.push_back(name);
        const bool category = field.getType() == FieldType::STRING;
        places_.push_back(static_cast<std::ptrdiff_t>(table.columns.size()));
        table.columns.push_back({name, category ? kernels::ColumnKind::categorical : kernels::ColumnKind::numeric});
        table.values.push_back(category ? kernels::Column(kernels::CategoricalColumn()) : kernels::Column(kernels::NumericColumn()));
      }
    }
    if (!found) return invalid(format("view {} has no field {} to use as a label", text(view.getName()), text(job_.getLabel())));
    if (!unknown.empty()) return invalid(format("exclude: view {} has no field {}", text(view.getName()), unknown.front()));
    if (table.columns.empty()) return invalid("no field is left to learn from");
    return {};
  }

  Status add(const features::SnapshotRow& row) {
    const auto label = std::ranges::find(places_, kLabelPlace) - places_.begin();
    std::string value = label_text(row.values[static_cast<std::size_t>(label)]);
    if (value.empty()) {
      ++unlabelled_;
      return {};
    }
    labels.push_back(std::move(value));
    entities.emplace_back(row.entity);
    for (std::size_t i = 0; i < places_.size(); ++i) {
      if (places_[i] < 0) continue;
      auto& column = table.values[static_cast<std::size_t>(places_[i])];
      if (auto* numbers = std::get_if<kernels::NumericColumn>(&column)) {
        numbers->push_back(number(row.values[i]));
      } else {
        const auto* category = std::get_if<std::string>(&row.values[i]);
        std::get<kernels::CategoricalColumn>(column).push_back(category != nullptr ? *category : std::string());
      }
    }
    return {};
  }

  static constexpr std::ptrdiff_t kLabelPlace = -1, kNoPlace = -2;
  TrainingJob::Reader job_;
  std::vector<std::ptrdiff_t> places_;  // field of the view -> column
  std::uint64_t unlabelled_ = 0;
};

// The held-out rows are the same in all fits; folds are cut from the rest.
Result<std::vector<kernels::Split>> splits_of(TrainingJob::Reader job, const kernels::TargetSpec& target,
                                              std::span<const std::string> labels, std::span<const std::string> entities) {
  FALAJ_ASSIGN(const auto numbers, kernels::encode_labels(target, labels));
  const auto strata = kernels::strata_of(numbers, target.task == kernels::Task::regression);
  const auto ids = kernels::ids_of(entities);
  const kernels::SplitSpec spec{
      .validation = job.getValidationFraction() * (1.0F - job.getTestFraction()), .test = job.getTestFraction(), .seed = job.getSeed()};
  FALAJ_ASSIGN(auto final_split, kernels::stratified_split(spec, labels.size(), strata, ids));
  std::vector<kernels::Split> out;
  if (job.getFolds() >= 2) {
    Rows rest(final_split.train);
    rest.insert(rest.end(), final_split.validation.begin(), final_split.validation.end());
    std::ranges::sort(rest);
    std::vector<std::uint32_t> rest_strata;
    std::vector<std::uint64_t> rest_ids;
    for (const auto row : rest) {
      rest_strata.push_back(strata[row]);
      rest_ids.push_back(ids[row]);
    }
    FALAJ_ASSIGN(out, kernels::k_fold(job.getFolds(), job.getValidationFraction(), job.getSeed(), rest.size(), rest_strata, rest_ids));
    for (auto& split : out) {
      for (Rows* part : {&split.train, &split.validation, &split.test}) {
        for (auto& row : *part) row = rest[row];
      }
    }
  }
  out.push_back(std::move(final_split));
  for (const auto& split : out) {
    if (split.train.empty()) return invalid("a fit has no rows to train on: there are too few rows for these fractions and folds");
  }
  return out;
}

// ---- one fit ---------------------------------------------------------------------------------------------------------------------------

class FitLearner final : public Learner {
 public:
  static Result<std::unique_ptr<Learner>> make(std::shared_ptr<const Material> material, std::uint32_t fold) {
    const FlushMode mode;
    auto out = std::unique_ptr<FitLearner>(new FitLearner(std::move(material), fold));
    FALAJ_TRY(out->open());
    return std::unique_ptr<Learner>(std::move(out));
  }

  [[nodiscard]] std::size_t width() const override { return parameters() + statistics_.size() + kExtra; }

  Status contribute(Shards shards, std::span<std::vector<float>> contributions) override {
    const FlushMode mode;
    for (std::uint32_t i = 0; i < shards.count; ++i) {
      const auto rows = sampler_->micro_shard(step_, shards.first + i);
      auto& out = contributions[i];
      FALAJ_ASSIGN(const double loss, trainer_->gradient(*data_, rows, std::span(out).first(parameters()), key()));
      FALAJ_TRY(take_statistics(rows.size(), std::span(out).subspan(parameters(), statistics_.size())));
      out[extra() + kLossAt] = static_cast<float>(loss);
      out[extra() + kRowsAt] = static_cast<float>(rows.size());
    }
    return {};
  }

  Status commit(std::span<float> sum) override {
    const FlushMode mode;
    const auto rows = static_cast<std::uint64_t>(sum[extra() + kRowsAt]);
    const auto wanted = sampler_->batch(step_).size();
    if (rows != wanted) return failed(format("step {}: the ranks counted {} rows, the batch has {}", step_, rows, wanted));
    FALAJ_ASSIGN(const bool moved, update(sum, rows));
    samples_ += rows;
    ++step_;
    skipped_here_ = moved ? 0 : skipped_here_ + 1;
    if (!moved) ++skipped_;
    if (step_ % sampler_->steps_per_epoch() == 0) FALAJ_TRY(end_epoch());
    return {};
  }

  [[nodiscard]] bool done() const override { return step_ >= schedule_.total_steps || stopping_.stop(); }

  [[nodiscard]] Progress progress() const override { return {step_, schedule_.total_steps, samples_, loss_, validation_loss_}; }

  [[nodiscard]] Bytes state() const override {
    kernels::Checkpoint inner;
    inner.step = step_;
    inner.epoch = sampler_->epoch_of(step_);
    inner.seed = material_->seed;
    inner.parameters = values();
    inner.optimizer_state.assign(optimizer_->state().begin(), optimizer_->state().end());
    inner.best_parameters = best_;
    inner.stopping = stopping_;
    inner.loss_sum = epoch_loss_;
    inner.loss_rows = epoch_rows_;
    const Head head{kStateMagic, kStateFormat,     fold_,           plateau_.any ? 1U : 0U, samples_,     skipped_, skipped_here_,
                    loss_,       validation_loss_, plateau_.factor, plateau_.best,          plateau_.bad, 0};
    Bytes out(sizeof(head));
    std::memcpy(out.data(), &head, sizeof(head));
    const Bytes tail = kernels::encode(inner);
    out.insert(out.end(), tail.begin(), tail.end());
    return out;
  }

  Status load(ByteView state) override {
    Head head{};
    if (state.size() < sizeof(head)) return error(ErrorCode::corrupt, "training state: too short");
    std::memcpy(&head, state.data(), sizeof(head));
    if (head.magic != kStateMagic) return error(ErrorCode::corrupt, "training state: these bytes are something else");
    if (head.format != kStateFormat) {
      return error(ErrorCode::unimplemented,
                   format("training state: format {}, this build reads {}: use the build that wrote it", head.format, kStateFormat));
    }
    if (head.fold != fold_) return failed(format("training state of fit {}, wanted {}", head.fold, fold_));
    FALAJ_ASSIGN(const auto inner, kernels::decode_checkpoint(state.subspan(sizeof(head))));
    if (inner.seed != material_->seed) return failed("training state of another seed");
    FALAJ_TRY(restore(inner.parameters));
    FALAJ_TRY(optimizer_->load(inner.step - head.skipped, inner.optimizer_state));
    step_ = inner.step;
    best_ = inner.best_parameters;
    stopping_ = inner.stopping;
    epoch_loss_ = inner.loss_sum;
    epoch_rows_ = inner.loss_rows;
    samples_ = head.samples;
    skipped_ = head.skipped;
    skipped_here_ = head.skipped_here;
    loss_ = head.loss;
    validation_loss_ = head.validation_loss;
    plateau_.factor = head.plateau_factor;
    plateau_.best = head.plateau_best;
    plateau_.bad = head.plateau_bad;
    plateau_.any = head.plateau_any != 0;
    return {};
  }

  Result<Outcome> finish(bool final_fit) override {
    const FlushMode mode;
    // state() must say the same afterwards: another rank may still ask for it.
    const auto last = values();
    if (!best_.empty()) FALAJ_TRY(restore(best_));
    auto out = measure(final_fit);
    FALAJ_TRY(restore(last));
    return out;
  }

 private:
  struct Head {
    std::uint32_t magic, format, fold, plateau_any;
    std::uint64_t samples, skipped, skipped_here;
    double loss, validation_loss, plateau_factor, plateau_best;
    std::uint32_t plateau_bad, reserved;
  };
  // The pool's threads are all the same to the numbers.
  struct FlushMode {
    FlushMode() { kernels::set_flush_denormals(); }
    kernels::FlushDenormals denormals;
  };

  FitLearner(std::shared_ptr<const Material> material, std::uint32_t fold) : material_(std::move(material)), fold_(fold) {}

  [[nodiscard]] const kernels::Split& split() const { return material_->splits[fold_]; }
  [[nodiscard]] std::size_t parameters() const { return trainer_->parameters().size(); }
  [[nodiscard]] std::size_t extra() const { return parameters() + statistics_.size(); }
  [[nodiscard]] std::uint64_t key() const { return material_->seed + step_; }

  // Parameters, then running statistics.
  [[nodiscard]] std::vector<float> values() const {
    std::vector<float> out(trainer_->parameters().begin(), trainer_->parameters().end());
    out.insert(out.end(), statistics_.begin(), statistics_.end());
    return out;
  }
  Status restore(std::span<const float> values) {
    if (values.size() != extra()) return failed(format("{} values do not fit a model of {}", values.size(), extra()));
    FALAJ_TRY(trainer_->load(values.first(parameters())));
    statistics_.assign(values.begin() + static_cast<std::ptrdiff_t>(parameters()), values.end());
    return trainer_->load_statistics(statistics_);
  }

  // By how much the rows of a micro-shard move the running statistics, times their number: what the batch moves them by is the sum
  // over its rows, whoever computed which.
  Status take_statistics(std::size_t rows, std::span<float> out) {
    if (statistics_.empty()) return {};
    const auto moved = trainer_->statistics();
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = (moved[i] - statistics_[i]) * static_cast<float>(rows);
    return trainer_->load_statistics(statistics_);
  }

  // One optimizer step; false: the gradient is no number, and the job wants such steps left out.
  Result<bool> update(std::span<float> sum, std::uint64_t rows) {
    const double factor = schedule_.factor(step_) * plateau_.factor;
    const auto loss = static_cast<double>(sum[extra() + kLossAt]);
    const bool good =
        std::isfinite(loss) && std::isfinite(kernels::apply_step(*trainer_, *optimizer_, factor, rows, sum.first(parameters())));
    if (!good) {
      if (!material_->skip_not_finite) return kernels::not_finite(*trainer_, *data_, sampler_->batch(step_), key(), step_ + 1);
      if (skipped_here_ + 1 == kernels::kSkippedMax) return kernels::too_many_skipped(step_ + 1);
      return false;
    }
    for (std::size_t i = 0; i < statistics_.size(); ++i) statistics_[i] += sum[parameters() + i] / static_cast<float>(rows);
    FALAJ_TRY(trainer_->load_statistics(statistics_));
    loss_ = loss / static_cast<double>(rows);
    epoch_loss_ += loss;
    epoch_rows_ += rows;
    return true;
  }

  Status end_epoch() {
    if (!split().validation.empty()) FALAJ_TRY(validate());
    const double loss = split().validation.empty() ? epoch_loss_ / static_cast<double>(epoch_rows_) : validation_loss_;
    if (material_->plateau && std::isfinite(loss)) plateau_.update(loss);
    epoch_loss_ = 0;
    epoch_rows_ = 0;
    return {};
  }

  Status open() {
    const Material& m = *material_;
    kernels::TrainTarget target = m.how;
    target.spec = m.target;
    if (m.target.task == kernels::Task::regression) {
      // Mean and deviation of the label are fitted on the training part, as everything else is.
      FALAJ_ASSIGN(target.spec, kernels::fit_target(m.target.name, m.labels, split().train));
      target.spec.task = kernels::Task::regression;
    }
    if (m.imported) {
      FALAJ_ASSIGN(trainer_, kernels::Trainer::make(*m.imported, target));
    } else {
      FALAJ_ASSIGN(const auto preprocessing, kernels::fit_preprocessing(m.table, split().train));
      FALAJ_ASSIGN(auto graph, kernels::build_family(m.family, preprocessing, target.spec, m.seed));
      FALAJ_ASSIGN(trainer_, kernels::Trainer::make(std::move(graph), target));
    }
    FALAJ_ASSIGN(auto labels, kernels::encode_labels(target.spec, m.labels));
    FALAJ_ASSIGN(auto data, trainer_->prepare(m.table, std::move(labels)));
    data_.emplace(std::move(data));
    sampler_.emplace(m.fit.sampler, split().train);
    optimizer_.emplace(m.fit.optimizer, parameters(), trainer_->decay_mask(), trainer_->tensor_sizes());
    statistics_ = trainer_->statistics();
    if (m.plateau) plateau_ = *m.plateau;
    schedule_ = m.schedule;
    schedule_.total_steps = sampler_->steps_per_epoch() * m.fit.epochs;
    stopping_.patience = split().validation.empty() ? 0 : m.fit.patience;
    return {};
  }

  Status validate() {
    FALAJ_ASSIGN(const auto evaluation, trainer_->evaluate(*data_, split().validation));
    validation_loss_ = evaluation.loss();
    if (stopping_.patience == 0) return {};
    if (stopping_.update(sampler_->epoch_of(step_ - 1), -validation_loss_)) best_ = values();
    return {};
  }

  Result<Outcome> measure(bool final_fit) {
    Outcome out;
    const auto weights = values();
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(weights.data());
    out.weights_digest = storage::sha256(ByteView(bytes, weights.size() * sizeof(float))).hex();
    if (!split().test.empty()) {
      FALAJ_ASSIGN(const auto evaluation, trainer_->evaluate(*data_, split().test));
      note(evaluation, out);
    }
    if (skipped_ > 0) out.metrics["skipped_steps"] = static_cast<double>(skipped_);
    if (final_fit) {
      FALAJ_ASSIGN(out.model, export_model(*material_, trainer_->export_graph()));
    }
    return out;
  }

  const std::shared_ptr<const Material> material_;
  const std::uint32_t fold_;
  std::unique_ptr<kernels::Trainer> trainer_;
  std::optional<kernels::DataSet> data_;
  std::optional<kernels::Sampler> sampler_;
  std::optional<kernels::Optimizer> optimizer_;
  kernels::Schedule schedule_;
  std::uint64_t step_ = 0, samples_ = 0;
  std::uint64_t skipped_ = 0, skipped_here_ = 0;  // steps without a number; the last of them, one after the other
  double loss_ = 0, validation_loss_ = std::numeric_limits<double>::quiet_NaN();
  double epoch_loss_ = 0;  // sum over epoch_rows_
  std::uint64_t epoch_rows_ = 0;
  kernels::EarlyStopping stopping_;
  kernels::Plateau plateau_;
  std::vector<float> statistics_;  // running ones of BatchNormalization, the same on every rank; empty: they are not moved
  std::vector<float> best_;        // as values() gives them
};

class FitCourse final : public Course {
 public:
  explicit FitCourse(std::shared_ptr<const Material> material) : material_(std::move(material)) {}
  [[nodiscard]] std::vector<std::uint64_t> steps() const override {
    std::vector<std::uint64_t> out;
    for (const auto& split : material_->splits) {
      out.push_back(kernels::Sampler(material_->fit.sampler, split.train).steps_per_epoch() * material_->fit.epochs);
    }
    return out;
  }
  [[nodiscard]] Result<std::unique_ptr<Learner>> learner(std::uint32_t fold) const override {
    if (fold >= material_->splits.size()) return invalid(format("there are {} fits, no fit {}", material_->splits.size(), fold));
    return FitLearner::make(material_, fold);
  }

 private:
  std::shared_ptr<const Material> material_;
};

Result<std::shared_ptr<Material>> read_material(TrainingJob::Reader spec, ByteView snapshot) {
  auto m = std::make_shared<Material>();
  TableReader reader(spec);
  if (auto read = reader.read(snapshot); !read.has_value()) return within("snapshot", std::move(read).error());
  m->table = std::move(reader.table);
  m->labels = std::move(reader.labels);
  m->required = std::move(reader.required);
  Rows all(m->labels.size());
  std::iota(all.begin(), all.end(), 0U);
  FALAJ_ASSIGN(m->target, kernels::fit_target(text(spec.getLabel()), m->labels, all, text(spec.getPositive())));
  FALAJ_ASSIGN(m->splits, splits_of(spec, m->target, m->labels, reader.entities));
  return m;
}

}  // namespace

void note(const kernels::Evaluation& evaluation, Outcome& out) {
  out.metrics = evaluation.named();
  out.metrics["loss"] = evaluation.loss();
  out.metrics["rows"] = static_cast<double>(evaluation.rows);
  if (const auto* binary = std::get_if<kernels::BinaryMetrics>(&evaluation.metrics)) {
    for (const double count : {binary->true_negative, binary->false_positive, binary->false_negative, binary->true_positive}) {
      out.confusion.push_back(static_cast<std::uint64_t>(count));
    }
  } else if (const auto* classes = std::get_if<kernels::MulticlassMetrics>(&evaluation.metrics)) {
    for (std::size_t a = 0; a < classes->classes(); ++a) {
      for (std::size_t p = 0; p < classes->classes(); ++p) out.confusion.push_back(static_cast<std::uint64_t>(classes->confusion(a, p)));
    }
  }
}

Result<Bytes> export_model(const Material& material, kernels::Graph graph) {
  const std::string key(kernels::metadata::kRequired);
  graph.metadata.erase(key);
  if (!material.required.empty()) graph.metadata[key] = kernels::json_strings(material.required);
  return kernels::export_onnx(graph);
}

Result<std::shared_ptr<const Course>> make_course(TrainingJob::Reader spec, Bytes snapshot, Bytes model) {
  FALAJ_ASSIGN(auto m, read_material(spec, snapshot));
  m->seed = spec.getSeed();
  if (text(spec.getModel().getFamily()) == kernels::to_string(kernels::Family::boosted_trees)) return tree_course(spec, std::move(m));
  FALAJ_TRY(read_words(spec, *m));
  if (m->how.regression.loss != kernels::Loss::mse && m->target.task != kernels::Task::regression)
    return invalid(format("loss is {}, which is for numbers: label {} has classes, which have cross-entropy", text(spec.getLoss()),
                          text(spec.getLabel())));
  if (text(spec.getModel().getFamily()) == "onnx") {
    FALAJ_ASSIGN(m->imported, kernels::import_onnx(model, text(spec.getModel().getOnnx())));
  }
  return std::make_shared<const FitCourse>(std::move(m));
}

Result<std::map<std::string, double, std::less<>>> evaluate_model(TrainingJob::Reader spec, Bytes snapshot, Bytes model) {
  const kernels::FlushDenormals mode;
  FALAJ_ASSIGN(const auto m, read_material(spec, snapshot));
  FALAJ_ASSIGN(auto graph, kernels::import_onnx(model, "the model"));
  if (m->splits.back().test.empty()) return invalid("the job holds no rows out (test_fraction is 0)");
  auto read = kernels::read_target(graph);
  kernels::TargetSpec target = read.has_value() ? std::move(read).value() : m->target;
  const auto family = graph.metadata.find(kernels::metadata::kFamily);
  if (family != graph.metadata.end() && family->second == kernels::to_string(kernels::Family::boosted_trees)) {  // nothing to train in it
    FALAJ_ASSIGN(const auto of_rows, kernels::encode_labels(target, m->labels));
    FALAJ_ASSIGN(const auto evaluated, kernels::evaluate_graph(graph, target, m->table, of_rows, m->splits.back().test));
    return evaluated.named();
  }
  FALAJ_ASSIGN(auto trainer, kernels::Trainer::make(std::move(graph), {.spec = std::move(target)}));
  FALAJ_ASSIGN(auto labels, kernels::encode_labels(trainer->target(), m->labels));
  FALAJ_ASSIGN(const auto data, trainer->prepare(m->table, std::move(labels)));
  FALAJ_ASSIGN(const auto evaluation, trainer->evaluate(data, m->splits.back().test));
  return evaluation.named();
}

}  // namespace falaj::training
