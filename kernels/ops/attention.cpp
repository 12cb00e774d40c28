// Attention(q, k, v, by?) of ai.falaj: y = softmax(scale * by * q k^T) v for each head (scale an attribute, by of one element), with the
// heads after the tokens: q [N, T, H, D], k [N, S, H, D], v [N, S, H, E] -> y [N, T, H, E]. What exporters write as transposed products
// (find_attention()); nothing differentiates it.
#include <algorithm>
#include <cmath>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

Status infer_attention(InferCall& call) {
  const Shape& q = call.in(0).shape;
  const Shape& k = call.in(1).shape;
  const Shape& v = call.in(2).shape;
  const bool fits = q.rank() == 4 && k.rank() == 4 && v.rank() == 4 && q[0] == k[0] && q[0] == v[0] && q[2] == k[2] && q[2] == v[2] &&
                    q[3] == k[3] && k[1] == v[1];
  if (!fits)
    return Error{ErrorCode::invalid, format("{}, {} and {} are no queries, keys and values", to_string(q), to_string(k), to_string(v))};
  if (call.has(3) && (call.in(3).shape.elements() != 1 || call.in(3).dtype != call.in(0).dtype))
    return Error{ErrorCode::invalid, format("{} {} is no factor", to_string(call.in(3).dtype), to_string(call.in(3).shape))};
  FALAJ_TRY(infer_float(call));
  call.outputs[0].shape = {q[0], q[1], q[2], v[3]};
  return {};
}

template <class T>
KernelPtr attention_kernel(const Shape& q, const Shape& v, double scale, bool has_by) {
  const std::int64_t tokens = q[1], heads = q[2], depth = q[3], keys = v[1], width = v[3];
  return make_kernel(
      [batch = q[0], tokens, heads, depth, keys, width, scale, has_by](const Io& io) {
        const double by = has_by ? scale * static_cast<double>(io.input<T>(3)[0]) : scale;
        auto* weights = reinterpret_cast<double*>(io.scratch);
        for (std::int64_t i = 0; i < batch * tokens * heads; ++i) {
          const std::int64_t n = i / (tokens * heads);
          const std::int64_t h = i % heads;
          const T* query = io.input<T>(0) + i * depth;
          const T* key = io.input<T>(1) + (n * keys * heads + h) * depth;
          double top = -INFINITY;
          for (std::int64_t s = 0; s < keys; ++s, key += heads * depth) {
            double product = 0;
            for (std::int64_t d = 0; d < depth; ++d) product += static_cast<double>(query[d]) * static_cast<double>(key[d]);
            weights[s] = product * by;
            top = std::max(top, weights[s]);
          }
          double sum = 0;
          for (std::int64_t s = 0; s < keys; ++s) sum += weights[s] = std::exp(weights[s] - top);
          for (std::int64_t e = 0; e < width; ++e) {
            const T* value = io.input<T>(2) + (n * keys * heads + h) * width + e;
            double y = 0;
            for (std::int64_t s = 0; s < keys; ++s) y += weights[s] * static_cast<double>(value[s * heads * width]);
            io.output<T>(0)[i * width + e] = static_cast<T>(y / sum);
          }
        }
      },
      static_cast<std::size_t>(keys) * sizeof(double));
}

Result<KernelPtr> make_attention(const KernelCall& c) {
  FALAJ_ASSIGN(const double scale, attr_float(c.node, "scale", 1.0));
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return attention_kernel<T>(c.in(0).shape, c.in(2).shape, scale, c.has(3)); });
}

constexpr OpDef kOps[] = {
    {kFalaj, "Attention", 3, 4, 1, 1, infer_attention, make_attention},
};

}  // namespace

std::span<const OpDef> attention_ops() { return kOps; }

}  // namespace falaj::kernels
