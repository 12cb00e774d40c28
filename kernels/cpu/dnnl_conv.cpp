// Conv and its gradients by oneDNN, on ONNX's own layout, for weights that change from run to run: training. Each primitive asks for the
// layouts it likes best; what differs is reordered in the run, into scratch memory.
//
// For graphs that are compiled to be batch-invariant a primitive is made for one image and run for each.
#include <unordered_map>

#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/onednn.hpp"
#include "kernels/ops/conv.hpp"

namespace falaj::kernels::cpu {
namespace {

using dnnl::memory;

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// One tensor of the op: as ONNX has it, and as the primitive wants it.
struct Side {
  memory::desc own, wanted;
  int role = 0;            // DNNL_ARG_...
  std::size_t offset = 0;  // of the reordered copy in the scratch
  std::size_t step = 0;    // bytes from image to image, where images go one by one
  dnnl::reorder reorder;   // in: own to wanted; of the result: the other way round
  [[nodiscard]] bool differs() const { return own != wanted; }
};

class DnnlConv final : public Kernel {
 public:
  // Sides: two inputs, the result; then, where there is one, the bias.
  DnnlConv(dnnl::primitive primitive, std::vector<Side> sides, const memory::desc& scratch, std::string_view name, std::int64_t images)
      : primitive_(std::move(primitive)), sides_(std::move(sides)), scratch_(scratch), images_(images), name_(format("oneDNN {}", name)) {
    bytes_ = aligned(scratch.get_size());
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      Side& side = sides_[i];
      if (!side.differs()) continue;
      side.offset = bytes_;
      bytes_ += aligned(side.wanted.get_size());
      const bool result = i == kResult;
      side.reorder = dnnl::reorder(
          dnnl::reorder::primitive_desc(engine(), result ? side.wanted : side.own, engine(), result ? side.own : side.wanted));
    }
  }
  void run(const Io& io) const override {
    dnnl::stream work = stream();
    for (std::int64_t n = 0; n < images_; ++n) {
      std::unordered_map<int, memory> arguments;
      for (std::size_t i = 0; i < sides_.size(); ++i) {
        const Side& side = sides_[i];
        memory own = at(io, i, n);
        memory wanted = side.differs() ? memory(side.wanted, engine(), io.scratch + side.offset) : own;
        // Weights are the same for each image.
        if (side.differs() && i != kResult && (n == 0 || side.step > 0)) side.reorder.execute(work, own, wanted);
        arguments.emplace(side.role, wanted);
      }
      if (scratch_.get_size() > 0) arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(scratch_, engine(), io.scratch));
      primitive_.execute(work, arguments);
      const Side& result = sides_[kResult];
      memory own = at(io, kResult, n);
      if (result.differs()) result.reorder.execute(work, arguments.at(result.role), own);
    }
    work.wait();
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return bytes_; }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static constexpr std::size_t kResult = 2;
  memory at(const Io& io, std::size_t i, std::int64_t n) const {
    void* data = i == kResult ? io.out[0] : io.in[i == 3 ? 2 : i];
    return memory(sides_[i].own, engine(), static_cast<std::byte*>(data) + static_cast<std::size_t>(n) * sides_[i].step);
  }

  dnnl::primitive primitive_;
  std::vector<Side> sides_;
  memory::desc scratch_;
  std::int64_t images_;
  std::string name_;
  std::size_t bytes_ = 0;
};

memory::desc plain(const memory::dims& dims) {
  memory::dims strides(dims.size(), 1);
  for (std::size_t i = dims.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * dims[i + 1];
  return memory::desc(dims, memory::data_type::f32, strides);
}
memory::desc any(const memory::dims& dims) { return memory::desc(dims, memory::data_type::f32, memory::format_tag::any); }

struct Problem {
  memory::dims x, w, y, strides, dilations, pad_begin, pad_end;
  std::int64_t images = 1;  // runs of one image each
};
Problem problem(const ConvSpec& s, bool one_by_one) {
  Problem p;
  const Window& v = s.window;
  p.images = one_by_one ? s.batch : 1;
  p.x = {one_by_one ? 1 : s.batch, s.channels};
  p.y = {one_by_one ? 1 : s.batch, s.maps};
  p.w = {s.maps / s.groups, s.channels / s.groups};
  if (s.groups > 1) p.w.insert(p.w.begin(), s.groups);
  p.x.insert(p.x.end(), v.in.begin(), v.in.end());
  p.y.insert(p.y.end(), v.out.begin(), v.out.end());
  p.w.insert(p.w.end(), v.kernel.begin(), v.kernel.end());
  p.strides = v.strides;
  p.pad_begin = v.pad_begin;
  for (std::size_t d = 0; d < v.rank(); ++d) {
    p.dilations.push_back(v.dilations[d] - 1);
    p.pad_end.push_back((v.out[d] - 1) * v.strides[d] + v.extent(d) - v.in[d] - v.pad_begin[d]);  // what is read, not what is declared
  }
  return p;
}

std::size_t bytes_of(const memory::dims& dims) { return plain(dims).get_size(); }

Result<KernelPtr> make(const KernelCall& call, const ConvSpec& spec) {
  one_thread();
  const Problem p = problem(spec, call.batch_invariant);
  const std::size_t x_step = p.images > 1 ? bytes_of(p.x) : 0;
  const std::size_t y_step = p.images > 1 ? bytes_of(p.y) : 0;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const bool bias = call.node.op == "Conv" && call.has(2);
  const memory::desc bias_desc = bias ? memory::desc({spec.maps}, memory::data_type::f32, memory::format_tag::a) : memory::desc();
  const auto algorithm = dnnl::algorithm::convolution_direct;
  using forward = dnnl::convolution_forward;
  const auto kind = call.batch_invariant ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;
  const auto forward_desc =
      bias ? forward::desc(kind, algorithm, any(p.x), any(p.w), bias_desc, any(p.y), p.strides, p.dilations, p.pad_begin, p.pad_end)
           : forward::desc(kind, algorithm, any(p.x), any(p.w), any(p.y), p.strides, p.dilations, p.pad_begin, p.pad_end);
  const forward::primitive_desc pd(forward_desc, attributes, engine());
  if (call.node.op == "Conv") {
    std::vector<Side> sides = {{plain(p.x), pd.src_desc(), DNNL_ARG_SRC, 0, x_step, {}},
                               {plain(p.w), pd.weights_desc(), DNNL_ARG_WEIGHTS, 0, 0, {}},
                               {plain(p.y), pd.dst_desc(), DNNL_ARG_DST, 0, y_step, {}}};
    if (bias) sides.push_back({bias_desc, bias_desc, DNNL_ARG_BIAS, 0, 0, {}});
    return std::make_unique<DnnlConv>(forward(pd), std::move(sides), pd.scratchpad_desc(), pd.impl_info_str(), p.images);
  }
  if (call.node.op == "ConvDataGrad") {
    using backward = dnnl::convolution_backward_data;
    const backward::primitive_desc back(
        backward::desc(algorithm, any(p.x), any(p.w), any(p.y), p.strides, p.dilations, p.pad_begin, p.pad_end), attributes, engine(), pd);
    std::vector<Side> sides = {{plain(p.y), back.diff_dst_desc(), DNNL_ARG_DIFF_DST, 0, y_step, {}},
                               {plain(p.w), back.weights_desc(), DNNL_ARG_WEIGHTS, 0, 0, {}},
                               {plain(p.x), back.diff_src_desc(), DNNL_ARG_DIFF_SRC, 0, x_step, {}}};
    return std::make_unique<DnnlConv>(backward(back), std::move(sides), back.scratchpad_desc(), back.impl_info_str(), p.images);
  }
  if (p.images > 1) return refuse("a gradient of weights sums over the batch");
  using backward = dnnl::convolution_backward_weights;
  const backward::primitive_desc back(
      backward::desc(algorithm, any(p.x), any(p.w), any(p.y), p.strides, p.dilations, p.pad_begin, p.pad_end), attributes, engine(), pd);
  std::vector<Side> sides = {{plain(p.y), back.diff_dst_desc(), DNNL_ARG_DIFF_DST, 0, 0, {}},
                             {plain(p.x), back.src_desc(), DNNL_ARG_SRC, 0, 0, {}},
                             {plain(p.w), back.diff_weights_desc(), DNNL_ARG_DIFF_WEIGHTS, 0, 0, {}}};
  return std::make_unique<DnnlConv>(backward(back), std::move(sides), back.scratchpad_desc(), back.impl_info_str(), 1);
}

}  // namespace

Result<KernelPtr> make_dnnl_conv(const KernelCall& call) {
  if (call.in(0).dtype != DType::f32) return refuse(format("only float32, not {}", to_string(call.in(0).dtype)));
  // Conv: x, w; the gradients: dy, w, x and dy, x, w, the last for its shape.
  const std::string& op = call.node.op;
  FALAJ_ASSIGN(const auto spec, op == "Conv"           ? conv_spec(call, 0, 1)
                                : op == "ConvDataGrad" ? conv_spec(call, 2, 1)
                                                       : conv_spec(call, 1, 2));
  if (spec.window.rank() > 3) return refuse("at most three spatial dimensions");
  if (conv_shape(spec).elements() == 0 || call.outputs[0].shape.elements() == 0 || call.in(0).shape.elements() == 0)
    return refuse("nothing to compute");
  try {
    return make(call, spec);
  } catch (const dnnl::error& e) {
    return refuse(format("{} (status {})", e.what(), static_cast<int>(e.status)));
  }
}

}  // namespace falaj::kernels::cpu
