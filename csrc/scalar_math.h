// Every scalar formula of the ops, once, for the CPU and for CUDA. The same formulas in Python: srtod/ops/reference.py.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SRTOD_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// always_inline lets a formula take on the instruction set of the function that uses it (see cpu/rows.h).
#define SRTOD_HOST_DEVICE inline __attribute__((always_inline))
#else
#define SRTOD_HOST_DEVICE inline
#endif

namespace srtod {

// In the order of SURROGATES and RESIZES in srtod/ops/surrogate.py.
enum class Surrogate : int64_t { none, ste, sigmoid, atan, triangle, rect };
enum class Resize : int64_t { nearest, max, area, bilinear };

template <class A>
SRTOD_HOST_DEVICE A clamp(A x, A low, A high) {
  return x < low ? low : x > high ? high : x;  // NaN stays NaN
}

SRTOD_HOST_DEVICE double exponential(double x) { return ::exp(x); }

// exp in float32, from plain arithmetic so that compilers vectorise it: exp(x) = 2^n 2^r, n + r = x / ln 2, |r| <= 1/2,
// 2^r by a polynomial. Relative error 2e-7 near 0, growing with |x| to 5e-6 at 87. It does not fall below exp(-87), and
// from 88.4 it is infinite, so that sigmoid(-inf) is 0.
SRTOD_HOST_DEVICE float exponential(float x) {
  constexpr float log2e = 1.44269504f;
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  x = clamp(x, -87.0f, 89.0f);
  const float shifted = x * log2e + magic;
  const float r = x * log2e - (shifted - magic);
  float p = 1.535336188e-4f;
  p = p * r + 1.339887440e-3f;
  p = p * r + 9.618437357e-3f;
  p = p * r + 5.550332471e-2f;
  p = p * r + 2.402264791e-1f;
  p = p * r + 6.931472028e-1f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;  // the exponent field of 2^n; magic's own bits are shifted out
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

template <class A>
SRTOD_HOST_DEVICE A sigmoid(A x) {
  return A(1) / (A(1) + exponential(-x));
}

// --- the paper's equations ---

// SR-TOD, Eq. 3: the difference map D = mean_c |I_r - I_o| of a pixel; beside it its squared error. Channel by channel.
template <class A>
struct PixelDifference {
  A absolute = 0, squared = 0;  // sums over the channels

  SRTOD_HOST_DEVICE void add(A rebuilt, A real) {
    const A d = rebuilt - real;
    absolute += d < A(0) ? -d : d;
    squared += d * d;
  }
  template <class I>
  SRTOD_HOST_DEVICE A mean(I channels) const {
    return absolute / static_cast<A>(channels);
  }
};

// SR-TOD, Eq. 4: the step of Filtration(D) = 1 + Resize(step(D - t)), step(u) = (sign(u) + 1) / 2: 0, 0.5 at a tie, 1;
// NaN stays NaN.
template <class A>
SRTOD_HOST_DEVICE A step(A u) {
  return u > A(0) ? A(1) : u < A(0) ? A(0) : u == A(0) ? A(0.5) : u;
}

// ReLU, and what it lets through backward: NaN passes both ways, as PyTorch's.
template <class A>
SRTOD_HOST_DEVICE A relu(A x) {
  return x < A(0) ? A(0) : x;
}
template <class A>
SRTOD_HOST_DEVICE A relu_gradient(A x, A grad) {
  return x <= A(0) ? A(0) : grad;
}

// SR-TOD, Eq. 5: the weight sigmoid(MLP(average) + MLP(maximum)) of a channel, with MLP(v) = w2 relu(W1 v + b1) + b2 of
// this channel. Hidden value by hidden value of W1 average + b1 and W1 maximum + b1.
template <class A>
struct ChannelWeight {
  A z;

  SRTOD_HOST_DEVICE explicit ChannelWeight(A bias2) : z(A(2) * bias2) {}
  SRTOD_HOST_DEVICE void add(A weight2, A of_average, A of_maximum) {
    z += weight2 * (relu(of_average) + relu(of_maximum));
  }
  SRTOD_HOST_DEVICE A value() const { return sigmoid(z); }
};

// SR-TOD, Eq. 6: P2' = Reweighting(P2) Filtration(D) P2 of one element. It is linear in x, so its gradient by x is the
// same function of dL/dP2'.
template <class A>
SRTOD_HOST_DEVICE A enhance(A x, A channel_weight, A filter) {
  return x * (channel_weight * filter);
}

// --- their parts and derivatives ---

// Derivative g'(u) of the smooth function that stands in for the step in the backward pass.
template <class A>
SRTOD_HOST_DEVICE A surrogate_derivative(A u, Surrogate surrogate, A alpha) {
  switch (surrogate) {
    case Surrogate::none:
      return A(0);
    case Surrogate::ste:
      return A(1);
    case Surrogate::sigmoid: {  // g = sigmoid(alpha u); g' is symmetric, and 1 - s is precise on this side
      const A s = sigmoid(alpha * (u < A(0) ? u : -u));
      return alpha * s * (A(1) - s);
    }
    case Surrogate::atan: {  // g = atan(pi/2 alpha u) / pi + 1/2
      const A v = A(1.57079632679489661923) * alpha * u;
      return A(0.5) * alpha / (A(1) + v * v);
    }
    case Surrogate::triangle: {  // g = 1/2 + v - v|v|/2, v = clamp(alpha u, -1, 1)
      const A v = alpha - alpha * alpha * (u < A(0) ? -u : u);
      return v < A(0) ? A(0) : v;
    }
    case Surrogate::rect: {  // g = clamp(alpha u + 1/2, 0, 1)
      const A v = u < A(0) ? -u : u, end = A(0.5) / alpha;
      return v < end ? alpha : v >= end ? A(0) : u;
    }
  }
  return A(0);
}

// Source index of PyTorch's nearest resize: float32 scale = input / output, floor, clamp.
template <class I>
SRTOD_HOST_DEVICE I nearest_index(I output, float scale, I input_size) {
  const I index = static_cast<I>(static_cast<float>(output) * scale);
  return index < input_size - 1 ? index : input_size - 1;
}

// Inputs begin <= i < end that output k of a pooling resize covers, as PyTorch's adaptive pools lay their windows.
template <class I>
struct Window {
  I begin, end;
};

template <class I>
SRTOD_HOST_DEVICE Window<I> pooling_window(I k, I input_size, I output_size) {
  return {k * input_size / output_size, ((k + 1) * input_size + output_size - 1) / output_size};
}

// The inputs that output k of a bilinear resize mixes, (1 - fraction) low + fraction high: pixel centres lie at half
// integers, and past the last input there is nothing but it.
template <class A, class I>
struct Mixture {
  I low, high;
  A fraction;
};

template <class A, class I>
SRTOD_HOST_DEVICE Mixture<A, I> bilinear_mixture(I k, I input_size, I output_size) {
  const A scale = static_cast<A>(input_size) / static_cast<A>(output_size);
  const A exact = scale * (static_cast<A>(k) + A(0.5)) - A(0.5), source = exact < A(0) ? A(0) : exact;
  const I whole = static_cast<I>(source), low = whole < input_size - 1 ? whole : input_size - 1;
  if (low == input_size - 1) return {low, low, A(0)};
  const A fraction = source - static_cast<A>(low);
  return {low, low + 1, fraction < A(1) ? fraction : A(1)};
}

// Derivative of the loss by one reconstructed value r, from D = mean_c |r - i| and mse = sum (r - i)^2 / count, as far
// as the loss depends on each. `absolute` = dL/dD / C; `squared` = 2 dL/dmse / count. The slope of |.| at 0 is 0, as
// PyTorch's, and NaN at NaN.
template <class A>
SRTOD_HOST_DEVICE A reconstruction_gradient(A signed_difference, bool of_map, A absolute, bool of_error, A squared) {
  const A sign = signed_difference > A(0) ? A(1) : signed_difference < A(0) ? A(-1) : signed_difference;
  return (of_map ? absolute * sign : A(0)) + (of_error ? squared * signed_difference : A(0));
}

}  // namespace srtod
