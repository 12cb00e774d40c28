// Resize (opset 10 and newer) and Upsample, dimension by dimension; in the gradient, where weights spread instead of gathering, the other
// way round.
#include "kernels/ops/resize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// As Resize was before opset 11: other defaults, scales in the second place. The gradient always says it as Resize does now.
bool is_old(const OpCall& call) { return call.node.domain != kFalaj && (call.node.op == "Upsample" || call.opset < 11); }

Status read_style(const OpCall& call, Resizing& r) {
  bool old = is_old(call);
  FALAJ_ASSIGN(r.mode, attr_string(call.node, "mode", "nearest"));
  if (r.mode == "bilinear") r.mode = "linear";
  FALAJ_ASSIGN(r.coordinates, attr_string(call.node, "coordinate_transformation_mode", old ? "asymmetric" : "half_pixel"));
  FALAJ_ASSIGN(r.nearest, attr_string(call.node, "nearest_mode", old ? "floor" : "round_prefer_floor"));
  FALAJ_ASSIGN(auto antialias, attr_int(call.node, "antialias", 0));
  FALAJ_ASSIGN(auto exclude, attr_int(call.node, "exclude_outside", 0));
  FALAJ_ASSIGN(r.cubic, attr_float(call.node, "cubic_coeff_a", -0.75));
  FALAJ_ASSIGN(r.extrapolation, attr_float(call.node, "extrapolation_value", 0.0));
  r.antialias = antialias != 0;
  r.exclude_outside = exclude != 0;
  constexpr std::array kModes = {"nearest", "linear", "cubic"};
  constexpr std::array kCoordinates = {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel",  "align_corners",
                                       "asymmetric", "tf_crop_and_resize",   "tf_half_pixel_for_nn"};
  constexpr std::array kNearest = {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"};
  if (std::ranges::find(kModes, r.mode) == kModes.end()) return invalid(format("attribute 'mode' is '{}'", r.mode));
  if (std::ranges::find(kCoordinates, r.coordinates) == kCoordinates.end())
    return invalid(format("attribute 'coordinate_transformation_mode' is '{}'", r.coordinates));
  if (std::ranges::find(kNearest, r.nearest) == kNearest.end()) return invalid(format("attribute 'nearest_mode' is '{}'", r.nearest));
  return {};
}

Status set_sizes(const OpCall& call, Resizing& r, std::span<const double> sizes, std::span<const std::size_t> axes) {
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto policy, attr_string(call.node, "keep_aspect_ratio_policy", "stretch"));
  if (policy != "stretch" && policy != "not_larger" && policy != "not_smaller")
    return invalid(format("attribute 'keep_aspect_ratio_policy' is '{}'", policy));
  double shared = policy == "not_larger" ? std::numeric_limits<double>::infinity() : 0;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    if (in[axes[i]] == 0) return invalid("an empty dimension cannot be resized");
    double scale = sizes[i] / static_cast<double>(in[axes[i]]);
    shared = policy == "not_larger" ? std::min(shared, scale) : std::max(shared, scale);
    r.scales[axes[i]] = scale;
    r.out[axes[i]] = static_cast<std::int64_t>(sizes[i]);
  }
  if (policy == "stretch") return {};
  for (std::size_t d : axes) {
    r.scales[d] = shared;
    r.out[d] = static_cast<std::int64_t>(shared * static_cast<double>(in[d]) + 0.5);
  }
  return {};
}

}  // namespace

Result<Resizing> resizing(const OpCall& call) {
  const Shape& in = call.in(0).shape;
  Resizing r;
  FALAJ_TRY(read_style(call, r));
  r.out = in;
  r.scales.assign(in.rank(), 1.0);
  r.roi_begin.assign(in.rank(), 0.0);
  r.roi_end.assign(in.rank(), 1.0);
  std::vector<std::size_t> axes;
  for (std::size_t d = 0; d < in.rank(); ++d) axes.push_back(d);
  if (call.node.attributes.contains("axes")) {
    FALAJ_ASSIGN(auto given, attr_ints(call.node, "axes"));
    axes.clear();
    for (auto axis : given) {
      FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
      axes.push_back(static_cast<std::size_t>(axis));
    }
  }
  bool modern = !is_old(call);
  std::vector<double> scales;
  if (call.node.op == "Upsample" && call.opset < 9) {
    FALAJ_ASSIGN(auto list, attr_floats(call.node, "scales"));
    scales.assign(list.begin(), list.end());
  } else if (call.has(modern ? 2 : 1) && call.in(modern ? 2 : 1).shape.elements() > 0) {
    FALAJ_ASSIGN(scales, known_numbers(call, modern ? 2 : 1, "the scales"));
  }
  std::vector<double> sizes;
  if (modern && call.has(3)) {
    FALAJ_ASSIGN(sizes, known_numbers(call, 3, "the sizes"));
  }
  if ((scales.empty() && sizes.empty()) || (scales.empty() ? sizes : scales).size() != axes.size())
    return invalid(format("one scale or one size for each of {} axes is needed", axes.size()));
  for (double v : sizes.empty() ? scales : sizes) {
    if (!(v >= (sizes.empty() ? 1e-9 : 0) && v < 1e12)) return invalid(format("a scale or size of {}", v));
  }
  if (!sizes.empty()) {
    FALAJ_TRY(set_sizes(call, r, sizes, axes));
  } else {
    for (std::size_t i = 0; i < axes.size(); ++i) {
      r.scales[axes[i]] = scales[i];
      r.out[axes[i]] = static_cast<std::int64_t>(std::floor(static_cast<float>(in[axes[i]]) * static_cast<float>(scales[i])));
    }
  }
  if (r.crops()) {
    if (!call.has(1)) return invalid("tf_crop_and_resize needs a region");
    FALAJ_ASSIGN(auto roi, known_numbers(call, 1, "the region"));
    if (roi.size() != 2 * axes.size()) return invalid("the region does not fit the axes");
    for (std::size_t i = 0; i < axes.size(); ++i) {
      r.roi_begin[axes[i]] = roi[i];
      r.roi_end[axes[i]] = roi[i + axes.size()];
    }
  }
  r.touched.assign(in.rank(), false);
  for (std::size_t d : axes) r.touched[d] = r.out[d] != in[d] || r.scales[d] != 1.0 || r.crops();
  return r;
}

namespace {

// Where output position x lies in the input.
double origin(const Resizing& r, std::size_t d, std::int64_t in, std::int64_t position) {
  auto x = static_cast<double>(position);
  auto size = static_cast<double>(in);
  double scale = r.scales[d];
  double width = scale * size;  // not rounded: so the standard's reference has it
  if (r.coordinates == "asymmetric") return x / scale;
  if (r.coordinates == "tf_half_pixel_for_nn") return (x + 0.5) / scale;
  if (r.coordinates == "align_corners") return width == 1 ? 0 : x * (size - 1) / (width - 1);
  if (r.coordinates == "pytorch_half_pixel" && width == 1) return -0.5;
  if (r.coordinates == "half_pixel_symmetric") {
    double adjustment = static_cast<double>(r.out[d]) / width;
    return size / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5;
  }
  if (r.crops()) {
    double begin = r.roi_begin[d] * (size - 1);
    double span = (r.roi_end[d] - r.roi_begin[d]) * (size - 1);
    return begin + (width == 1 ? span / 2 : x * span / (width - 1));
  }
  return (x + 0.5) / scale - 0.5;
}

double cubic(double x, double a) {
  x = std::abs(x);
  if (x <= 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
  return x < 2 ? a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a : 0;
}

std::vector<Tap> taps(const Resizing& r, std::size_t d, std::int64_t in, double x) {
  double base = std::floor(x);
  double ratio = x - base;
  auto clamp = [&](double v) { return static_cast<std::int64_t>(std::clamp(v, 0.0, static_cast<double>(in - 1))); };
  if (r.mode == "nearest") {
    bool up = ratio > 0 && (r.nearest == "ceil" || ratio > 0.5 || (ratio == 0.5 && r.nearest == "round_prefer_ceil"));
    if (r.nearest == "floor") up = false;
    return {{clamp(base + (up ? 1 : 0)), 1.0}};
  }
  double shrink = r.antialias ? std::min(r.scales[d], 1.0) : 1.0;
  double reach = r.mode == "linear" ? 1 : 2;
  auto first = static_cast<std::int64_t>(std::floor(-reach / shrink)) + 1;
  std::vector<Tap> found;
  double sum = 0;
  for (std::int64_t i = first; i <= 1 - first; ++i) {
    double distance = (static_cast<double>(i) - ratio) * shrink;
    double weight = r.mode == "linear" ? std::max(0.0, 1 - std::abs(distance)) : cubic(distance, r.cubic);
    double at = base + static_cast<double>(i);
    if (r.exclude_outside && (at < 0 || at > static_cast<double>(in - 1))) weight = 0;
    found.push_back({clamp(at), weight});
    sum += weight;
  }
  if (r.antialias || r.exclude_outside) {
    for (Tap& tap : found) tap.weight = sum == 0 ? 0 : tap.weight / sum;
  }
  return found;
}

}  // namespace

std::vector<ResizedAxis> resized_axes(const Resizing& r, const Shape& in) {
  std::vector<ResizedAxis> plans;
  for (std::size_t d = 0; d < in.rank(); ++d) {
    if (!r.touched[d]) continue;
    ResizedAxis plan{d, {}, {}};
    for (std::int64_t i = 0; i < r.out[d]; ++i) {
      double x = origin(r, d, in[d], i);
      plan.outside.push_back(r.crops() && (x < 0 || x > static_cast<double>(in[d] - 1)));
      plan.taps.push_back(taps(r, d, in[d], x));
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

namespace {

Status infer_resize(InferCall& call) {
  FALAJ_ASSIGN(auto r, resizing(call));
  for (std::size_t d = 0; d < r.out.rank(); ++d) {
    if (r.out[d] > 0 && call.in(0).shape[d] == 0) return invalid("an empty dimension cannot be resized");
  }
  return set_output(call, 0, call.in(0).dtype, r.out);
}

// Sets what lies outside the input in some dimension.
void set_outside(std::span<const ResizedAxis> plans, const Shape& out, std::vector<double>& values, double value) {
  for (const ResizedAxis& plan : plans) {
    AxisSplit s = split_at(out, static_cast<std::int64_t>(plan.axis));
    for (std::size_t at = 0; at < values.size(); ++at) {
      if (plan.outside[static_cast<std::size_t>(static_cast<std::int64_t>(at) / s.inner % s.size)]) values[at] = value;
    }
  }
}

Result<KernelPtr> make_resize(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, resizing(c));
  const Shape& in = c.in(0).shape;
  std::vector<ResizedAxis> plans = resized_axes(r, in);
  if (r.mode == "nearest" && !r.crops()) {
    std::vector<std::int64_t> map;
    Strides own = row_major(in);
    std::array<std::int64_t, kRankMax> index{};
    std::vector<const ResizedAxis*> by_axis(in.rank(), nullptr);
    for (const auto& plan : plans) by_axis[plan.axis] = &plan;
    for (std::int64_t i = 0; i < r.out.elements(); ++i) {
      std::int64_t at = 0;
      for (std::size_t d = 0; d < in.rank(); ++d)
        at += own[d] * (by_axis[d] == nullptr ? index[d] : by_axis[d]->taps[static_cast<std::size_t>(index[d])][0].at);
      map.push_back(at);
      for (std::size_t d = in.rank(); d-- > 0;) {
        if (++index[d] < r.out[d]) break;
        index[d] = 0;
      }
    }
    return mapped_kernel(c.in(0).dtype, std::move(map));
  }
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([plans, in, out = r.out, extrapolation = r.extrapolation](const Io& io) {
      std::vector<double> now(io.input<T>(0), io.input<T>(0) + in.elements());
      Shape shape = in;
      for (const ResizedAxis& plan : plans) {
        AxisSplit s = split_at(shape, static_cast<std::int64_t>(plan.axis));
        auto size = static_cast<std::int64_t>(plan.taps.size());
        std::vector<double> next(static_cast<std::size_t>(s.outer * size * s.inner));
        for (std::int64_t o = 0; o < s.outer; ++o) {
          for (std::int64_t k = 0; k < size; ++k) {
            for (std::int64_t i = 0; i < s.inner; ++i) {
              double sum = 0;
              for (const Tap& tap : plan.taps[static_cast<std::size_t>(k)])
                sum += tap.weight * now[static_cast<std::size_t>((o * s.size + tap.at) * s.inner + i)];
              next[static_cast<std::size_t>((o * size + k) * s.inner + i)] = sum;
            }
          }
        }
        now = std::move(next);
        shape[plan.axis] = size;
      }
      set_outside(plans, out, now, extrapolation);
      std::ranges::copy(now, io.output<T>(0));
    });
  });
}

// Inputs: the four of Resize, then dy. Only the shape of x is read.
constexpr std::size_t kDy = 4;

Status infer_resize_grad(InferCall& call) {
  if (call.inputs.size() <= kDy) return invalid("the place of the gradient is missing");
  FALAJ_ASSIGN(const auto r, resizing(call));
  FALAJ_TRY(check_same_dtype(call, 0, kDy));
  if (call.in(kDy).shape != r.out) return invalid("the gradient does not fit the output");
  return set_output(call, 0, call.in(0).dtype, call.in(0).shape);
}

Result<KernelPtr> make_resize_grad(const KernelCall& c) {
  FALAJ_ASSIGN(const auto r, resizing(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([plans = resized_axes(r, c.in(0).shape), in = c.in(0).shape, out = r.out](const Io& io) {
      std::vector<double> now(io.input<T>(kDy), io.input<T>(kDy) + out.elements());
      set_outside(plans, out, now, 0);
      Shape shape = out;
      for (std::size_t p = plans.size(); p-- > 0;) {
        const ResizedAxis& plan = plans[p];
        const AxisSplit s = split_at(shape, static_cast<std::int64_t>(plan.axis));
        const std::int64_t size = in[plan.axis];
        std::vector<double> next(static_cast<std::size_t>(s.outer * size * s.inner), 0.0);
        for (std::int64_t o = 0; o < s.outer; ++o) {
          for (std::int64_t k = 0; k < s.size; ++k) {
            for (const Tap& tap : plan.taps[static_cast<std::size_t>(k)]) {
              for (std::int64_t i = 0; i < s.inner; ++i)
                next[static_cast<std::size_t>((o * size + tap.at) * s.inner + i)] +=
                    tap.weight * now[static_cast<std::size_t>((o * s.size + k) * s.inner + i)];
            }
          }
        }
        now = std::move(next);
        shape[plan.axis] = size;
      }
      std::ranges::copy(now, io.output<T>(0));
    });
  });
}

Status grad_resize(GradientCall& g) {
  if (!g.wants(0)) return failed("a region, scales or sizes have no gradient");
  const Node& node = g.node();
  std::vector<std::string> inputs = node.inputs;
  Attributes attributes = node.attributes;
  if (node.op == "Upsample" || g.graph().opset("") < 11) {
    if (inputs.size() < 2) {
      FALAJ_ASSIGN(const auto scales, attr_floats(node, "scales"));
      const Shape shape{static_cast<std::int64_t>(scales.size())};
      inputs.push_back(g.graph().add_initializer(g.graph().fresh("grad/scales"), Tensor::of<float>(shape, std::span<const float>(scales))));
    }
    inputs.insert(inputs.begin() + 1, "");
    attributes.emplace("coordinate_transformation_mode", std::string("asymmetric"));
    attributes.emplace("nearest_mode", std::string("floor"));
  }
  inputs.resize(kDy);
  inputs.push_back(g.dy());
  g.set(0, g.add_falaj("ResizeGrad", std::move(inputs), std::move(attributes)));
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "Resize", 1, 4, 1, 1, infer_resize, make_resize, grad_resize},
    {kOnnx, "Upsample", 1, 2, 1, 1, infer_resize, make_resize, grad_resize},
    {kFalaj, "ResizeGrad", 1, 5, 1, 1, infer_resize_grad, make_resize_grad, nullptr, Placement::own, 1},
};

}  // namespace

std::span<const OpDef> resize_ops() { return kOps; }

}  // namespace falaj::kernels
