// Reading and writing device memory: wide accesses, and values of types known at run time only.
#pragma once
#include "../scalar_math.h"
#include "launch.cuh"

namespace srtod {

template <class T>
constexpr uint32_t kWidth = 16 / sizeof(T);  // elements of a 16-byte access

template <class T>
struct alignas(16) Vector {
  T values[kWidth<T>];

  template <class A>
  __device__ __forceinline__ A at(uint32_t i) const {
    return static_cast<A>(values[i]);
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
  Vector<T> v;
  if (wide && count != 0) return *reinterpret_cast<const Vector<T>*>(from);
#pragma unroll
  for (uint32_t i = 0; i < kWidth<T>; ++i) v.values[i] = i < count ? from[i] : T(0);
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
    if (i < count) to[i] = v.values[i];
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
