// The discrete Fourier transform of any length: one pass for each prime factor, results in order after the last. Lengths with small
// factors are fast; a large prime costs its square.
//
// It computes in T throughout. Where a sum that is zero in theory leaves rounding noise, that noise is T's.
#pragma once
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

namespace falaj::kernels {

template <class T>
struct Complex {
  T re{}, im{};
  friend Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
  friend Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
  friend Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
};

template <class T>
class Fft {
 public:
  Fft(std::int64_t n, bool inverse) : n_(n), inverse_(inverse) {
    for (std::int64_t p = 2, rest = n; rest > 1; p += p == 2 ? 1 : 2) {
      if (p * p > rest) p = rest;
      for (; rest % p == 0; rest /= p) factors_.push_back(p);
    }
    for (std::int64_t k = 0; k < n; ++k) {
      double angle = 2 * std::numbers::pi * static_cast<double>(k) / static_cast<double>(n);
      roots_.push_back({static_cast<T>(std::cos(angle)), static_cast<T>(inverse ? std::sin(angle) : -std::sin(angle))});
    }
  }

  // In place; `spare` is n elements too. The inverse divides by n.
  void operator()(std::vector<Complex<T>>& x, std::vector<Complex<T>>& spare) const {
    std::int64_t done = 1;
    for (std::int64_t p : factors_) {
      pass(p, done, x.data(), spare.data());
      x.swap(spare);
      done *= p;
    }
    if (!inverse_) return;
    T scale = static_cast<T>(1.0 / static_cast<double>(n_));
    for (auto& v : x) v = {v.re * scale, v.im * scale};
  }

 private:
  // Of each group of p values that lie n / (done * p) apart, the transform of length p, turned for the passes that follow.
  void pass(std::int64_t p, std::int64_t done, const Complex<T>* x, Complex<T>* y) const {
    std::int64_t width = n_ / (done * p);
    std::vector<Complex<T>> in(static_cast<std::size_t>(p));
    std::vector<Complex<T>> out(in.size());
    for (std::int64_t k = 0; k < done; ++k) {
      for (std::int64_t i = 0; i < width; ++i) {
        for (std::int64_t j = 0; j < p; ++j) in[static_cast<std::size_t>(j)] = x[i + width * (j + p * k)];
        butterfly(p, in.data(), out.data());
        for (std::int64_t j = 0; j < p; ++j) {
          auto& to = y[i + width * (k + done * j)];
          to = out[static_cast<std::size_t>(j)];
          if (i * j > 0) to = to * root(i * j * done);
        }
      }
    }
  }
  void butterfly(std::int64_t p, const Complex<T>* x, Complex<T>* y) const {
    if (p == 2) {
      y[0] = x[0] + x[1];
      y[1] = x[0] - x[1];
      return;
    }
    y[0] = x[0];
    for (std::int64_t j = 1; 2 * j < p; ++j) y[0] = y[0] + (x[j] + x[p - j]);
    for (std::int64_t k = 1; 2 * k < p; ++k) {
      Complex<T> even = x[0];
      Complex<T> odd;
      for (std::int64_t j = 1; 2 * j < p; ++j) {
        Complex<T> w = root(j * k % p * (n_ / p));
        Complex<T> sum = x[j] + x[p - j];
        Complex<T> difference = x[j] - x[p - j];
        even = {even.re + w.re * sum.re, even.im + w.re * sum.im};
        odd = {odd.re - w.im * difference.im, odd.im + w.im * difference.re};
      }
      y[k] = even + odd;
      y[p - k] = even - odd;
    }
  }
  [[nodiscard]] const Complex<T>& root(std::int64_t k) const { return roots_[static_cast<std::size_t>(k % n_)]; }

  std::int64_t n_;
  bool inverse_;
  std::vector<std::int64_t> factors_;
  std::vector<Complex<T>> roots_;
};

}  // namespace falaj::kernels
