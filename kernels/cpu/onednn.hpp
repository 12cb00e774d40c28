// What the kernels on oneDNN share, versions 2 (from 2.6) and 3, which describe primitives by other calls. oneDNN decides at the making of
// a primitive over how many OpenMP threads it will spread the work, and the sums' order with it. Executors keep to the thread that calls
// them, so both the making and each run begin with one_thread().
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

inline void append_eltwise(dnnl::post_ops& ops, dnnl::algorithm algorithm, float alpha = 0, float beta = 0) {
#if DNNL_VERSION_MAJOR >= 3
  ops.append_eltwise(algorithm, alpha, beta);
#else
  ops.append_eltwise(1.0F, algorithm, alpha, beta);
#endif
}

// A bias is none where its description is of no dimension.
inline dnnl::matmul::primitive_desc describe_product(const dnnl::memory::desc& a, const dnnl::memory::desc& b,
                                                     const dnnl::memory::desc& bias, const dnnl::memory::desc& y,
                                                     const dnnl::primitive_attr& attributes) {
  const bool biased = bias.get_size() > 0;
#if DNNL_VERSION_MAJOR >= 3
  if (!biased) return {engine(), a, b, y, attributes};
  return {engine(), a, b, bias, y, attributes};
#else
  return {biased ? dnnl::matmul::desc(a, b, bias, y) : dnnl::matmul::desc(a, b, y), attributes, engine()};
#endif
}

// A convolution's tensors and window, for it and for its gradients, in which they are gradients where these are.
struct ConvSides {
  dnnl::memory::desc x, w, bias, y;
  dnnl::memory::dims strides, dilations, pad_begin, pad_end;
};
inline dnnl::convolution_forward::primitive_desc describe_conv(dnnl::prop_kind kind, const ConvSides& s,
                                                               const dnnl::primitive_attr& attributes) {
  const bool biased = s.bias.get_size() > 0;
  constexpr auto kDirect = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
  if (!biased) return {engine(), kind, kDirect, s.x, s.w, s.y, s.strides, s.dilations, s.pad_begin, s.pad_end, attributes};
  return {engine(), kind, kDirect, s.x, s.w, s.bias, s.y, s.strides, s.dilations, s.pad_begin, s.pad_end, attributes};
#else
  using dnnl::convolution_forward;
  return {biased ? convolution_forward::desc(kind, kDirect, s.x, s.w, s.bias, s.y, s.strides, s.dilations, s.pad_begin, s.pad_end)
                 : convolution_forward::desc(kind, kDirect, s.x, s.w, s.y, s.strides, s.dilations, s.pad_begin, s.pad_end),
          attributes, engine()};
#endif
}
// Gradient: convolution_backward_data or convolution_backward_weights.
template <class Gradient>
typename Gradient::primitive_desc describe_grad(const ConvSides& s, const dnnl::primitive_attr& attributes,
                                                const dnnl::convolution_forward::primitive_desc& forward) {
  constexpr auto kDirect = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
  return {engine(), kDirect, s.x, s.w, s.y, s.strides, s.dilations, s.pad_begin, s.pad_end, forward, attributes};
#else
  return {typename Gradient::desc(kDirect, s.x, s.w, s.y, s.strides, s.dilations, s.pad_begin, s.pad_end), attributes, engine(), forward};
#endif
}

inline Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("oneDNN: {}", why)}; }

}  // namespace falaj::kernels::cpu
