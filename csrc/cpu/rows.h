// The vectorised inner loops of the CPU ops, on rows of the arithmetic type A (float or double), and the conversions
// between rows of storage types and rows of A. Each loop is compiled for AVX-512, AVX2 and the baseline; the loader
// picks at run time. To test on one CPU what others run, build with CFLAGS=-DSRTOD_WITHOUT_AVX512 or, for the baseline,
// CFLAGS=-DSRTOD_BASELINE.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../scalar_math.h"
#include "../tensors.h"

#if !defined(__x86_64__) || !defined(__GNUC__) || !defined(__gnu_linux__) || defined(SRTOD_BASELINE)
#define SRTOD_CLONES
#elif defined(SRTOD_WITHOUT_AVX512)
#define SRTOD_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define SRTOD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

namespace srtod {

constexpr int64_t kTile = 2048;  // elements of a row handled at a time: a few such rows fit the first-level cache

// --- storage <-> arithmetic
// -------------------------------------------------------------------------------------------

template <class To, class From>
SRTOD_HOST_DEVICE To reinterpret_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

SRTOD_HOST_DEVICE float bits_to_float(uint32_t bits) { return reinterpret_bits<float>(bits); }
SRTOD_HOST_DEVICE uint32_t float_to_bits(float x) { return reinterpret_bits<uint32_t>(x); }

// BFloat16 is float's upper half. Half has 5 exponent bits: scaling by 2^112 moves them to float's 8, subnormals
// included; infinity and NaN are patched.
SRTOD_HOST_DEVICE float widen(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x.x) << 16); }
SRTOD_HOST_DEVICE float widen(Half x) {
  const uint32_t magnitude = (x.x & 0x7fffu) << 13, sign = (x.x & 0x8000u) << 16;
  const uint32_t scaled = float_to_bits(bits_to_float(magnitude) * bits_to_float(0x77800000u));
  return bits_to_float((magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : scaled) | sign);
}
SRTOD_HOST_DEVICE float widen(float x) { return x; }
SRTOD_HOST_DEVICE double widen(double x) { return x; }

// Round to nearest, ties to even.
SRTOD_HOST_DEVICE void narrow(float x, BFloat16& out) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.x = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

SRTOD_HOST_DEVICE void narrow(float x, Half& out) {
  const uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the result is subnormal: adding 0.5 lets the float adder round at 2^-24.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // rounds to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
  out.x = static_cast<uint16_t>(half | sign);
}

SRTOD_HOST_DEVICE void narrow(float x, float& out) { out = x; }
SRTOD_HOST_DEVICE void narrow(double x, double& out) { out = x; }

template <class T>
SRTOD_CLONES void widen_row(const T* __restrict x, int64_t stride, int64_t n, compute_t<T>* __restrict out) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) out[i] = widen(x[i]);
  else
    for (int64_t i = 0; i < n; ++i) out[i] = widen(x[i * stride]);
}

template <class T>
SRTOD_CLONES void narrow_row(const compute_t<T>* __restrict x, int64_t n, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) narrow(x[i], out[i]);
}

// A row of storage as a row of A: the row itself where nothing has to change, else converted into `scratch`.
template <class T>
inline const compute_t<T>* load_row(const T* x, int64_t stride, int64_t n, compute_t<T>* scratch) {
  if constexpr (std::is_same_v<T, compute_t<T>>) {
    if (stride == 1) return x;
  }
  widen_row(x, stride, n, scratch);
  return scratch;
}

// Where to compute a row that goes to `out`: in place, or in `scratch` for `store_row` to convert.
template <class T>
inline compute_t<T>* row_for_store(T* out, compute_t<T>* scratch) {
  if constexpr (std::is_same_v<T, compute_t<T>>)
    return out;
  else
    return scratch;
}

template <class T>
inline void store_row(const compute_t<T>* row, int64_t n, T* out) {
  if constexpr (!std::is_same_v<T, compute_t<T>>) narrow_row(row, n, out);
}

// --- a row = neighbouring pixels of one channel (NCHW)
// ----------------------------------------------------------------

template <class A>
struct SumMax {
  A sum, max;
};

// The maximum ignores NaN; the sum does not, which is how callers notice.
template <class A>
SRTOD_CLONES SumMax<A> sum_max(const A* __restrict x, int64_t n) {
  A sum = 0, max = x[0];
#pragma omp simd simdlen(64 / sizeof(A)) reduction(+ : sum) reduction(max : max)
  for (int64_t i = 0; i < n; ++i) {
    sum += x[i];
    max = x[i] > max ? x[i] : max;
  }
  return {sum, max};
}

// y = enhance(x, s, f)
template <class A>
SRTOD_CLONES void scale_row(const A* x, const A* __restrict f, A s, int64_t n, A* y) {
#pragma omp simd simdlen(64 / sizeof(A))
  for (int64_t i = 0; i < n; ++i) y[i] = enhance(x[i], s, f[i]);
}

// y = enhance(g, s, f) + constant
template <class A>
SRTOD_CLONES void scale_shift_row(const A* g, const A* __restrict f, A s, A constant, int64_t n, A* y) {
#pragma omp simd simdlen(64 / sizeof(A))
  for (int64_t i = 0; i < n; ++i) y[i] = enhance(g[i], s, f[i]) + constant;
}

// grad_filter += g * x * s; returns sum(g * x * f)
template <class A>
SRTOD_CLONES A backward_sums_row(const A* __restrict g, const A* __restrict x, const A* __restrict f, A s, int64_t n,
                                 A* __restrict grad_filter) {
  A sum = 0;
#pragma omp simd simdlen(64 / sizeof(A)) reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const A gx = g[i] * x[i];
    grad_filter[i] += gx * s;
    sum += gx * f[i];
  }
  return sum;
}

// --- a row = the channels of one pixel (channels_last)
// ----------------------------------------------------------------

template <class A>
using index_t = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;  // as wide as A, so that masks need no conversion

// Folds one pixel into the running sums and maxima of all channels; a NaN becomes the maximum, ties keep the first
// pixel.
template <class A>
SRTOD_CLONES void pool_pixel(const A* __restrict x, index_t<A> pixel, int64_t channels, A* __restrict sum,
                             A* __restrict max, index_t<A>* __restrict argmax) {
#pragma omp simd simdlen(64 / sizeof(A))
  for (int64_t c = 0; c < channels; ++c) {
    sum[c] += x[c];
    const bool greater = (x[c] > max[c]) | (x[c] != x[c]);
    max[c] = greater ? x[c] : max[c];
    argmax[c] = greater ? pixel : argmax[c];
  }
}

// grad_weight += g * x * f; returns sum(g * x * s)
template <class A>
SRTOD_CLONES A backward_sums_pixel(const A* __restrict g, const A* __restrict x, const A* __restrict s, A f,
                                   int64_t channels, A* __restrict grad_weight) {
  A sum = 0;
#pragma omp simd simdlen(64 / sizeof(A)) reduction(+ : sum)
  for (int64_t c = 0; c < channels; ++c) {
    const A gx = g[c] * x[c];
    grad_weight[c] += gx * f;
    sum += gx * s[c];
  }
  return sum;
}

// y = enhance(g, s, f) + constant, with a constant for each channel
template <class A>
SRTOD_CLONES void scale_shift_pixel(const A* g, const A* __restrict s, A f, const A* __restrict constant,
                                    int64_t channels, A* y) {
#pragma omp simd simdlen(64 / sizeof(A))
  for (int64_t c = 0; c < channels; ++c) y[c] = enhance(g[c], s[c], f) + constant[c];
}

}  // namespace srtod
