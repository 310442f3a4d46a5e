// Small matrix products in vector registers. Loops that the compiler vectorises (rows.h) reload what they sum up; here
// a block of sums stays in registers, which takes code that knows how many there are.
#pragma once
#include <cstdint>
#include <cstring>

#include "rows.h"

namespace srtod {

// A vector of A that fills a register of so many bytes, at any address.
template <class A, int bytes>
struct VectorOf {
  typedef A type __attribute__((vector_size(bytes), aligned(alignof(A)), may_alias));
};

// What a register of `bytes` bytes implies: 64 for AVX-512, 32 for AVX2, 16 for the baseline.
template <class A, int bytes>
struct Registers {
  using Vector = typename VectorOf<A, bytes>::type;
  static constexpr int kLanes = bytes / sizeof(A);
  static constexpr int kMany = bytes == 64 ? 3 : 1;    // vectors of one row of a block
  static constexpr int kSums = bytes == 64 ? 24 : 12;  // what is left for sums

  static SRTOD_HOST_DEVICE const Vector& at(const A* x) { return *reinterpret_cast<const Vector*>(x); }
  static SRTOD_HOST_DEVICE Vector& at(A* x) { return *reinterpret_cast<Vector*>(x); }
};

// A register of A from storage.
template <int bytes, class T, class A = compute_t<T>>
SRTOD_HOST_DEVICE typename VectorOf<A, bytes>::type widen_lanes(const T* x) {
  using Of = Registers<A, bytes>;
  if constexpr (std::is_same_v<T, A>) {
    return Of::at(x);
  } else {
    using Stored = typename VectorOf<uint16_t, bytes / 2>::type;
    using Bits = typename VectorOf<uint32_t, bytes>::type;
    const Bits bits = __builtin_convertvector(*reinterpret_cast<const Stored*>(x), Bits);
    return widen_bits<typename Of::Vector>(bits, T{});
  }
}

// sums[r][v] += sum over k < count of a[a_at(r, k)] * b[b_at(k) + v's lanes]
template <class A, int bytes, int rows, int vectors, class AtA, class AtB>
SRTOD_HOST_DEVICE void multiply_add(const A* a, const AtA& a_at, const A* b, const AtB& b_at, int64_t count,
                                    typename VectorOf<A, bytes>::type (&sums)[rows][vectors]) {
  using Of = Registers<A, bytes>;
  for (int64_t k = 0; k < count; ++k) {
    typename Of::Vector x[vectors];
    const A* const from = b + b_at(k);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) x[v] = Of::at(from + v * Of::kLanes);
#pragma GCC unroll 32
    for (int r = 0; r < rows; ++r) {
      const A factor = a[a_at(r, k)];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sums[r][v] += factor * x[v];
    }
  }
}

// The sum over the lanes of a register, half by half.
template <class A, int bytes>
SRTOD_HOST_DEVICE A sum_of_lanes(typename VectorOf<A, bytes>::type x) {
  A lanes[Registers<A, bytes>::kLanes];
  std::memcpy(lanes, &x, sizeof lanes);
  if constexpr (bytes > 16) {
    using Half = Registers<A, bytes / 2>;
    return sum_of_lanes<A, bytes / 2>(Half::at(&lanes[0]) + Half::at(&lanes[Half::kLanes]));
  } else if constexpr (sizeof(A) == 8) {
    return lanes[0] + lanes[1];
  } else {
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  }
}

template <int bytes>
using Bytes = std::integral_constant<int, bytes>;

#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__)
template <class F>
__attribute__((target("arch=x86-64-v4"), noinline)) void run_v4(const F& f) {
  f(Bytes<64>{});
}
template <class F>
__attribute__((target("arch=x86-64-v3"), noinline)) void run_v3(const F& f) {
  f(Bytes<32>{});
}

// Calls f(Bytes<b>{}) compiled for the widest registers of this CPU. All that f calls has to be inlined into it.
template <class F>
void with_widest_registers(const F& f) {
  static const int level = __builtin_cpu_supports("x86-64-v4") ? 4 : __builtin_cpu_supports("x86-64-v3") ? 3 : 1;
  if (level == 4) return run_v4(f);
  if (level == 3) return run_v3(f);
  f(Bytes<16>{});
}
#else
template <class F>
void with_widest_registers(const F& f) {
  f(Bytes<16>{});
}
#endif

}  // namespace srtod
