#include "kernels/trees/booster.hpp"

#include <algorithm>
#include <iterator>

#include "kernels/codec.hpp"
#include "kernels/trees/export.hpp"
#include "kernels/trees/grow.hpp"
#include "kernels/trees/objective.hpp"

namespace falaj::kernels::trees {
namespace {

constexpr std::size_t kRowsEach = 1U << 12;
constexpr std::size_t kHistogramBytesMax = std::size_t{8} << 30;
constexpr std::uint32_t kFormat = 1;

}  // namespace

struct Booster::Impl {
  Spec spec;
  TargetSpec target;
  Preprocessing fitted;
  Team team;
  Problem problem;
  Bins bins;
  Matrix matrix;
  std::vector<std::uint32_t> train, validation;
  std::vector<float> base;
  std::vector<Tree> trees;
  std::vector<double> scores;  // [outputs][rows of the table]: kept for training and validation rows
  std::vector<float> gradients, hessians;
  std::unique_ptr<Grower> grower;
  EarlyStopping stopping;
  double validation_loss = std::numeric_limits<double>::quiet_NaN();
  std::vector<std::uint32_t> in_bag, out_of_bag;

  explicit Impl(std::size_t threads) : team(threads, "trees") {}

  [[nodiscard]] std::uint32_t rounds() const { return static_cast<std::uint32_t>(trees.size() / problem.outputs); }
  [[nodiscard]] double* scores_of(std::size_t output) { return scores.data() + output * matrix.rows(); }

  void start_scores() {
    scores.assign(problem.outputs * matrix.rows(), 0);
    for (std::size_t k = 0; k < problem.outputs; ++k) std::fill_n(scores_of(k), matrix.rows(), static_cast<double>(base[k]));
  }

  void walk(const Tree& tree, std::span<const std::uint32_t> rows, double* to) {
    team.ranges(rows.size(), kRowsEach, [&](std::size_t begin, std::size_t end) {
      for (const std::uint32_t row : rows.subspan(begin, end - begin)) to[row] += static_cast<double>(tree.leaves[tree.leaf(matrix, row)]);
    });
  }

  // A row is in the bag of a round or not whatever the other rows do.
  void fill_bag(std::uint64_t round) {
    if (spec.row_share >= 1) return;
    in_bag.clear();
    out_of_bag.clear();
    const std::uint64_t numbers = stream(spec.seed, Purpose::rows, round);
    const auto below = static_cast<std::uint64_t>(spec.row_share * 0x1p64);
    for (const std::uint32_t row : train) (draw(numbers, row) < below ? in_bag : out_of_bag).push_back(row);
  }

  Status step() {
    std::vector<Tree> grown;
    const std::uint32_t round = rounds();
    fill_bag(round);
    const std::span<const std::uint32_t> bag = spec.row_share >= 1 ? train : in_bag;
    slopes(problem, scores, bag, gradients, hessians, team);
    for (std::size_t k = 0; k < problem.outputs; ++k) {
      const std::size_t first = k * matrix.rows();
      const Slopes of_output{std::span(gradients).subspan(first, matrix.rows()), std::span(hessians).subspan(first, matrix.rows())};
      Tree tree;
      if (bag.empty()) {
        tree.leaves = {0.0F};
      } else {
        auto result = grower->grow(bag, of_output, round * problem.outputs + k);
        if (!result) return within(format("round {}", round + 1), std::move(result).error());
        tree = std::move(*result);
        team.run(tree.leaves.size(), [&](std::size_t leaf) {
          const auto value = static_cast<double>(tree.leaves[leaf]);
          double* to = scores_of(k);
          for (const std::uint32_t row : grower->rows_of(leaf)) to[row] += value;
        });
      }
      walk(tree, out_of_bag, scores_of(k));
      walk(tree, validation, scores_of(k));
      grown.push_back(std::move(tree));
    }
    std::ranges::move(grown, std::back_inserter(trees));
    note_validation();
    return {};
  }

  void note_validation() {
    if (validation.empty()) return;
    validation_loss = mean_loss(problem, scores, validation, team);
    if (stopping.patience != 0) stopping.update(rounds(), -validation_loss);
  }
};

Booster::Booster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Booster::~Booster() = default;

Result<std::unique_ptr<Booster>> Booster::make(const Spec& spec, const TargetSpec& target, const Table& table,
                                               std::span<const float> labels, std::vector<std::uint32_t> train,
                                               std::vector<std::uint32_t> validation, std::size_t threads) {
  FALAJ_TRY(trees::check(spec));
  FALAJ_TRY(kernels::check(table));
  if (table.columns.empty()) return invalid("boosted trees: there are no columns to learn from");
  if (table.columns.size() > kColumnsMax)
    return invalid(format("boosted trees: {} columns, {} are the most", table.columns.size(), kColumnsMax));
  if (labels.size() != table.rows()) return invalid(format("boosted trees: {} labels for {} rows", labels.size(), table.rows()));
  if (table.rows() > std::numeric_limits<std::uint32_t>::max()) return invalid(format("boosted trees: {} rows are too many", table.rows()));
  if (spec.patience > 0 && validation.empty()) return invalid("boosted trees: patience needs validation rows");
  for (const std::uint32_t row : validation) {
    if (row >= table.rows()) return invalid(format("boosted trees: validation row {} of {}", row, table.rows()));
  }
  auto impl = std::make_unique<Impl>(threads_for(table.rows() * table.columns.size(), threads));
  FALAJ_ASSIGN(impl->problem, make_problem(target, labels, train));
  FALAJ_ASSIGN(impl->fitted, fit_preprocessing(table, train, {.vocabulary_max = kBinsMax - 1, .missing_indicators = false}));
  FALAJ_ASSIGN(impl->bins, fit_bins(table, impl->fitted, train, spec, impl->team));
  const std::size_t leaves = std::min<std::size_t>(spec.leaves, train.size() / spec.rows_min + 1);
  const std::size_t bytes = leaves * Layout(impl->bins).integers() * sizeof(std::int64_t);
  if (bytes > kHistogramBytesMax)
    return invalid(format("boosted trees: histograms of {} leaves over {} columns would take {} MiB, {} are the most: fewer leaves or bins",
                          leaves, impl->bins.size(), bytes >> 20, kHistogramBytesMax >> 20));
  FALAJ_ASSIGN(impl->matrix, Matrix::of(impl->bins, table, impl->team));
  impl->matrix.pack(impl->team);
  impl->spec = spec;
  impl->target = target;
  impl->train = std::move(train);
  impl->validation = std::move(validation);
  impl->base = base_scores(impl->problem, impl->train);
  impl->stopping.patience = spec.patience;
  impl->start_scores();
  impl->grower = std::make_unique<Grower>(impl->matrix, impl->bins, impl->spec, impl->team);
  return std::unique_ptr<Booster>(new Booster(std::move(impl)));
}

Status Booster::step() { return done() ? Status() : impl_->step(); }
bool Booster::done() const noexcept { return impl_->rounds() >= impl_->spec.rounds || impl_->stopping.stop(); }
std::uint32_t Booster::rounds() const noexcept { return impl_->rounds(); }
double Booster::training_loss() const { return mean_loss(impl_->problem, impl_->scores, impl_->train, impl_->team); }
double Booster::validation_loss() const noexcept { return impl_->validation_loss; }

Forest Booster::forest() const {
  const bool best = impl_->stopping.patience != 0 && impl_->stopping.any;
  const std::size_t rounds = best ? impl_->stopping.best_epoch : impl_->rounds();
  Forest out{.bins = impl_->bins, .base = impl_->base, .trees = impl_->trees};
  out.trees.resize(rounds * impl_->problem.outputs);
  return out;
}

Result<Evaluation> Booster::evaluate(std::span<const std::uint32_t> rows) const {
  for (const std::uint32_t row : rows) {
    if (row >= impl_->matrix.rows()) return invalid(format("boosted trees: row {} of {}", row, impl_->matrix.rows()));
  }
  const std::vector<double> exact = trees::scores(forest(), impl_->matrix, rows, impl_->team);
  std::vector<float> values(exact.begin(), exact.end());
  std::vector<float> labels;
  for (const std::uint32_t row : rows) {
    const auto label = static_cast<double>(impl_->problem.labels[row]);
    const bool number = impl_->problem.task == Task::regression;
    labels.push_back(static_cast<float>(number ? impl_->target.mean + impl_->target.scale * label : label));
  }
  return evaluate_logits(impl_->target, values, labels);
}

Result<Graph> Booster::graph() const { return export_forest(forest(), impl_->fitted, impl_->target); }

Bytes Booster::state() const {
  Writer writer;
  writer.number(kFormat);
  writer.number(impl_->spec.seed);
  const EarlyStopping& stopping = impl_->stopping;
  writer.number(stopping.best);
  writer.number(stopping.best_epoch);
  writer.number(stopping.bad_epochs);
  writer.number(static_cast<std::uint8_t>(stopping.any ? 1 : 0));
  const Bytes trees = encode(impl_->trees);
  writer.text({reinterpret_cast<const char*>(trees.data()), trees.size()});
  return writer.finish();
}

Status Booster::load(ByteView state) {
  FALAJ_ASSIGN(Reader reader, Reader::open(state, "state of boosted trees"));
  if (const auto version = reader.number<std::uint32_t>(); version != kFormat)
    return error(ErrorCode::corrupt, format("state of boosted trees: format {} is not known here (this build reads {})", version, kFormat));
  if (reader.number<std::uint64_t>() != impl_->spec.seed) return invalid("state of boosted trees: it has another seed");
  EarlyStopping stopping = impl_->stopping;
  stopping.best = reader.number<double>();
  stopping.best_epoch = reader.number<std::uint64_t>();
  stopping.bad_epochs = reader.number<std::uint32_t>();
  stopping.any = reader.number<std::uint8_t>() != 0;
  const std::string text = reader.text();
  FALAJ_TRY(reader.finish());
  FALAJ_ASSIGN(auto trees, decode_trees(ByteView(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()), impl_->bins));
  const std::size_t outputs = impl_->problem.outputs;
  if (trees.size() % outputs != 0 || trees.size() / outputs > impl_->spec.rounds || stopping.best_epoch > trees.size() / outputs)
    return invalid(format("state of boosted trees: {} trees do not fit {} rounds of {}", trees.size(), impl_->spec.rounds, outputs));
  impl_->trees = std::move(trees);
  impl_->stopping = stopping;
  // The same additions in the same order as when they were grown.
  impl_->start_scores();
  for (std::size_t t = 0; t < impl_->trees.size(); ++t) {
    impl_->walk(impl_->trees[t], impl_->train, impl_->scores_of(t % outputs));
    impl_->walk(impl_->trees[t], impl_->validation, impl_->scores_of(t % outputs));
  }
  impl_->validation_loss = std::numeric_limits<double>::quiet_NaN();
  if (!impl_->validation.empty() && !impl_->trees.empty())
    impl_->validation_loss = mean_loss(impl_->problem, impl_->scores, impl_->validation, impl_->team);
  return {};
}

}  // namespace falaj::kernels::trees
