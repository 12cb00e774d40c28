// Metrics as values that merge: each worker fills one from its rows, the merged one is the same whoever saw which row (AUC and the
// confusion matrix exactly, sums up to the last bits of a double).
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace falaj::kernels {

// Area under the ROC curve as the share of (positive, negative) pairs in the right order, ties counting half. 0.5 when one
// class is absent. weights empty: all 1.
double auc(std::span<const float> scores, std::span<const std::uint8_t> positive, std::span<const double> weights = {});

class BinaryMetrics {
 public:
  void add(float probability, bool positive, double weight = 1.0);
  void merge(const BinaryMetrics& other);
  [[nodiscard]] double weight() const noexcept { return true_positive + false_positive + true_negative + false_negative; }
  [[nodiscard]] double auc() const;
  [[nodiscard]] double log_loss() const;  // natural logarithm; probabilities are kept 1e-7 away from 0 and 1
  [[nodiscard]] double accuracy() const;
  [[nodiscard]] double precision() const;  // 0 when nothing was predicted positive
  [[nodiscard]] double recall() const;
  [[nodiscard]] double f1() const;

  double true_positive = 0, false_positive = 0, true_negative = 0, false_negative = 0;  // threshold 0.5

 private:
  double log_loss_sum_ = 0;
  std::vector<float> scores_;
  std::vector<std::uint8_t> positive_;
  std::vector<double> weights_;
};

class MulticlassMetrics {
 public:
  explicit MulticlassMetrics(std::size_t classes) : classes_(classes), confusion_(classes * classes, 0.0) {}
  void add(std::span<const float> probabilities, std::size_t label, double weight = 1.0);
  void merge(const MulticlassMetrics& other);
  [[nodiscard]] std::size_t classes() const noexcept { return classes_; }
  [[nodiscard]] double weight() const;
  [[nodiscard]] double accuracy() const;
  [[nodiscard]] double log_loss() const;
  [[nodiscard]] double macro_f1() const;
  [[nodiscard]] double confusion(std::size_t actual, std::size_t predicted) const { return confusion_[actual * classes_ + predicted]; }

 private:
  std::size_t classes_;
  double log_loss_sum_ = 0;
  std::vector<double> confusion_;  // [actual][predicted]
};

class RegressionMetrics {
 public:
  void add(float prediction, float target, double weight = 1.0);
  void merge(const RegressionMetrics& other);
  [[nodiscard]] double weight() const noexcept { return weight_; }
  [[nodiscard]] double rmse() const;
  [[nodiscard]] double mae() const;
  [[nodiscard]] double r2() const;  // 0 when the target is constant

 private:
  double weight_ = 0, squares_ = 0, absolutes_ = 0, target_sum_ = 0, target_squares_ = 0;
};

}  // namespace falaj::kernels
