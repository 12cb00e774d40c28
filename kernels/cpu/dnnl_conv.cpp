// Conv and its gradients by oneDNN, on ONNX's own layout or on blocks of channels (kernels/ops/blocks.hpp), for weights that change from
// run to run: training. Blocks are read and written as they lie. Of all else each primitive asks for the layouts it likes best; what
// differs is reordered in the run, into scratch memory.
//
// A primitive is made for a part of the work and run for each, by as many threads as there are: a few images, or one where the graph is
// compiled to be batch-invariant; of the gradient of weights some of the maps, or of blocks some of the images, whose sums are added then.
// How large a part is follows from shapes alone. Scratch memory is that of the parts which run at a time.
#include <cstring>
#include <unordered_map>

#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/onednn.hpp"
#include "kernels/ops/blocks.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

using dnnl::memory;

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// One tensor of the op: as ONNX has it, and as the primitive wants it.
struct Side {
  memory::desc own, wanted;
  int role = 0;            // DNNL_ARG_...
  std::size_t step = 0;    // bytes from part to part; 0: the same for all
  std::size_t offset = 0;  // of the reordered copy in the scratch, or in a slot of it
  dnnl::reorder reorder;   // in: own to wanted; of the result: the other way round
  [[nodiscard]] bool differs() const { return own != wanted; }
};

class DnnlConv final : public Kernel {
 public:
  // Sides: two inputs, the result; then, where there is one, the bias. `summed`: the parts' results are to be added up.
  DnnlConv(dnnl::primitive primitive, std::vector<Side> sides, const memory::desc& scratch, std::string_view name, std::int64_t parts,
           std::size_t threads, bool summed = false)
      : primitive_(std::move(primitive)),
        sides_(std::move(sides)),
        scratch_(scratch),
        parts_(parts),
        slots_(std::min(parts, static_cast<std::int64_t>(threads))),
        summed_(summed && parts > 1),
        name_(format("oneDNN {}{}", name, parts > 1 ? format(", {} parts", parts) : "")) {
    slot_bytes_ = aligned(scratch.get_size());
    if (summed_) shared_bytes_ = static_cast<std::size_t>(parts) * term_bytes();
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      Side& side = sides_[i];
      if (!side.differs()) continue;
      const bool result = i == kResult;
      side.reorder = dnnl::reorder(
          dnnl::reorder::primitive_desc(engine(), result ? side.wanted : side.own, engine(), result ? side.own : side.wanted));
      if (result && summed_) continue;
      std::size_t& end = side.step == 0 && i != kResult ? shared_bytes_ : slot_bytes_;
      side.offset = end;
      end += aligned(side.wanted.get_size());
    }
  }
  void run(const Io& io) const override {
    dnnl::stream work = stream();
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      const Side& side = sides_[i];
      if (!side.differs() || side.step > 0 || i == kResult) continue;
      memory own = at(io, i, 0);
      memory wanted(side.wanted, engine(), io.scratch + side.offset);
      side.reorder.execute(work, own, wanted);
    }
    work.wait();
    in_slots(io, parts_, slots_, [&](std::int64_t part, std::int64_t slot) {
      run_part(io, part, io.scratch + shared_bytes_ + static_cast<std::size_t>(slot) * slot_bytes_);
    });
    if (summed_) sum_up(io);
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return shared_bytes_ + static_cast<std::size_t>(slots_) * slot_bytes_; }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static constexpr std::size_t kResult = 2;
  memory at(const Io& io, std::size_t i, std::int64_t part) const {
    void* data = i == kResult ? io.out[0] : io.in[i == 3 ? 2 : i];
    return memory(sides_[i].own, engine(), static_cast<std::byte*>(data) + static_cast<std::size_t>(part) * sides_[i].step);
  }
  void run_part(const Io& io, std::int64_t part, std::byte* slot) const {
    dnnl::stream work = stream();
    std::unordered_map<int, memory> arguments;
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      const Side& side = sides_[i];
      if (i == kResult && summed_) {
        arguments.emplace(side.role, memory(side.wanted, engine(), term(io, part)));
        continue;
      }
      memory own = at(io, i, part);
      const bool shared = side.step == 0 && i != kResult;
      memory wanted = side.differs() ? memory(side.wanted, engine(), (shared ? io.scratch : slot) + side.offset) : own;
      if (side.differs() && !shared && i != kResult) side.reorder.execute(work, own, wanted);
      arguments.emplace(side.role, wanted);
    }
    if (scratch_.get_size() > 0) arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(scratch_, engine(), slot));
    primitive_.execute(work, arguments);
    const Side& result = sides_[kResult];
    memory own = at(io, kResult, part);
    if (result.differs() && !summed_) result.reorder.execute(work, arguments.at(result.role), own);
    work.wait();
  }

  [[nodiscard]] std::size_t term_bytes() const { return aligned(sides_[kResult].wanted.get_size()); }
  [[nodiscard]] float* term(const Io& io, std::int64_t part) const {
    return reinterpret_cast<float*>(io.scratch + static_cast<std::size_t>(part) * term_bytes());
  }
  void sum_up(const Io& io) const {
    const Side& result = sides_[kResult];
    const std::size_t bytes = result.wanted.get_size();
    in_ranges(io, static_cast<std::int64_t>(bytes / sizeof(float)), kPartWork, [&](std::int64_t first, std::int64_t last) {
      float* sum = term(io, 0);
      for (std::int64_t part = 1; part < parts_; ++part) {
        const float* more = term(io, part);
        for (std::int64_t i = first; i < last; ++i) sum[i] += more[i];
      }
    });
    if (!result.differs()) {
      std::memcpy(io.out[0], term(io, 0), bytes);
      return;
    }
    dnnl::stream work = stream();
    memory wanted(result.wanted, engine(), term(io, 0));
    memory own = at(io, kResult, 0);
    result.reorder.execute(work, wanted, own);
    work.wait();
  }

  dnnl::primitive primitive_;
  std::vector<Side> sides_;
  memory::desc scratch_;
  std::int64_t parts_, slots_;
  bool summed_;
  std::string name_;
  std::size_t shared_bytes_ = 0, slot_bytes_ = 0;
};

class BlockReorder final : public Kernel {
 public:
  BlockReorder(const memory::desc& from, const memory::desc& to, std::int64_t images)
      : from_(from), to_(to), images_(images), reorder_(dnnl::reorder::primitive_desc(engine(), from, engine(), to)) {}
  void run(const Io& io) const override {
    in_parts(io, images_, [&](std::int64_t i) {
      dnnl::stream work = stream();
      auto* x = static_cast<std::byte*>(const_cast<void*>(io.in[0]));
      memory from(from_, engine(), x + static_cast<std::size_t>(i) * from_.get_size());
      memory to(to_, engine(), static_cast<std::byte*>(io.out[0]) + static_cast<std::size_t>(i) * to_.get_size());
      dnnl::reorder(reorder_).execute(work, from, to);
      work.wait();
    });
  }
  [[nodiscard]] std::string_view implementation() const override { return "oneDNN reorder"; }

 private:
  memory::desc from_, to_;
  std::int64_t images_;
  dnnl::reorder reorder_;
};

memory::desc plain(const memory::dims& dims) {
  memory::dims strides(dims.size(), 1);
  for (std::size_t i = dims.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * dims[i + 1];
  return memory::desc(dims, memory::data_type::f32, strides);
}
struct Problem {
  memory::dims x, w, y, strides, dilations, pad_begin, pad_end;
  std::int64_t images = 1;  // parts by image
  std::int64_t maps = 1;    // or by maps
};
// The largest of 8, 4, 2 and 1 that divides n.
std::int64_t equal_parts(std::int64_t n) { return n % 8 == 0 ? 8 : n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1; }

Problem problem(const ConvSpec& s, bool one_by_one, bool of_weights, bool blocks) {
  Problem p;
  const Window& v = s.window;
  constexpr std::int64_t kWorkOfParts = std::int64_t{1} << 24;
  constexpr std::int64_t kMapsMin = 16;  // of a part: what the widest vectors hold
  const std::int64_t work = conv_shape(s).elements() * (s.channels / s.groups) * v.kernel_elements();
  if (one_by_one) {
    p.images = s.batch;
  } else if (of_weights && blocks) {
    p.images = work >= kWorkOfParts ? std::min<std::int64_t>(equal_parts(s.batch), 4) : 1;
  } else if (of_weights) {
    if (work >= kWorkOfParts && s.groups == 1)
      p.maps = std::min<std::int64_t>(equal_parts(s.maps / kMapsMin), s.maps % kMapsMin == 0 ? 4 : 1);
  } else if (work >= kWorkOfParts) {
    p.images = equal_parts(s.batch);
  }
  p.maps = std::max<std::int64_t>(p.maps, 1);
  p.x = {s.batch / p.images, s.channels};
  p.y = {s.batch / p.images, s.maps / p.maps};
  p.w = {s.maps / s.groups / p.maps, s.channels / s.groups};
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

// The input or the result of a convolution, or a gradient of one of them: plain f32, or blocks.
struct Form {
  bool blocks = false;
  memory::data_type type = memory::data_type::f32;
  [[nodiscard]] memory::desc own(const memory::dims& dims) const {
    return blocks ? memory::desc(dims, type, memory::format_tag::nChw16c) : plain(dims);
  }
  // Blocks stay if they may; others may become whatever the primitive likes.
  [[nodiscard]] memory::desc wanted(const memory::dims& dims, memory::data_type plain_type, bool stays) const {
    return blocks && stays ? own(dims) : memory::desc(dims, blocks ? type : plain_type, memory::format_tag::any);
  }
};
// Some of the maps of a plain tensor that has `maps` of them: images lie as far apart as before.
memory::desc some_maps(const memory::dims& dims, std::int64_t maps) {
  memory::dims whole = dims;
  whole[1] = maps;
  return plain(whole).submemory_desc(dims, memory::dims(dims.size(), 0));
}
Form form_of(const ValueType& type) {
  return {is_blocks(type.shape), type.dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32};
}

// What a call is, whether by Conv's ops or by those on blocks.
enum class Pass : std::uint8_t { forward, data, weights };
struct Call {
  Pass pass = Pass::forward;
  ConvSpec spec;
  Form x, y;
  bool bf16 = false;
  bool transposed = false;  // the gradient of a ConvTranspose: of its input a convolution, of its weights with x and y changed over
};

// Of some windows (strides with dilations), oneDNN knows nothing but plain loops where blocks stay: they are asked for again without that.
bool is_slow(std::string_view implementation) { return implementation.starts_with("ref"); }

Result<KernelPtr> make(const KernelCall& call, const Call& c, bool stays = true) {
  one_thread();
  const auto again = [&](std::string_view implementation) { return stays && (c.x.blocks || c.y.blocks) && is_slow(implementation); };
  const Problem p = problem(c.spec, call.batch_invariant, c.pass == Pass::weights, c.y.blocks);
  const std::size_t x_step = p.images > 1 ? c.x.own(p.x).get_size() : 0;
  const std::size_t y_step = p.images > 1 ? c.y.own(p.y).get_size() : 0;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto operand = c.bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  constexpr auto kF32 = memory::data_type::f32;
  const auto any = [](const memory::dims& dims, memory::data_type type) { return memory::desc(dims, type, memory::format_tag::any); };
  const bool bias = c.pass == Pass::forward && !c.transposed && call.has(2);
  const memory::desc bias_desc = bias ? memory::desc({c.spec.maps}, kF32, memory::format_tag::a) : memory::desc();
  const auto kind = call.batch_invariant ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;
  ConvSides s{c.x.wanted(p.x, operand, stays),
              any(p.w, operand),
              bias_desc,
              c.y.wanted(p.y, c.pass == Pass::forward ? kF32 : operand, stays),
              p.strides,
              p.dilations,
              p.pad_begin,
              p.pad_end};
  const auto pd = describe_conv(kind, s, attributes);
  if (again(pd.impl_info_str())) return make(call, c, false);
  if (c.pass == Pass::forward) {
    std::vector<Side> sides = {{c.x.own(p.x), pd.src_desc(), DNNL_ARG_SRC, x_step},
                               {plain(p.w), pd.weights_desc(), DNNL_ARG_WEIGHTS},
                               {c.y.own(p.y), pd.dst_desc(), DNNL_ARG_DST, y_step}};
    if (bias) sides.push_back({bias_desc, bias_desc, DNNL_ARG_BIAS});
    return std::make_unique<DnnlConv>(dnnl::convolution_forward(pd), std::move(sides), pd.scratchpad_desc(), pd.impl_info_str(), p.images,
                                      call.threads);
  }
  if (c.pass == Pass::data) {
    s.x = c.x.wanted(p.x, kF32, stays);
    const auto back = describe_grad<dnnl::convolution_backward_data>(s, attributes, pd);
    if (again(back.impl_info_str())) return make(call, c, false);
    std::vector<Side> sides = {{c.y.own(p.y), back.diff_dst_desc(), DNNL_ARG_DIFF_DST, y_step},
                               {plain(p.w), back.weights_desc(), DNNL_ARG_WEIGHTS},
                               {c.x.own(p.x), back.diff_src_desc(), DNNL_ARG_DIFF_SRC, x_step}};
    return std::make_unique<DnnlConv>(dnnl::convolution_backward_data(back), std::move(sides), back.scratchpad_desc(), back.impl_info_str(),
                                      p.images, call.threads);
  }
  if (p.images > 1 && call.batch_invariant) return refuse("a gradient of weights sums over the batch");
  s.w = any(p.w, kF32);
  const auto back = describe_grad<dnnl::convolution_backward_weights>(s, attributes, pd);
  if (again(back.impl_info_str())) return make(call, c, false);
  const bool by_maps = p.maps > 1;
  memory::dims maps_of_one = p.y;
  maps_of_one[0] = 1;
  std::vector<Side> sides = {{by_maps ? some_maps(p.y, c.spec.maps) : c.y.own(p.y), back.diff_dst_desc(), DNNL_ARG_DIFF_DST,
                              by_maps ? bytes_of(maps_of_one) : y_step},
                             {c.x.own(p.x), back.src_desc(), DNNL_ARG_SRC, x_step},
                             {plain(p.w), back.diff_weights_desc(), DNNL_ARG_DIFF_WEIGHTS, by_maps ? bytes_of(p.w) : 0}};
  if (c.transposed) std::swap(sides[0], sides[1]);
  return std::make_unique<DnnlConv>(dnnl::convolution_backward_weights(back), std::move(sides), back.scratchpad_desc(),
                                    back.impl_info_str(), p.maps * p.images, call.threads, p.images > 1);
}

Result<KernelPtr> make_if_fit(const KernelCall& call, const Call& c) {
  if (c.spec.window.rank() > 3) return refuse("at most three spatial dimensions");
  if (conv_shape(c.spec).elements() == 0 || call.outputs[0].shape.elements() == 0 || call.in(0).shape.elements() == 0)
    return refuse("nothing to compute");
  try {
    return make(call, c);
  } catch (const dnnl::error& e) {
    return refuse(format("{} (status {})", e.what(), static_cast<int>(e.status)));
  }
}

Result<KernelPtr> make_plain(const KernelCall& call, bool bf16) {
  if (call.in(0).dtype != DType::f32) return refuse(format("only float32, not {}", to_string(call.in(0).dtype)));
  // Conv: x, w; the gradients, also those of ConvTranspose: dy, w, x and dy, x, w, the last for its shape.
  const std::string& op = call.node.op;
  if (op.starts_with("ConvTranspose")) {
    Call c{op.ends_with("DataGrad") ? Pass::forward : Pass::weights, {}, {}, {}, bf16, true};
    FALAJ_ASSIGN(c.spec, transpose_grad_spec(call));
    return make_if_fit(call, c);
  }
  Call c{op == "Conv" ? Pass::forward : op == "ConvDataGrad" ? Pass::data : Pass::weights, {}, {}, {}, bf16};
  FALAJ_ASSIGN(c.spec, c.pass == Pass::forward ? conv_spec(call, 0, 1)
                       : c.pass == Pass::data  ? conv_spec(call, 2, 1)
                                               : conv_spec(call, 1, 2));
  return make_if_fit(call, c);
}

}  // namespace

Result<KernelPtr> make_dnnl_conv(const KernelCall& call) { return make_plain(call, false); }

Result<KernelPtr> make_bf16_conv(const KernelCall& call) {
  if (!has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  if (call.batch_invariant) return refuse("sums depend on the batch, and this graph is compiled to be invariant");
  return make_plain(call, true);
}

Result<KernelPtr> make_block_conv(const KernelCall& call) {
  const std::string& op = call.node.op;
  FALAJ_ASSIGN(auto spec, block_conv_spec(call));
  Call c{op == "BlockConv" ? Pass::forward : op == "BlockConvDataGrad" ? Pass::data : Pass::weights, std::move(spec), {}, {}, false};
  c.y = form_of(c.pass == Pass::forward ? call.outputs[0] : call.in(0));
  c.x = form_of(c.pass == Pass::forward ? call.in(0) : c.pass == Pass::data ? call.outputs[0] : call.in(1));
  c.bf16 = c.y.type == memory::data_type::bf16;
  if (c.bf16 && !has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  if (c.x.blocks && c.x.type != c.y.type) return refuse("blocks of two types");
  return make_if_fit(call, c);
}

// ToBlocks and FromBlocks, an image at a time.
Result<KernelPtr> make_block_reorder(const KernelCall& call) {
  const bool to = call.node.op == "ToBlocks";
  const Form form = form_of(to ? call.outputs[0] : call.in(0));
  const Shape& shape = to ? call.in(0).shape : call.outputs[0].shape;
  if (shape.elements() == 0) return refuse("nothing to move");
  if (form.type == memory::data_type::bf16 && !has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  one_thread();
  const memory::dims dims = {1, shape[1], shape[2], shape[3]};
  const memory::desc blocks = form.own(dims);
  try {
    return std::make_unique<BlockReorder>(to ? plain(dims) : blocks, to ? blocks : plain(dims), shape[0]);
  } catch (const dnnl::error& e) {
    return refuse(format("{} (status {})", e.what(), static_cast<int>(e.status)));
  }
}

}  // namespace falaj::kernels::cpu
