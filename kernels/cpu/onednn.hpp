// What the kernels on oneDNN share. oneDNN decides at the making of a primitive over how many OpenMP threads it will spread the work, and
// the sums' order with it. Executors keep to the thread that calls them, so both the making and each run begin with one_thread().
#pragma once
#include <dnnl.hpp>
#include <string_view>

#include "runtime/base/format.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels::cpu {

void one_thread();  // OpenMP, and so oneDNN, stays on the calling thread

inline const dnnl::engine& engine() {
  static const dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

inline dnnl::stream stream() {
  one_thread();
  return dnnl::stream(engine());
}

inline Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("oneDNN: {}", why)}; }

}  // namespace falaj::kernels::cpu
