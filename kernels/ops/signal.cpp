// Signals: DFT STFT, windows (Hann, Hamming, Blackman) and MelWeightMatrix.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/ops/fft.hpp"

namespace falaj::kernels {
namespace {

constexpr std::int64_t kLengthMax = std::int64_t{1} << 24;  // of a transform

// The first `bins` values of the transform of a line: real (parts = 1) or complex (2), steps in elements, taken as zero beyond `length`.
template <class T>
struct Line {
  const T* x;
  std::int64_t length, step, parts;
};
template <class F, class T>
void transform(const Fft<F>& fft, const Line<T>& line, std::int64_t n, std::int64_t bins, T* y, std::int64_t y_step) {
  std::vector<Complex<F>> values(static_cast<std::size_t>(n));
  std::vector<Complex<F>> spare(values.size());
  for (std::int64_t t = 0; t < std::min(n, line.length); ++t) {
    const T* from = line.x + t * line.step;
    values[static_cast<std::size_t>(t)] = {static_cast<F>(from[0]), line.parts == 2 ? static_cast<F>(from[1]) : F{0}};
  }
  fft(values, spare);
  for (std::int64_t k = 0; k < bins; ++k) {
    y[k * y_step] = static_cast<T>(values[static_cast<std::size_t>(k)].re);
    y[k * y_step + 1] = static_cast<T>(values[static_cast<std::size_t>(k)].im);
  }
}

struct Dft {
  AxisSplit split{};  // of the input without its last dimension
  std::int64_t parts = 1, n = 0, bins = 0;
  std::size_t axis = 0;
  bool inverse = false;
};
Result<Dft> dft(const OpCall& call) {
  const Shape& in = call.in(0).shape;
  if (in.rank() < 2 || (in.back() != 1 && in.back() != 2))
    return invalid(format("the input {} must end in 1 (real) or 2 (complex)", to_string(in)));
  std::int64_t axis = 0;
  if (call.opset < 20) {
    FALAJ_ASSIGN(axis, attr_int(call.node, "axis", 1));
  } else {
    axis = -2;
    if (call.has(2)) {
      FALAJ_ASSIGN(double given, known_scalar(call, 2, "the axis"));
      axis = static_cast<std::int64_t>(given);
    }
  }
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  if (axis + 1 == static_cast<std::int64_t>(in.rank())) return invalid("the last dimension cannot be transformed");
  FALAJ_ASSIGN(auto inverse, attr_int(call.node, "inverse", 0));
  FALAJ_ASSIGN(auto onesided, attr_int(call.node, "onesided", 0));
  Dft d;
  Shape samples(in.dims().first(in.rank() - 1));
  d.split = split_at(samples, axis);
  d.axis = static_cast<std::size_t>(axis);
  d.parts = in.back();
  d.n = d.split.size;
  d.inverse = inverse != 0;
  if (call.has(1)) {
    FALAJ_ASSIGN(double n, known_scalar(call, 1, "the length"));
    d.n = n >= 1 && n <= static_cast<double>(kLengthMax) ? static_cast<std::int64_t>(n) : 0;
  }
  if (d.n < 1 || d.n > kLengthMax) return invalid(format("a transform of length {}", d.n));
  if (onesided != 0 && d.inverse) return Error{ErrorCode::unimplemented, "a one-sided inverse transform is not supported"};
  d.bins = onesided != 0 ? d.n / 2 + 1 : d.n;
  return d;
}
Status infer_dft(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_ASSIGN(auto d, dft(call));
  Shape out = call.in(0).shape;
  out[d.axis] = d.bins;
  out[out.rank() - 1] = 2;
  return set_output(call, 0, call.in(0).dtype, out);
}
// Complex values are transformed in their own precision, as the standard's reference does (its tests compare the noise of zeros too).
template <class F, class T>
KernelPtr dft_kernel(const Dft& spec) {
  return make_kernel([d = spec, fft = Fft<F>(spec.n, spec.inverse)](const Io& io) {
    for (std::int64_t o = 0; o < d.split.outer; ++o) {
      for (std::int64_t i = 0; i < d.split.inner; ++i) {
        Line<T> line{io.input<T>(0) + (o * d.split.size * d.split.inner + i) * d.parts, d.split.size, d.split.inner * d.parts, d.parts};
        transform(fft, line, d.n, d.bins, io.output<T>(0) + (o * d.bins * d.split.inner + i) * 2, d.split.inner * 2);
      }
    }
  });
}
Result<KernelPtr> make_dft(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, dft(c));
  return dispatch<float, double>(c.in(0).dtype,
                                 [&]<class T>() { return spec.parts == 2 ? dft_kernel<T, T>(spec) : dft_kernel<double, T>(spec); });
}

// signal [batch, length, 1 or 2]? , frame_step, window?, frame_length? -> [batch, frames, bins, 2]
struct Stft {
  std::int64_t batch = 0, length = 0, parts = 1, step = 1, frame = 0, frames = 0, bins = 0;
};
Result<Stft> stft(const OpCall& call) {
  const Shape& in = call.in(0).shape;
  Stft s;
  if (in.rank() != 2 && in.rank() != 3)
    return invalid(format("the signal {} must be [batch, length] or [batch, length, parts]", to_string(in)));
  s.batch = in[0];
  s.length = in[1];
  s.parts = in.rank() == 3 ? in[2] : 1;
  if (s.parts != 1 && s.parts != 2) return invalid("the signal must be real or complex");
  FALAJ_ASSIGN(double step, known_scalar(call, 1, "the frame step"));
  FALAJ_ASSIGN(auto onesided, attr_int(call.node, "onesided", 1));
  double frame = call.has(2) ? static_cast<double>(call.in(2).shape.elements()) : 0;
  if (call.has(3)) {
    FALAJ_ASSIGN(frame, known_scalar(call, 3, "the frame length"));
  }
  if (!(step >= 1 && step <= static_cast<double>(kLengthMax) && frame >= 1 && frame <= static_cast<double>(kLengthMax)))
    return invalid(format("a frame of {} and a step of {} are not possible", frame, step));
  s.step = static_cast<std::int64_t>(step);
  s.frame = static_cast<std::int64_t>(frame);
  if (call.has(2) && call.in(2).shape != Shape{s.frame}) return invalid("the window does not have the frame's length");
  if (s.frame > s.length) return invalid("a frame is longer than the signal");
  s.frames = (s.length - s.frame) / s.step + 1;
  s.bins = onesided != 0 ? s.frame / 2 + 1 : s.frame;
  return s;
}
Status infer_stft(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  if (call.has(2)) FALAJ_TRY(check_same_dtype(call, 0, 2));
  FALAJ_ASSIGN(auto s, stft(call));
  return set_output(call, 0, call.in(0).dtype, {s.batch, s.frames, s.bins, 2});
}
Result<KernelPtr> make_stft(const KernelCall& c) {
  FALAJ_ASSIGN(auto spec, stft(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s = spec, fft = Fft<double>(spec.frame, false), has_window = c.has(2)](const Io& io) {
      std::vector<double> frame(static_cast<std::size_t>(s.frame * s.parts));
      for (std::int64_t k = 0; k < s.batch * s.frames; ++k) {
        const T* x = io.input<T>(0) + (k / s.frames * s.length + k % s.frames * s.step) * s.parts;
        for (std::size_t i = 0; i < frame.size(); ++i)
          frame[i] = x[i] * (has_window ? io.input<T>(2)[i / static_cast<std::size_t>(s.parts)] : 1);
        transform(fft, Line<double>{frame.data(), s.frame, s.parts, s.parts}, s.frame, s.bins, io.output<T>(0) + k * s.bins * 2, 2);
      }
    });
  });
}

// --- windows ----------------------------------------------------------------------------------------------------------------

Result<std::int64_t> window_size(const OpCall& call) {
  FALAJ_ASSIGN(double size, known_scalar(call, 0, "the size"));
  if (!(size >= 0 && size <= static_cast<double>(std::int64_t{1} << 32))) return invalid(format("a window of {}", size));
  return static_cast<std::int64_t>(size);
}
Result<DType> output_type(const Node& node) {
  FALAJ_ASSIGN(auto code, attr_int(node, "output_datatype", 1));
  DType dtype = dtype_of_code(code);
  if (!is_float(dtype) && !is_int(dtype)) return invalid(format("attribute 'output_datatype' is {}", code));
  return dtype;
}
Status infer_window(InferCall& call) {
  FALAJ_ASSIGN(auto size, window_size(call));
  FALAJ_ASSIGN(DType dtype, output_type(call.node));
  return set_output(call, 0, dtype, {size});
}
Result<KernelPtr> make_window(const KernelCall& c) {
  FALAJ_ASSIGN(auto size, window_size(c));
  FALAJ_ASSIGN(auto periodic, attr_int(c.node, "periodic", 1));
  std::array<double, 3> a = {0.42, 0.5, 0.08};  // Blackman
  if (c.node.op == "HannWindow") a = {0.5, 0.5, 0};
  if (c.node.op == "HammingWindow") a = {25.0 / 46, 21.0 / 46, 0};
  return make_kernel([size, a, periodic, dtype = c.outputs[0].dtype](const Io& io) {
    std::vector<double> values;
    double n = static_cast<double>(periodic != 0 ? size : size - 1);
    for (std::int64_t i = 0; i < size; ++i) {
      double angle = n == 0 ? 0 : 2 * std::numbers::pi * static_cast<double>(i) / n;
      values.push_back(a[0] - a[1] * std::cos(angle) + a[2] * std::cos(2 * angle));
    }
    convert_elements(DType::f64, values.data(), dtype, io.out[0], size);
  });
}

// --- MelWeightMatrix ----------------------------------------------------------------------------------------------------------

Result<std::array<double, 5>> mel(const OpCall& call) {
  std::array<double, 5> v{};
  for (std::size_t i = 0; i < 5; ++i) {
    FALAJ_ASSIGN(v[i], known_scalar(call, i, "a parameter"));
  }
  if (!(v[0] >= 1 && v[0] < 1e6 && v[1] >= 1 && v[1] < 1e8 && v[2] > 0 && v[3] >= 0 && v[4] > v[3] && v[4] <= v[2]))
    return invalid("the parameters of the filter bank are out of range");
  return v;
}
Status infer_mel(InferCall& call) {
  FALAJ_ASSIGN(auto v, mel(call));
  FALAJ_ASSIGN(DType dtype, output_type(call.node));
  return set_output(call, 0, dtype, {static_cast<std::int64_t>(v[1]) / 2 + 1, static_cast<std::int64_t>(v[0])});
}
Result<KernelPtr> make_mel(const KernelCall& c) {
  FALAJ_ASSIGN(auto v, mel(c));
  return make_kernel([v, out = c.outputs[0]](const Io& io) {
    std::int64_t bins = out.shape[0];
    std::int64_t mels = out.shape[1];
    auto to_mel = [](double hertz) { return 2595 * std::log10(1 + hertz / 700); };
    double low = to_mel(v[3]);
    double step = (to_mel(v[4]) - low) / static_cast<double>(mels + 2);
    std::vector<std::int64_t> edges;
    for (std::int64_t i = 0; i < mels + 2; ++i) {
      double hertz = 700 * (std::pow(10, (static_cast<double>(i) * step + low) / 2595) - 1);
      edges.push_back(std::clamp<std::int64_t>(static_cast<std::int64_t>(std::floor((v[1] + 1) * hertz / v[2])), 0, bins - 1));
    }
    std::vector<double> matrix(static_cast<std::size_t>(bins * mels), 0.0);
    for (std::int64_t m = 0; m < mels; ++m) {
      auto at = [&](std::int64_t bin) -> double& { return matrix[static_cast<std::size_t>(bin * mels + m)]; };
      std::int64_t left = edges[static_cast<std::size_t>(m)];
      std::int64_t centre = edges[static_cast<std::size_t>(m) + 1];
      std::int64_t right = edges[static_cast<std::size_t>(m) + 2];
      if (left == centre) at(centre) = 1;
      for (std::int64_t j = left; left < centre && j <= centre; ++j)
        at(j) = static_cast<double>(j - left) / static_cast<double>(centre - left);
      for (std::int64_t j = centre; j < right; ++j) at(j) = static_cast<double>(right - j) / static_cast<double>(right - centre);
    }
    convert_elements(DType::f64, matrix.data(), out.dtype, io.out[0], bins * mels);
  });
}

constexpr OpDef kOps[] = {
    {kOnnx, "DFT", 1, 3, 1, 1, infer_dft, make_dft},
    {kOnnx, "STFT", 2, 4, 1, 1, infer_stft, make_stft},
    {kOnnx, "HannWindow", 1, 1, 1, 1, infer_window, make_window},
    {kOnnx, "HammingWindow", 1, 1, 1, 1, infer_window, make_window},
    {kOnnx, "BlackmanWindow", 1, 1, 1, 1, infer_window, make_window},
    {kOnnx, "MelWeightMatrix", 5, 5, 1, 1, infer_mel, make_mel},
};

}  // namespace

std::span<const OpDef> signal_ops() { return kOps; }

}  // namespace falaj::kernels
