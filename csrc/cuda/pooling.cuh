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

  __device__ __forceinline__ void take(const Pooled& other) {
    sum += other.sum;
    best.take(other.best);
  }
  __device__ __forceinline__ Pooled of_lane_xor(unsigned mask) const {
    return {__shfl_xor_sync(0xffffffffu, sum, mask),
            {__shfl_xor_sync(0xffffffffu, best.value, mask), __shfl_xor_sync(0xffffffffu, best.index, mask)}};
  }
  // Field by field: a choice between two places would keep both in memory.
  __device__ __forceinline__ static Pooled either(bool first, const Pooled& a, const Pooled& b) {
    return {first ? a.sum : b.sum, {first ? a.best.value : b.best.value, first ? a.best.index : b.best.index}};
  }
};

// Combines four values of each lane over a warp: that of rows[k] is returned to lanes 8 k to 8 k + 7. Half of the lanes
// hand on two rows and keep two, then one and one, so that six exchanges do and not twenty.
template <class A>
__device__ __forceinline__ Pooled<A> combine_rows(const Pooled<A> (&rows)[4]) {
  const bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
  Pooled<A> two[2];
#pragma unroll
  for (uint32_t k = 0; k < 2; ++k) {
    two[k] = Pooled<A>::either(upper, rows[2 + k], rows[k]);
    two[k].take(Pooled<A>::either(upper, rows[k], rows[2 + k]).of_lane_xor(16));
  }
  Pooled<A> one = Pooled<A>::either(odd, two[1], two[0]);
  one.take(Pooled<A>::either(odd, two[0], two[1]).of_lane_xor(8));
#pragma unroll
  for (unsigned mask = 4; mask > 0; mask /= 2) one.take(one.of_lane_xor(mask));
  return one;
}

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

  // Combines the lanes of every column; a thread takes a channel. Calls set_sum(channel, sum), then
  // set_maximum(channel, maximum), with `channel` in the block. `values` and `indices` [kThreads * kWidth] are shared
  // memory.
  template <class SetSum, class SetMaximum>
  __device__ __forceinline__ void combine_lanes(const Columns& by, A* values, uint32_t* indices, const SetSum& set_sum,
                                                const SetMaximum& set_maximum) {
    const uint32_t channels = by.columns * kWidth<T>;  // a lane's threads follow one another, and so do their channels
    const uint32_t mine = threadIdx.x * kWidth<T>;
    __syncthreads();  // both may still be read from the lanes combined before
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) values[mine + i] = sum[i];
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
      A all = values[c];
#pragma unroll 8
      for (uint32_t lane = 1; lane < by.lanes; ++lane) all += values[lane * channels + c];
      set_sum(c, all);
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) {
      values[mine + i] = best[i].value;
      indices[mine + i] = best[i].index;
    }
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
      Maximum<A> all{values[c], indices[c]};
#pragma unroll 8
      for (uint32_t lane = 1; lane < by.lanes; ++lane)
        all.take({values[lane * channels + c], indices[lane * channels + c]});
      set_maximum(c, all);
    }
  }
};

// --- NCHW: a thread sees kWidth neighbouring pixels of one channel at once ---

// Adds a vector of which `count` pixels, from `pixel` on, are there. The index of the maximum is that of its vector's
// first pixel until `exact_index`: so only vectors are compared one by one.
template <class T, class A>
__device__ __forceinline__ void add_vector(const Vector<T>& v, uint32_t pixel, uint32_t count, A& sum,
                                           Maximum<A>& best) {
  A of_vector = 0, greatest = -static_cast<A>(INFINITY);
  if (count == kWidth<T>) {
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) {
      of_vector += v.template at<A>(i);
      greatest = fmax(greatest, v.template at<A>(i));  // passes NaN over
    }
  } else {
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) {
      of_vector += i < count ? v.template at<A>(i) : A(0);
      greatest = fmax(greatest, i < count ? v.template at<A>(i) : greatest);
    }
  }
  if (of_vector != of_vector) {  // a NaN, or infinities of both signs
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i)
      if (i < count && v.template at<A>(i) != v.template at<A>(i)) greatest = v.template at<A>(i);
  }
  sum += of_vector;
  if (count > 0) best.take_next(greatest, pixel);
}

// The first of the pixels of the maximum's vector that has its value.
template <class T, class A>
__device__ __forceinline__ uint32_t exact_index(const T* plane, const Maximum<A>& best, uint32_t pixels) {
  uint32_t first = best.index;
#pragma unroll
  for (uint32_t i = kWidth<T>; i > 0; --i) {
    const uint32_t pixel = minimum(minimum(best.index, pixels - 1) + i, pixels) - 1;  // in the plane, come what may
    const A value = static_cast<A>(plane[pixel]);
    if ((value == best.value) | ((value != value) & (best.value != best.value))) first = pixel;
  }
  return first;
}

struct PooledTensors {  // each [N, C]; argmax = index of the first maximum in h * w, the others in the type of
                        // arithmetic
  Tensor weights, average, maximum, argmax;
  Tensor hidden;  // [N, 2, R], of average and maximum, before the ReLU

  PooledTensors(const Tensor& features, const Mlp& mlp) {
    const ScalarType type = compute_type(features.scalar_type());
    for (Tensor* t : {&weights, &average, &maximum}) *t = empty({features.size(0), features.size(1)}, type, features);
    argmax = empty({features.size(0), features.size(1)}, ScalarType::Long, features);
    hidden = empty({features.size(0), 2, mlp.hidden}, type, features);
  }
};

// Pools `features`, laid out in `format`, in one launch, whose last blocks compute the filter `beside`.
void launch_pool(const char* op, const Tensor& features, MemoryFormat format, const Mlp& mlp, PooledTensors& out,
                 const OnDevice& device, const FilterTiles& beside = {});

}  // namespace srtod
