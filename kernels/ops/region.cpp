// Images sampled at computed places: GridSample AffineGrid RoiAlign.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// --- GridSample -------------------------------------------------------------------------------------------------------------

enum class Sampling : std::uint8_t { nearest, linear, cubic };
enum class Outside : std::uint8_t { zeros, border, reflection };
struct Grid {
  std::int64_t batch = 0, channels = 0, places = 0;
  std::vector<std::int64_t> sizes;
  Sampling sampling = Sampling::linear;
  Outside outside = Outside::zeros;
  bool align = false;
  Shape out;
};
Result<Grid> grid_of(const OpCall& call) {
  const Shape& x = call.in(0).shape;
  const Shape& grid = call.in(1).shape;
  if (x.rank() < 4 || grid.rank() != x.rank() || grid[0] != x[0] || grid.back() != static_cast<std::int64_t>(x.rank()) - 2)
    return invalid(format("input {} and grid {} do not fit", to_string(x), to_string(grid)));
  Grid g;
  g.batch = x[0];
  g.channels = x[1];
  g.sizes.assign(x.begin() + 2, x.end());
  for (auto size : g.sizes) {
    if (size < 1) return invalid("the input has no elements to sample");
  }
  g.out = Shape{x[0], x[1]};
  for (std::size_t d = 1; d + 1 < grid.rank(); ++d) g.out.push_back(grid[d]);
  g.places = grid.elements(1, grid.rank() - 1);
  FALAJ_ASSIGN(auto mode, attr_string(call.node, "mode", "linear"));
  FALAJ_ASSIGN(auto padding, attr_string(call.node, "padding_mode", "zeros"));
  FALAJ_ASSIGN(auto align, attr_int(call.node, "align_corners", 0));
  g.align = align != 0;
  if (mode == "nearest") {
    g.sampling = Sampling::nearest;
  } else if (mode == "cubic" || mode == "bicubic") {
    g.sampling = Sampling::cubic;
  } else if (mode != "linear" && mode != "bilinear") {
    return invalid(format("attribute 'mode' is '{}'", mode));
  }
  if (padding == "border") {
    g.outside = Outside::border;
  } else if (padding == "reflection") {
    g.outside = Outside::reflection;
  } else if (padding != "zeros") {
    return invalid(format("attribute 'padding_mode' is '{}'", padding));
  }
  return g;
}
Status infer_grid_sample(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_TRY(check_float(call, 1));
  FALAJ_ASSIGN(auto g, grid_of(call));
  return set_output(call, 0, call.in(0).dtype, g.out);
}

double reflect(double x, double low, double high) {
  double range = high - low;
  if (range <= 0) return low;
  bool below = x < low;
  double distance = below ? low - x : x - high;
  if (distance <= 0) return x;
  double turns = std::floor(distance / range);
  double rest = distance - turns * range;
  bool even = std::fmod(turns, 2.0) == 0;
  return below == even ? low + rest : high - rest;
}

struct Samples {
  std::array<std::int64_t, 4> at{};  // -1: zero
  std::array<double, 4> weight{};
  int count = 0;
};
Samples samples(const Grid& g, std::size_t d, double normal) {
  auto size = static_cast<double>(g.sizes[d]);
  double x = g.align ? (normal + 1) / 2 * (size - 1) : ((normal + 1) * size - 1) / 2;
  double low = g.align ? 0 : -0.5;
  double high = g.align ? size - 1 : size - 0.5;
  Samples s;
  if (!std::isfinite(x)) x = low - 1e6;  // far outside
  if (g.sampling == Sampling::nearest) x = std::nearbyint(x);
  if (x < low || x > high) {
    if (g.outside == Outside::border) x = std::clamp(x, 0.0, size - 1);
    if (g.outside == Outside::reflection) x = reflect(x, low, high);
  }
  auto add = [&](double at, double weight) {
    if (at < 0 || at > size - 1) {
      if (g.outside == Outside::border) at = std::clamp(at, 0.0, size - 1);
      if (g.outside == Outside::reflection) at = std::clamp(std::trunc(reflect(at, low, high)), 0.0, size - 1);
    }
    s.at[static_cast<std::size_t>(s.count)] = at < 0 || at > size - 1 ? -1 : static_cast<std::int64_t>(at);
    s.weight[static_cast<std::size_t>(s.count++)] = weight;
  };
  double base = std::floor(x);
  double t = x - base;
  switch (g.sampling) {
    case Sampling::nearest:
      add(std::trunc(x), 1);
      break;
    case Sampling::linear:
      add(base, 1 - t);
      add(base + 1, t);
      break;
    case Sampling::cubic: {
      constexpr double a = -0.75;
      auto far = [](double v) { return ((a * v - 5 * a) * v + 8 * a) * v - 4 * a; };
      auto near = [](double v) { return ((a + 2) * v - (a + 3)) * v * v + 1; };
      add(base - 1, far(t + 1));
      add(base, near(t));
      add(base + 1, near(1 - t));
      add(base + 2, far(2 - t));
      break;
    }
  }
  return s;
}
double sample(const Grid& g, const double* plane, const std::vector<Samples>& at, std::size_t d, std::int64_t offset) {
  double sum = 0;
  for (int i = 0; i < at[d].count; ++i) {
    auto k = static_cast<std::size_t>(i);
    if (at[d].at[k] < 0) continue;
    std::int64_t here = offset * g.sizes[d] + at[d].at[k];
    sum += at[d].weight[k] * (d + 1 == at.size() ? plane[here] : sample(g, plane, at, d + 1, here));
  }
  return sum;
}
Result<KernelPtr> make_grid_sample(const KernelCall& c) {
  FALAJ_ASSIGN(auto grid, grid_of(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() -> Result<KernelPtr> {
    if (c.in(1).dtype != DType::f64) return no_kernel(c.in(1).dtype);
    return make_kernel([g = grid](const Io& io) {
      std::size_t rank = g.sizes.size();
      std::int64_t plane = 1;
      for (auto d : g.sizes) plane *= d;
      std::vector<Samples> at(rank);
      for (std::int64_t n = 0; n < g.batch; ++n) {
        for (std::int64_t p = 0; p < g.places; ++p) {
          const double* place = io.input<double>(1) + (n * g.places + p) * static_cast<std::int64_t>(rank);
          for (std::size_t d = 0; d < rank; ++d) at[d] = samples(g, d, place[rank - 1 - d]);  // x comes first
          for (std::int64_t k = 0; k < g.channels; ++k)
            io.output<T>(0)[(n * g.channels + k) * g.places + p] = sample(g, io.input<T>(0) + (n * g.channels + k) * plane, at, 0, 0);
        }
      }
    });
  });
}

// --- AffineGrid -------------------------------------------------------------------------------------------------------------

Result<std::vector<std::int64_t>> affine_sizes(const OpCall& call) {
  FALAJ_ASSIGN(auto size, known_ints(call, 1, "the size"));
  const Shape& theta = call.in(0).shape;
  auto n = static_cast<std::int64_t>(size.size()) - 2;
  if ((n != 2 && n != 3) || theta != Shape{size[0], n, n + 1})
    return invalid(format("theta {} does not fit a size of {} dimensions", to_string(theta), size.size()));
  for (auto d : size) {
    if (d < 1 || d > (1 << 30)) return invalid(format("a size of {}", d));
  }
  return size;
}
Status infer_affine(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_ASSIGN(auto size, affine_sizes(call));
  Shape out{size[0]};
  for (std::size_t d = 2; d < size.size(); ++d) out.push_back(size[d]);
  out.push_back(static_cast<std::int64_t>(size.size()) - 2);
  return set_output(call, 0, call.in(0).dtype, out);
}
Result<KernelPtr> make_affine(const KernelCall& c) {
  FALAJ_ASSIGN(auto size, affine_sizes(c));
  FALAJ_ASSIGN(auto align, attr_int(c.node, "align_corners", 0));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([size, align](const Io& io) {
      std::size_t n = size.size() - 2;
      T* y = io.output<T>(0);
      std::int64_t places = 1;
      for (std::size_t d = 2; d < size.size(); ++d) places *= size[d];
      for (std::int64_t b = 0; b < size[0]; ++b) {
        const T* theta = io.input<T>(0) + b * static_cast<std::int64_t>(n * (n + 1));
        for (std::int64_t p = 0; p < places; ++p) {
          std::array<double, 4> point{};  // x first
          std::int64_t rest = p;
          for (std::size_t d = 0; d < n; ++d) {
            std::int64_t width = size[size.size() - 1 - d];
            auto i = static_cast<double>(rest % width);
            rest /= width;
            auto w = static_cast<double>(width);
            point[d] = align != 0 ? (width == 1 ? -1 : -1 + 2 * i / (w - 1)) : (2 * i + 1) / w - 1;
          }
          point[n] = 1;
          for (std::size_t r = 0; r < n; ++r) {
            T sum = 0;
            for (std::size_t k = 0; k <= n; ++k) sum += theta[r * (n + 1) + k] * point[k];
            *y++ = sum;
          }
        }
      }
    });
  });
}

// --- RoiAlign ---------------------------------------------------------------------------------------------------------------

struct Roi {
  std::int64_t height = 1, width = 1, ratio = 0;
  double scale = 1, shift = 0;
  bool max = false, half = true;
};
Result<Roi> roi(const OpCall& call) {
  Roi r;
  FALAJ_ASSIGN(r.height, attr_int(call.node, "output_height", 1));
  FALAJ_ASSIGN(r.width, attr_int(call.node, "output_width", 1));
  FALAJ_ASSIGN(r.ratio, attr_int(call.node, "sampling_ratio", 0));
  FALAJ_ASSIGN(r.scale, attr_float(call.node, "spatial_scale", 1.0));
  FALAJ_ASSIGN(auto mode, attr_string(call.node, "mode", "avg"));
  FALAJ_ASSIGN(auto coordinates,
               attr_string(call.node, "coordinate_transformation_mode", call.opset < 16 ? "output_half_pixel" : "half_pixel"));
  if ((mode != "avg" && mode != "max") || r.height < 1 || r.width < 1 || r.ratio < 0 || r.ratio > 4096 || r.height > 65536 ||
      r.width > 65536)
    return invalid("an attribute is out of range");
  r.max = mode == "max";
  r.half = coordinates == "half_pixel";
  r.shift = r.half ? 0.5 : 0;
  const Shape& x = call.in(0).shape;
  const Shape& rois = call.in(1).shape;
  if (x.rank() != 4 || rois.rank() != 2 || rois[1] != 4 || call.in(2).shape != Shape{rois[0]})
    return invalid("the regions do not fit the input");
  return r;
}
Status infer_roi(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  if (call.in(2).dtype != DType::i64) return invalid("batch_indices must be int64");
  FALAJ_ASSIGN(auto r, roi(call));
  return set_output(call, 0, call.in(0).dtype, {call.in(1).shape[0], call.in(0).shape[1], r.height, r.width});
}
// The four neighbours of a point, each with its weight; outside by more than one: none.
std::array<std::pair<std::int64_t, double>, 4> corners(double y, double x, std::int64_t height, std::int64_t width) {
  std::array<std::pair<std::int64_t, double>, 4> found{};
  if (!(y >= -1 && y <= static_cast<double>(height) && x >= -1 && x <= static_cast<double>(width))) return found;
  y = std::clamp(y, 0.0, static_cast<double>(height - 1));
  x = std::clamp(x, 0.0, static_cast<double>(width - 1));
  auto top = static_cast<std::int64_t>(y);
  auto left = static_cast<std::int64_t>(x);
  std::int64_t bottom = std::min(top + 1, height - 1);
  std::int64_t right = std::min(left + 1, width - 1);
  double dy = y - static_cast<double>(top);
  double dx = x - static_cast<double>(left);
  found[0] = {top * width + left, (1 - dy) * (1 - dx)};
  found[1] = {top * width + right, (1 - dy) * dx};
  found[2] = {bottom * width + left, dy * (1 - dx)};
  found[3] = {bottom * width + right, dy * dx};
  return found;
}
void run_roi(const Roi& r, const Shape& in, std::int64_t count, const Io& io) {
  std::int64_t plane = in[2] * in[3];
  for (std::int64_t k = 0; k < count; ++k) {
    std::int64_t batch = io.input<std::int64_t>(2)[k];
    if (batch < 0 || batch >= in[0]) return io.fail(format("batch index {} of region {} is outside [0, {})", batch, k, in[0]));
    const double* box = io.input<double>(1) + k * 4;
    double left = box[0] * r.scale - r.shift;
    double top = box[1] * r.scale - r.shift;
    double width = box[2] * r.scale - r.shift - left;
    double height = box[3] * r.scale - r.shift - top;
    if (!r.half) {
      width = std::max(width, 1.0);
      height = std::max(height, 1.0);
    }
    double bin_h = height / static_cast<double>(r.height);
    double bin_w = width / static_cast<double>(r.width);
    if (!std::isfinite(bin_h) || !std::isfinite(bin_w) || bin_h > 4096 || bin_w > 4096) return io.fail(format("region {} is too large", k));
    std::int64_t steps_h = r.ratio > 0 ? r.ratio : static_cast<std::int64_t>(std::ceil(bin_h));
    std::int64_t steps_w = r.ratio > 0 ? r.ratio : static_cast<std::int64_t>(std::ceil(bin_w));
    for (std::int64_t c = 0; c < in[1]; ++c) {
      const double* x = io.input<double>(0) + (batch * in[1] + c) * plane;
      for (std::int64_t o = 0; o < r.height * r.width; ++o) {
        double value = r.max ? -std::numeric_limits<double>::infinity() : 0;
        for (std::int64_t i = 0; i < steps_h * steps_w; ++i) {
          double y_at = top + static_cast<double>(o / r.width) * bin_h +
                        (static_cast<double>(i / steps_w) + 0.5) * bin_h / static_cast<double>(steps_h);
          double x_at = left + static_cast<double>(o % r.width) * bin_w +
                        (static_cast<double>(i % steps_w) + 0.5) * bin_w / static_cast<double>(steps_w);
          for (auto [at, weight] : corners(y_at, x_at, in[2], in[3]))
            value = r.max ? std::max(value, weight * x[at]) : value + weight * x[at];
        }
        std::int64_t n = std::max<std::int64_t>(steps_h * steps_w, 1);
        if (r.max && steps_h * steps_w <= 0) value = 0;
        io.output<double>(0)[(k * in[1] + c) * r.height * r.width + o] = r.max ? value : value / static_cast<double>(n);
      }
    }
  }
}
Result<KernelPtr> make_roi(const KernelCall& c) {
  FALAJ_ASSIGN(auto r, roi(c));
  if (c.in(0).shape.elements() == 0) return invalid("the input is empty");
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([r, in = c.in(0).shape, count = c.in(1).shape[0]](const Io& io) { run_roi(r, in, count, io); });
  });
}

constexpr OpDef kOps[] = {
    {kOnnx, "GridSample", 2, 2, 1, 1, infer_grid_sample, make_grid_sample},
    {kOnnx, "AffineGrid", 2, 2, 1, 1, infer_affine, make_affine},
    {kOnnx, "RoiAlign", 3, 3, 1, 1, infer_roi, make_roi},
};

}  // namespace

std::span<const OpDef> region_ops() { return kOps; }

}  // namespace falaj::kernels
