#include "kernels/train/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace falaj::kernels {

namespace {

double share(double part, double whole) { return whole == 0 ? 0.0 : part / whole; }

double surprise(double probability) { return -std::log(std::clamp(probability, 1e-7, 1.0 - 1e-7)); }

}  // namespace

double auc(std::span<const float> scores, std::span<const std::uint8_t> positive, std::span<const double> weights) {
  std::vector<std::uint32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0U);
  std::ranges::sort(order, [&](std::uint32_t a, std::uint32_t b) { return scores[a] < scores[b]; });
  double pairs = 0;
  double negatives = 0;
  double positives = 0;
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin;
    double tied_positive = 0;
    double tied_negative = 0;
    for (; end < order.size() && !(scores[order[begin]] < scores[order[end]]); ++end) {
      const double weight = weights.empty() ? 1.0 : weights[order[end]];
      (positive[order[end]] != 0 ? tied_positive : tied_negative) += weight;
    }
    pairs += tied_positive * (negatives + 0.5 * tied_negative);
    positives += tied_positive;
    negatives += tied_negative;
    begin = end;
  }
  return positives == 0 || negatives == 0 ? 0.5 : pairs / (positives * negatives);
}

void BinaryMetrics::add(float probability, bool positive, double weight) {
  const bool predicted = probability > 0.5F;
  (predicted ? (positive ? true_positive : false_positive) : (positive ? false_negative : true_negative)) += weight;
  log_loss_sum_ += weight * surprise(positive ? probability : 1.0 - static_cast<double>(probability));
  scores_.push_back(probability);
  positive_.push_back(positive ? 1 : 0);
  weights_.push_back(weight);
}

void BinaryMetrics::merge(const BinaryMetrics& other) {
  true_positive += other.true_positive;
  false_positive += other.false_positive;
  true_negative += other.true_negative;
  false_negative += other.false_negative;
  log_loss_sum_ += other.log_loss_sum_;
  scores_.insert(scores_.end(), other.scores_.begin(), other.scores_.end());
  positive_.insert(positive_.end(), other.positive_.begin(), other.positive_.end());
  weights_.insert(weights_.end(), other.weights_.begin(), other.weights_.end());
}

double BinaryMetrics::auc() const { return kernels::auc(scores_, positive_, weights_); }
double BinaryMetrics::log_loss() const { return share(log_loss_sum_, weight()); }
double BinaryMetrics::accuracy() const { return share(true_positive + true_negative, weight()); }
double BinaryMetrics::precision() const { return share(true_positive, true_positive + false_positive); }
double BinaryMetrics::recall() const { return share(true_positive, true_positive + false_negative); }
double BinaryMetrics::f1() const { return share(2 * true_positive, 2 * true_positive + false_positive + false_negative); }

void MulticlassMetrics::add(std::span<const float> probabilities, std::size_t label, double weight) {
  const auto best = static_cast<std::size_t>(std::ranges::max_element(probabilities) - probabilities.begin());
  confusion_[label * classes_ + best] += weight;
  log_loss_sum_ += weight * surprise(probabilities[label]);
}

void MulticlassMetrics::merge(const MulticlassMetrics& other) {
  for (std::size_t i = 0; i < std::min(confusion_.size(), other.confusion_.size()); ++i) confusion_[i] += other.confusion_[i];
  log_loss_sum_ += other.log_loss_sum_;
}

double MulticlassMetrics::weight() const { return std::accumulate(confusion_.begin(), confusion_.end(), 0.0); }
double MulticlassMetrics::log_loss() const { return share(log_loss_sum_, weight()); }

double MulticlassMetrics::accuracy() const {
  double right = 0;
  for (std::size_t c = 0; c < classes_; ++c) right += confusion(c, c);
  return share(right, weight());
}

double MulticlassMetrics::macro_f1() const {
  double sum = 0;
  for (std::size_t c = 0; c < classes_; ++c) {
    double actual = 0;
    double predicted = 0;
    for (std::size_t other = 0; other < classes_; ++other) {
      actual += confusion(c, other);
      predicted += confusion(other, c);
    }
    sum += share(2 * confusion(c, c), actual + predicted);
  }
  return share(sum, static_cast<double>(classes_));
}

void RegressionMetrics::add(float prediction, float target, double weight) {
  const double difference = static_cast<double>(prediction) - static_cast<double>(target);
  weight_ += weight;
  squares_ += weight * difference * difference;
  absolutes_ += weight * std::abs(difference);
  target_sum_ += weight * target;
  target_squares_ += weight * static_cast<double>(target) * target;
}

void RegressionMetrics::merge(const RegressionMetrics& other) {
  weight_ += other.weight_;
  squares_ += other.squares_;
  absolutes_ += other.absolutes_;
  target_sum_ += other.target_sum_;
  target_squares_ += other.target_squares_;
}

double RegressionMetrics::rmse() const { return std::sqrt(share(squares_, weight_)); }
double RegressionMetrics::mae() const { return share(absolutes_, weight_); }
double RegressionMetrics::r2() const {
  const double spread = target_squares_ - share(target_sum_ * target_sum_, weight_);
  return spread <= 0 ? 0.0 : 1.0 - squares_ / spread;
}

}  // namespace falaj::kernels
