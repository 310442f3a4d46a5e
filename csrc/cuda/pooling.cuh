// Average and maximum of every channel, and the channel weights from them.
#pragma once
#include "channel_weights.cuh"
#include "filtration.cuh"

namespace srtod {

// How the threads of a block share pixels in channels_last: a thread keeps to `kWidth` channels, `lanes` pixels at
// once.
struct Columns {
  uint32_t columns, lanes, column_blocks;

  Columns(uint32_t channels, uint32_t width) {
    const uint32_t all = static_cast<uint32_t>(divide_up(channels, width));
    columns = std::min<uint32_t>(std::max<uint32_t>(all, 1), kThreads);
    lanes = kThreads / columns;
    column_blocks = static_cast<uint32_t>(divide_up(all, columns));
  }
};

template <class A>
struct Pooled {
  A sum;
  Maximum<A> best;
};

// Adds up `count` parts of one channel, `stride` apart, in order.
template <class A>
__device__ __forceinline__ Pooled<A> combine_parts(const A* sums, const A* maxima, const uint32_t* indices,
                                                   int64_t first, uint32_t count, int64_t stride) {
  Pooled<A> all{0, {maxima[first], indices[first]}};
#pragma unroll 8
  for (uint32_t k = 0; k < count; ++k) {
    const int64_t at = first + k * stride;
    all.sum += sums[at];
    all.best.take({maxima[at], indices[at]});
  }
  return all;
}

// The sums and maxima of the channels of one thread over the pixels that it sees (channels_last).
template <class T, class A = compute_t<T>>
struct ChannelPool {
  A sum[kWidth<T>];
  Maximum<A> best[kWidth<T>];

  // `first_pixel` is Maximum::kNone where there is none.
  __device__ __forceinline__ explicit ChannelPool(uint32_t first_pixel) {
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) {
      sum[i] = 0;
      best[i] = Maximum<A>::before(first_pixel);
    }
  }
  __device__ __forceinline__ void add(const Vector<T>& v, uint32_t pixel) {
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) {
      sum[i] += v.template at<A>(i);
      best[i].take_next(v.template at<A>(i), pixel);
    }
  }

  // Combines the lanes of every column; the results are in the threads of lane 0. `values` and `indices`
  // [kThreads * kWidth] are shared memory.
  __device__ __forceinline__ void combine_lanes(const Columns& by, bool active, A* values, uint32_t* indices) {
    const uint32_t column = threadIdx.x % by.columns, lane = threadIdx.x / by.columns;
    __syncthreads();  // both may still be read from the lanes combined before
    if (active)
#pragma unroll
      for (uint32_t i = 0; i < kWidth<T>; ++i) values[threadIdx.x * kWidth<T> + i] = sum[i];
    __syncthreads();
    if (active && lane == 0)
      for (uint32_t other = 1; other < by.lanes; ++other)
#pragma unroll
        for (uint32_t i = 0; i < kWidth<T>; ++i) sum[i] += values[(other * by.columns + column) * kWidth<T> + i];
    __syncthreads();
    if (active)
#pragma unroll
      for (uint32_t i = 0; i < kWidth<T>; ++i) {
        values[threadIdx.x * kWidth<T> + i] = best[i].value;
        indices[threadIdx.x * kWidth<T> + i] = best[i].index;
      }
    __syncthreads();
    if (active && lane == 0)
      for (uint32_t other = 1; other < by.lanes; ++other)
#pragma unroll
        for (uint32_t i = 0; i < kWidth<T>; ++i) {
          const uint32_t at = (other * by.columns + column) * kWidth<T> + i;
          best[i].take({values[at], indices[at]});
        }
  }
};

struct PooledTensors {  // each [N, C]; argmax = index of the first maximum in h * w, the others in the type of
                        // arithmetic
  Tensor weights, average, maximum, argmax;

  explicit PooledTensors(const Tensor& features) {
    const ScalarType type = compute_type(features.scalar_type());
    for (Tensor* t : {&weights, &average, &maximum}) *t = empty({features.size(0), features.size(1)}, type, features);
    argmax = empty({features.size(0), features.size(1)}, ScalarType::Long, features);
  }
};

// Pools `features`, laid out in `format`, in one launch, whose first blocks compute the filter `beside`.
void launch_pool(const char* op, const Tensor& features, MemoryFormat format, const Mlp& mlp, PooledTensors& out,
                 const OnDevice& device, const FilterTiles& beside = {});

}  // namespace srtod
