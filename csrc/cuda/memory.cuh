// Reading and writing device memory: wide accesses, and values of types known at run time only.
#pragma once
#include "../scalar_math.h"
#include "launch.cuh"

namespace srtod {

template <class T>
constexpr uint32_t kWidth = 16 / sizeof(T);  // elements of a 16-byte access

// As words, not as an array of T: what a wide and a narrow access give would else be put together again in halves of
// words, at two instructions each.
template <class T>
struct alignas(16) Vector {
  uint32_t words[4];

  template <class A>
  __device__ __forceinline__ A at(uint32_t i) const {
    T value;
    if constexpr (sizeof(T) == 2) {
      const uint16_t half = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
      std::memcpy(&value, &half, sizeof value);
    } else {
      std::memcpy(&value, &words[i * sizeof(T) / 4], sizeof value);
    }
    return static_cast<A>(value);
  }

  __device__ __forceinline__ void set(uint32_t i, T value) {
    if constexpr (sizeof(T) == 2) {
      uint16_t half;
      std::memcpy(&half, &value, sizeof half);
      words[i / 2] = (words[i / 2] & (0xffff0000u >> (16 * (i % 2)))) | uint32_t{half} << (16 * (i % 2));
    } else {
      std::memcpy(&words[i * sizeof(T) / 4], &value, sizeof value);
    }
  }
};

template <class T>
bool is_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// The `count` (at most kWidth) elements at `from`, the rest zero; in one access where `wide`, which needs alignment and
// count = kWidth or 0.
template <class T>
__device__ __forceinline__ Vector<T> load(const T* from, bool wide, uint32_t count) {
  Vector<T> v{};
  if (wide) {
    if (count != 0) v = *reinterpret_cast<const Vector<T>*>(from);
    return v;
  }
#pragma unroll
  for (uint32_t i = 0; i < kWidth<T>; ++i)
    if (i < count) v.set(i, from[i]);
  return v;
}

template <class T>
__device__ __forceinline__ void store(const Vector<T>& v, T* to, bool wide, uint32_t count) {
  if (wide) {
    if (count != 0) *reinterpret_cast<Vector<T>*>(to) = v;
    return;
  }
#pragma unroll
  for (uint32_t i = 0; i < kWidth<T>; ++i)
    if (i < count) to[i] = v.template at<T>(i);
}

__device__ __forceinline__ uint32_t minimum(uint32_t a, uint32_t b) { return a < b ? a : b; }

// How many of the `width` elements from `index` on lie below `end`.
__device__ __forceinline__ uint32_t elements_below(uint32_t end, uint32_t index, uint32_t width) {
  return index < end ? minimum(end - index, width) : 0;
}

struct Strides {  // of [N, C, H, W], in elements
  int64_t n, c, h, w;

  Strides() = default;
  explicit Strides(const Tensor& t) : n(t.stride(0)), c(t.stride(1)), h(t.stride(2)), w(t.stride(3)) {}

  __device__ __forceinline__ int64_t at(int64_t i, uint32_t y, uint32_t x) const { return i * n + y * h + x * w; }
};

// Values of a type known at run time only: small tensors, and maps that are read at few places, where a branch costs
// nothing and every further template parameter would double the number of kernels.
struct AnyFloat {
  const void* data = nullptr;
  ScalarType type = ScalarType::Float;

  AnyFloat() = default;
  explicit AnyFloat(const Tensor& t) : data(t.const_data_ptr()), type(t.scalar_type()) {
    dispatch_floating(type, "srtod", [](auto) {});  // refuses all others
  }

  template <class A>
  __device__ __forceinline__ A at(int64_t i) const {
    if (type == ScalarType::Float) return static_cast<A>(static_cast<const float*>(data)[i]);
    if (type == ScalarType::Double) return static_cast<A>(static_cast<const double*>(data)[i]);
    if (type == ScalarType::Half) return static_cast<A>(static_cast<float>(static_cast<const Half*>(data)[i]));
    return static_cast<A>(static_cast<float>(static_cast<const BFloat16*>(data)[i]));
  }

  // The values at first, first + step, ..., of which `count` (at most kCount) are there, then zeros. All loads are on
  // their way at once: one by one, with a branch between them, each would wait for the one before.
  template <uint32_t kCount, class A>
  __device__ __forceinline__ void read(int64_t first, int64_t step, uint32_t count, A (&values)[kCount]) const {
    if (type == ScalarType::Float)
      read_as<float>(first, step, count, values);
    else if (type == ScalarType::Double)
      read_as<double>(first, step, count, values);
    else if (type == ScalarType::Half)
      read_as<Half>(first, step, count, values);
    else
      read_as<BFloat16>(first, step, count, values);
  }

 private:
  template <class T, uint32_t kCount, class A>
  __device__ __forceinline__ void read_as(int64_t first, int64_t step, uint32_t count, A (&values)[kCount]) const {
#pragma unroll
    for (uint32_t k = 0; k < kCount; ++k)
      values[k] =
          k < count ? static_cast<A>(static_cast<compute_t<T>>(static_cast<const T*>(data)[first + k * step])) : A(0);
  }
};

struct AnyFloatOut {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;

  AnyFloatOut() = default;
  explicit AnyFloatOut(Tensor& t) : data(t.mutable_data_ptr()), type(t.scalar_type()) {
    dispatch_floating(type, "srtod", [](auto) {});
  }

  template <class A>
  __device__ __forceinline__ void set(int64_t i, A value) const {
    if (type == ScalarType::Float)
      static_cast<float*>(data)[i] = static_cast<float>(value);
    else if (type == ScalarType::Half)
      static_cast<Half*>(data)[i] = static_cast<Half>(static_cast<float>(value));
    else if (type == ScalarType::BFloat16)
      static_cast<BFloat16*>(data)[i] = static_cast<BFloat16>(static_cast<float>(value));
    else
      static_cast<double*>(data)[i] = static_cast<double>(value);
  }
};

}  // namespace srtod
