// Reference kernels for element types that they are not written for: operands are widened before the kernel, results narrowed after.
// Integers wrap around as they would have in their own width; floats are rounded once, at the end.
#include <algorithm>
#include <array>
#include <memory>

#include "kernels/convert.hpp"
#include "kernels/ops.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

constexpr std::size_t kAlign = 64;

DType wider(DType dtype) {
  switch (dtype) {
    case DType::f16:
    case DType::bf16:
      return DType::f32;
    case DType::f32:
      return DType::f64;
    case DType::i8:
    case DType::u8:
    case DType::i16:
    case DType::u16:
      return DType::i32;
    case DType::u32:
    case DType::i32:
      return DType::i64;
    default:
      return dtype;
  }
}

struct Change {
  std::size_t index;
  DType from, to;  // the op's type and the kernel's
  std::int64_t elements;
  std::size_t offset;  // in the scratch
};

class WidenedKernel final : public Kernel {
 public:
  WidenedKernel(KernelPtr inner, std::vector<Change> inputs, std::vector<Change> outputs, std::size_t arguments_in,
                std::size_t arguments_out, std::size_t bytes)
      : inner_(std::move(inner)),
        inputs_(std::move(inputs)),
        outputs_(std::move(outputs)),
        arguments_in_(arguments_in),
        arguments_out_(arguments_out),
        bytes_(bytes) {}

  void run(const Io& io) const override {
    // Pointers of a launch are few; what comes first in the scratch is their changed copies.
    auto* in = reinterpret_cast<void**>(io.scratch);
    auto* out = in + arguments_in_;
    std::copy_n(io.in, arguments_in_, in);
    std::copy_n(io.out, arguments_out_, out);
    for (const Change& c : inputs_) {
      if (io.in[c.index] == nullptr) continue;
      in[c.index] = io.scratch + c.offset;
      convert_elements(c.from, io.in[c.index], c.to, in[c.index], c.elements);
    }
    for (const Change& c : outputs_) {
      if (io.out[c.index] != nullptr) out[c.index] = io.scratch + c.offset;
    }
    inner_->run(Io{in, out, io.scratch + bytes_, io.failure});
    if (!io.failure->empty()) return;
    for (const Change& c : outputs_) {
      if (io.out[c.index] != nullptr) convert_elements(c.to, out[c.index], c.from, io.out[c.index], c.elements);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return bytes_ + inner_->scratch_bytes(); }

 private:
  KernelPtr inner_;
  std::vector<Change> inputs_, outputs_;
  std::size_t arguments_in_, arguments_out_;
  std::size_t bytes_;
};

struct Widened {
  std::vector<ValueType> types;
  std::vector<Change> changes;
};

// `known`: for outputs, the inputs' changes; an output of a type that no changed input has is what the op always gives (indices, say).
Result<Widened> widen(std::span<const ValueType> given, std::size_t& bytes, int steps, std::vector<Tensor>& constants,
                      std::uint32_t shape_only, const std::vector<Change>* known = nullptr) {
  Widened w;
  for (std::size_t i = 0; i < given.size(); ++i) {
    ValueType type = given[i];
    DType to = type.dtype;
    for (int s = 0; s < steps; ++s) to = wider(to);
    bool relevant = known == nullptr || std::ranges::find(*known, type.dtype, &Change::from) != known->end();
    if (to != type.dtype && relevant) {
      bool unread = i < 32 && ((shape_only >> i) & 1U) != 0;
      FALAJ_ASSIGN(std::size_t size, byte_size(to, type.shape));
      if (!unread) w.changes.push_back({i, type.dtype, to, type.shape.elements(), bytes});
      if (!unread) bytes += (size + kAlign - 1) / kAlign * kAlign;
      if (type.constant != nullptr) {
        constants.push_back(converted(*type.constant, to));
        type.constant = &constants.back();
      }
      type.dtype = to;
    }
    w.types.push_back(type);
  }
  return w;
}

Result<KernelPtr> make_widened(const OpDef& op, const KernelCall& call, int steps) {
  std::size_t bytes = ((call.inputs.size() + call.outputs.size()) * sizeof(void*) + kAlign - 1) / kAlign * kAlign;
  std::vector<Tensor> constants;
  constants.reserve(call.inputs.size());
  FALAJ_ASSIGN(auto in, widen(call.inputs, bytes, steps, constants, op.shape_only));
  FALAJ_ASSIGN(auto out, widen(call.outputs, bytes, steps, constants, 0, &in.changes));
  if (in.changes.empty() && out.changes.empty()) return no_kernel(call.inputs.empty() ? DType::undefined : call.in(0).dtype);
  KernelCall wide{{call.node, in.types, call.opset}, out.types, nullptr, call.batch_invariant};
  FALAJ_ASSIGN(KernelPtr inner, op.reference(wide));
  return std::make_unique<const WidenedKernel>(std::move(inner), std::move(in.changes), std::move(out.changes), call.inputs.size(),
                                               call.outputs.size(), bytes);
}

}  // namespace

Result<KernelPtr> make_reference(const OpDef& op, const KernelCall& call) {
  if (op.reference == nullptr) return Error{ErrorCode::unimplemented, "it runs in the interpreter only"};
  auto kernel = op.reference(call);
  for (int steps = 1; steps <= 2 && !kernel && kernel.error().code == ErrorCode::unimplemented; ++steps) {
    auto wide = make_widened(op, call, steps);
    if (wide) return wide;
  }
  return kernel;
}

}  // namespace falaj::kernels
