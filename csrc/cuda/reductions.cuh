// Sums and maxima over threads and blocks, in a fixed order: the same bits in every run.
#pragma once
#include <cmath>

#include "memory.cuh"

namespace srtod {

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (unsigned mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

// The sum over a block of kThreads threads, for every thread. `scratch` [kWarps] is shared memory.
template <class A>
__device__ __forceinline__ A block_sum(A value, A* scratch) {
  value = warp_sum(value);
  __syncthreads();  // scratch may still be read from an earlier sum
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  A sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += scratch[w];
  return sum;
}

// A maximum and where it is: NaN is greatest, ties go to the lower index.
template <class A>
struct Maximum {
  A value;
  uint32_t index;

  // Before the first element, which will be at `first_index`; without elements kNone, which loses to all others.
  static constexpr uint32_t kNone = ~0u;
  __device__ __forceinline__ static Maximum before(uint32_t first_index) {
    return {-static_cast<A>(INFINITY), first_index};
  }

  // `other_index` is not lower than `index`. Like `take` it has no branch: `&` and `|`, not `&&` and `||`.
  __device__ __forceinline__ void take_next(A other, uint32_t other_index) {
    const bool wins = !(other <= value) & (value == value);
    value = wins ? other : value;
    index = wins ? other_index : index;
  }

  __device__ __forceinline__ void take(const Maximum& other) {
    const bool nan = value != value, other_nan = other.value != other.value;
    const bool tie = (other.value == value) | (nan & other_nan);
    const bool greater = !nan & (other_nan | (other.value > value));
    const bool wins = greater | (tie & (other.index < index));
    value = wins ? other.value : value;
    index = wins ? other.index : index;
  }
};

template <class A>
__device__ __forceinline__ Maximum<A> warp_maximum(Maximum<A> m) {
#pragma unroll
  for (unsigned mask = 16; mask > 0; mask /= 2)
    m.take({__shfl_xor_sync(0xffffffffu, m.value, mask), __shfl_xor_sync(0xffffffffu, m.index, mask)});
  return m;
}

// Whether this block is the last of `blocks` to get here; if so, it sees all that the others wrote before.
__device__ __forceinline__ bool is_last_block(int32_t* counter, uint32_t blocks) {
  SRTOD_SHARED(bool, last);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(counter, 1) == static_cast<int32_t>(blocks - 1);
  __syncthreads();
  const bool result = last;
  __syncthreads();  // `last` may be written again
  if (result) __threadfence();
  return result;
}

}  // namespace srtod
