// The functions of vector_math.hpp, which includes this once for each width of vectors: FALAJ_LANES is the attribute of their instruction
// set, FALAJ_V the vector. For that reason it has no #pragma once, and nobody else includes it.

// x = n ln 2 + r: e^r - 1.
FALAJ_LANES inline FALAJ_V reduced_exp(FALAJ_V x, FALAJ_V& n) {
  n = nearest(mul(x, all(x, 1.44269504F)));
  // ln 2 in two parts, so that r keeps its digits.
  FALAJ_V r = fnmadd(n, all(x, 0.693359375F), x);
  r = fnmadd(n, all(x, -2.12194440e-4F), r);
  FALAJ_V p = all(x, 1.9875691500e-4F);
  p = fmadd(p, r, all(x, 1.3981999507e-3F));
  p = fmadd(p, r, all(x, 8.3334519073e-3F));
  p = fmadd(p, r, all(x, 4.1665795894e-2F));
  p = fmadd(p, r, all(x, 1.6666665459e-1F));
  p = fmadd(p, r, all(x, 5.0000001201e-1F));
  return fmadd(p, mul(r, r), r);
}

FALAJ_LANES inline FALAJ_V exp_of(FALAJ_V in) {
  FALAJ_V x = min(in, all(in, 88.7228F));
  x = max(x, all(in, -87.33654F));
  FALAJ_V n;
  FALAJ_V y = add(reduced_exp(x, n), all(in, 1.0F));
  y = times_power_of_two(y, n);
  y = where_less(all(in, 88.7228F), in, all(in, __builtin_inff()), y);
  y = where_less(in, all(in, -87.33654F), all(in, 0.0F), y);
  return where_nan(in, in, y);
}

// e^-|x|, which never overflows; NaN goes through.
FALAJ_LANES inline FALAJ_V falling_exp_of(FALAJ_V in) {
  const FALAJ_V least = all(in, -87.33654F);
  const FALAJ_V x = or_bits(in, all(in, -0.0F));
  FALAJ_V n;
  const FALAJ_V y = add(reduced_exp(max(least, x), n), all(in, 1.0F));
  return where_less(x, least, all(in, 0.0F), times_power_of_two(y, n));
}

// e^x - 1, of x that is not positive.
FALAJ_LANES inline FALAJ_V exp_less_one_of(FALAJ_V in) {
  FALAJ_V n;
  const FALAJ_V y = reduced_exp(max(in, all(in, -30.0F)), n);
  const FALAJ_V power = times_power_of_two(all(in, 1.0F), n);
  return where_nan(in, in, fmadd(power, y, sub(power, all(in, 1.0F))));
}

FALAJ_LANES inline FALAJ_V log_of(FALAJ_V in) {
  const FALAJ_V zero = all(in, 0.0F);
  // What is too small for an exponent of its own is multiplied first.
  const FALAJ_V least = all(in, 1.17549435e-38F);
  FALAJ_V n;
  FALAJ_V m = without_exponent(where_less(in, least, mul(in, all(in, 8388608.0F)), in), n);
  n = sub(n, where_less(in, least, all(in, 23.0F), zero));
  m = sub(m, all(in, 1.0F));
  const FALAJ_V z = mul(m, m);
  FALAJ_V p = all(in, 7.0376836292e-2F);
  p = fmadd(p, m, all(in, -1.1514610310e-1F));
  p = fmadd(p, m, all(in, 1.1676998740e-1F));
  p = fmadd(p, m, all(in, -1.2420140846e-1F));
  p = fmadd(p, m, all(in, 1.4249322787e-1F));
  p = fmadd(p, m, all(in, -1.6668057665e-1F));
  p = fmadd(p, m, all(in, 2.0000714765e-1F));
  p = fmadd(p, m, all(in, -2.4999993993e-1F));
  p = fmadd(p, m, all(in, 3.3333331174e-1F));
  FALAJ_V y = fmadd(n, all(in, -2.12194440e-4F), mul(mul(m, z), p));
  y = fnmadd(z, all(in, 0.5F), y);
  y = fmadd(n, all(in, 0.693359375F), add(m, y));
  y = where_less(all(in, 3.40282347e38F), in, in, y);
  y = where_less(zero, in, y, where_less(in, zero, all(in, __builtin_nanf("")), all(in, -__builtin_inff())));
  return where_nan(in, in, y);
}

// log(1 + e^x)
FALAJ_LANES inline FALAJ_V softplus_of(FALAJ_V x) {
  const FALAJ_V one = all(x, 1.0F);
  const FALAJ_V e = falling_exp_of(x);
  const FALAJ_V u = add(one, e);
  const FALAJ_V rounded_off = sub(e, sub(u, one));
  return add(where_less(x, all(x, 0.0F), all(x, 0.0F), x), add(log_of(u), div(rounded_off, u)));
}

FALAJ_LANES inline FALAJ_V sigmoid_of(FALAJ_V x) {
  // The other half by symmetry.
  const FALAJ_V one = all(x, 1.0F);
  const FALAJ_V e = falling_exp_of(x);
  return div(where_negative(x, e, one), add(one, e));
}

// x sigmoid(z)
FALAJ_LANES inline FALAJ_V times_sigmoid(FALAJ_V x, FALAJ_V z) {
  const FALAJ_V one = all(x, 1.0F);
  const FALAJ_V e = falling_exp_of(z);
  return div(mul(x, where_negative(z, e, one)), add(one, e));
}
FALAJ_LANES inline FALAJ_V swish_of(FALAJ_V x, FALAJ_V alpha) { return times_sigmoid(x, mul(x, alpha)); }

// x tanh(log(1 + e^x)); past 20 that is x.
FALAJ_LANES inline FALAJ_V mish_of(FALAJ_V x) {
  const FALAJ_V two = all(x, 2.0F);
  const FALAJ_V e = exp_of(min(all(x, 20.0F), x));
  const FALAJ_V w = mul(e, add(e, two));
  return mul(x, div(w, add(w, two)));
}

// NaN gives 1 for the sigmoid, and stays itself as it is multiplied by that.
FALAJ_LANES inline FALAJ_V hard_sigmoid_of(FALAJ_V x, FALAJ_V slope, FALAJ_V shift) {
  return max(min(fmadd(x, slope, shift), all(x, 1.0F)), all(x, 0.0F));
}
FALAJ_LANES inline FALAJ_V hard_swish_of(FALAJ_V x) { return mul(x, hard_sigmoid_of(x, all(x, 1.0F / 6), all(x, 0.5F))); }

FALAJ_LANES inline FALAJ_V tanh_of(FALAJ_V x) {
  const FALAJ_V sign = and_bits(x, all(x, -0.0F));
  const FALAJ_V a = and_not_bits(all(x, -0.0F), x);
  // Near zero the quotient loses digits: an odd polynomial there.
  const FALAJ_V z = mul(x, x);
  FALAJ_V p = all(x, -5.70498872745e-3F);
  p = fmadd(p, z, all(x, 2.06390887954e-2F));
  p = fmadd(p, z, all(x, -5.37397155531e-2F));
  p = fmadd(p, z, all(x, 1.33314422036e-1F));
  p = fmadd(p, z, all(x, -3.33332819422e-1F));
  const FALAJ_V near = fmadd(mul(p, z), x, x);
  const FALAJ_V one = all(x, 1.0F);
  const FALAJ_V e = falling_exp_of(add(a, a));
  const FALAJ_V far = sub(one, div(add(e, e), add(one, e)));
  return where_less(a, all(x, 0.625F), near, or_bits(far, sign));
}

// A rational function of x^2, fitted for the least relative error up to where erf is 1 in f32.
FALAJ_LANES inline FALAJ_V erf_of(FALAJ_V x) {
  constexpr float kEnd = 3.92F;
  const FALAJ_V sign = all(x, -0.0F);
  const FALAJ_V a = min(all(x, kEnd), max(all(x, -kEnd), x));  // NaN stays
  const FALAJ_V z = mul(a, a);
  FALAJ_V p = all(x, 1.99248387e-8F);
  p = fmadd(p, z, all(x, -1.95772350e-6F));
  p = fmadd(p, z, all(x, 1.41821452e-4F));
  p = fmadd(p, z, all(x, 3.70041281e-3F));
  p = fmadd(p, z, all(x, 5.05695306e-2F));
  p = fmadd(p, z, all(x, 1.99896574e-1F));
  p = fmadd(p, z, all(x, 1.12837911F));
  FALAJ_V q = all(x, 9.55748488e-4F);
  q = fmadd(q, z, all(x, 1.43507728e-2F));
  q = fmadd(q, z, all(x, 1.14986777e-1F));
  q = fmadd(q, z, all(x, 5.10485411e-1F));
  q = fmadd(q, z, all(x, 1.0F));
  const FALAJ_V one = or_bits(and_bits(x, sign), all(x, 1.0F));
  return where_less(and_not_bits(sign, x), all(x, kEnd), div(mul(a, p), q), where_nan(x, x, one));
}

FALAJ_LANES inline FALAJ_V gelu_of(FALAJ_V x) {
  const FALAJ_V half = mul(all(x, 0.5F), x);
  return fmadd(half, erf_of(mul(x, all(x, 0.70710678F))), half);
}

// Its form by tanh: half of 1 + tanh(z) is the sigmoid of 2 z.
FALAJ_LANES inline FALAJ_V gelu_by_tanh_of(FALAJ_V x) {
  return times_sigmoid(x, mul(mul(x, all(x, 1.5957691216F)), fmadd(mul(x, x), all(x, 0.044715F), all(x, 1.0F))));
}

FALAJ_LANES inline FALAJ_V relu_of(FALAJ_V x) { return where_less(x, all(x, 0.0F), all(x, 0.0F), x); }  // keeps NaN

FALAJ_LANES inline FALAJ_V activate(FALAJ_V x, Activation activation, float alpha) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return relu_of(x);
    case Activation::leaky_relu:
      return where_less(x, all(x, 0.0F), mul(x, all(x, alpha)), x);
    case Activation::sigmoid:
      return sigmoid_of(x);
    case Activation::tanh:
      return tanh_of(x);
    case Activation::gelu:
      return gelu_of(x);
    case Activation::clip:
      return min(all(x, alpha), max(all(x, 0.0F), x));  // the second operand where that is NaN
    case Activation::hard_swish:
      return hard_swish_of(x);
    case Activation::swish:
      return swish_of(x, all(x, 1.0F));
  }
  return x;
}
