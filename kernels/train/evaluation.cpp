// What an Evaluation says: its metrics by name, and how two become one.
#include "kernels/train/trainer.hpp"

namespace falaj::kernels {

double Evaluation::score() const {
  if (const auto* binary = std::get_if<BinaryMetrics>(&metrics)) return binary->auc();
  if (const auto* classes = std::get_if<MulticlassMetrics>(&metrics)) return classes->accuracy();
  return -std::get<RegressionMetrics>(metrics).rmse();
}

std::map<std::string, double, std::less<>> Evaluation::named() const {
  if (const auto* m = std::get_if<BinaryMetrics>(&metrics)) {
    return {{"auc", m->auc()},
            {"log_loss", m->log_loss()},
            {"accuracy", m->accuracy()},
            {"precision", m->precision()},
            {"recall", m->recall()},
            {"f1", m->f1()},
            {"loss", loss()}};
  }
  if (const auto* m = std::get_if<MulticlassMetrics>(&metrics)) {
    return {{"accuracy", m->accuracy()}, {"log_loss", m->log_loss()}, {"macro_f1", m->macro_f1()}, {"loss", loss()}};
  }
  const auto& m = std::get<RegressionMetrics>(metrics);
  return {{"rmse", m.rmse()}, {"mae", m.mae()}, {"r2", m.r2()}, {"loss", loss()}};
}

Status Evaluation::merge(const Evaluation& other) {
  if (metrics.index() != other.metrics.index()) return invalid("evaluations of different tasks cannot be merged");
  loss_sum += other.loss_sum;
  rows += other.rows;
  std::visit([&]<class M>(M& mine) { mine.merge(std::get<M>(other.metrics)); }, metrics);
  return {};
}

}  // namespace falaj::kernels
