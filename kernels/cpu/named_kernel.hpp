// Kernels of one function that say what they are.
#pragma once
#include <memory>
#include <string_view>
#include <utility>

#include "kernels/ops.hpp"

namespace falaj::kernels::cpu {

template <class F>
class NamedKernel final : public Kernel {
 public:
  NamedKernel(std::string_view name, F f, std::size_t scratch) : name_(name), f_(std::move(f)), scratch_(scratch) {}
  void run(const Io& io) const override { f_(io); }
  [[nodiscard]] std::size_t scratch_bytes() const override { return scratch_; }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  std::string_view name_;
  F f_;
  std::size_t scratch_;
};
// `name` is kept as it is given: a literal.
template <class F>
KernelPtr named_kernel(std::string_view name, F f, std::size_t scratch = 0) {
  return std::make_unique<NamedKernel<F>>(name, std::move(f), scratch);
}

}  // namespace falaj::kernels::cpu
