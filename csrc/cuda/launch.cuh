// Launching kernels. What a GPU and its emulation do differently has one interface, in two headers; this is the only
// place that chooses between them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#ifdef SRTOD_EMULATION
#include "../emulation/device.h"
#else
#include "device.cuh"
#endif

namespace srtod {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline dim3 grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks > 0 && blocks <= 2147483647,
                  "srtod: a tensor needs more than the 2^31 - 1 blocks of a launch; split the batch");
  return dim3(static_cast<unsigned>(blocks));
}

inline void set_zero(Tensor& t, cudaStream_t stream) { fill_bytes(t, 0, stream); }

// Counters by which blocks find out who comes last.
inline Tensor zero_counters(int64_t count, const Tensor& on, cudaStream_t stream) {
  Tensor counters = empty({count}, ScalarType::Int, on);
  set_zero(counters, stream);
  return counters;
}

}  // namespace srtod
