// Average and maximum of every channel, and the channel weights from them, by the blocks of one launch. Further blocks
// of the same launch may do something else beside it.
#pragma once
#include "channel_weights.cuh"

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
struct Pool {
  Parts parts;
  A *sums, *maxima;                // [N, slots, C]
  uint32_t* indices;               // [N, slots, C]
  A *average, *maximum, *weights;  // [N, C]
  int64_t* argmax;                 // [N, C]
  A* hidden;                       // scratch [N, 2, R]
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

// After part `part` of image n is left: the last block of the image combines all and runs the MLP.
template <class A>
__device__ __forceinline__ void finish_pool(const Pool<A>& pool, const Shape& shape, const Mlp& mlp, int64_t n,
                                            uint32_t part, uint32_t blocks_of_part) {
  const uint32_t channels = shape.channels;
  const int64_t slots = n * pool.parts.slots();
  const auto combined = [&](uint32_t begin, uint32_t end, uint32_t c) {
    return combine_parts(pool.sums, pool.maxima, pool.indices, (slots + begin) * channels + c, end - begin, channels);
  };
  const auto combine = [&](uint32_t begin, uint32_t end, uint32_t slot) {
    for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
      const Pooled<A> all = combined(begin, end, c);
      const int64_t at = (slots + slot) * channels + c;
      pool.sums[at] = all.sum;
      pool.maxima[at] = all.best.value;
      pool.indices[at] = all.best.index;
    }
  };
  if (!pool.parts.is_last_of_image(n, part, blocks_of_part, combine)) return;
  for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
    const Pooled<A> all = combined(pool.parts.last_begin(), pool.parts.last_end(), c);
    pool.average[n * channels + c] = all.sum / static_cast<A>(shape.pixels);
    pool.maximum[n * channels + c] = all.best.value;
    pool.argmax[n * channels + c] = all.best.index;
  }
  __syncthreads();
  weigh_channels(mlp, pool.average + n * channels, pool.maximum + n * channels, pool.hidden + n * 2 * mlp.hidden,
                 pool.weights + n * channels);
}

// NCHW: a block pools one part of one plane. The first `beside.blocks` blocks do `beside` instead.
template <class T, class Beside>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    pool_planes(const T* x, bool wide, Shape shape, Mlp mlp, Pool<compute_t<T>> pool, Beside beside) {
  using A = compute_t<T>;
  constexpr uint32_t kPart = kThreads * kWidth<T> * kPartVectors;
  if (blockIdx.x < beside.blocks) return beside(blockIdx.x);
  SRTOD_SHARED(A, sums, [kWarps]);
  SRTOD_SHARED(A, values, [kWarps]);
  SRTOD_SHARED(uint32_t, indices, [kWarps]);
  const uint32_t block = blockIdx.x - beside.blocks, parts = pool.parts.parts;
  const uint32_t part = block % parts, plane = block / parts;
  const int64_t n = plane / shape.channels;
  const T* row = x + int64_t{plane} * shape.pixels;
  A sum = 0;
  const uint32_t first = part * kPart + threadIdx.x * kWidth<T>;
  Maximum<A> best = Maximum<A>::before(first < shape.pixels ? first : Maximum<A>::kNone);
#pragma unroll
  for (uint32_t batch = 0; batch < kPartVectors; batch += 4) {  // four loads on their way at once
    Vector<T> v[4];
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) {
      const uint32_t p = first + (batch + k) * kThreads * kWidth<T>;
      v[k] = load(row + p, wide, elements_below(shape.pixels, p, kWidth<T>));
    }
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) {
      const uint32_t p = first + (batch + k) * kThreads * kWidth<T>;
#pragma unroll
      for (uint32_t i = 0; i < kWidth<T>; ++i) {
        if (p + i >= shape.pixels) break;
        sum += v[k].template at<A>(i);
        best.take_next(v[k].template at<A>(i), p + i);
      }
    }
  }
  sum = warp_sum(sum);
  best = warp_maximum(best);
  if (threadIdx.x % 32 == 0) {
    sums[threadIdx.x / 32] = sum;
    values[threadIdx.x / 32] = best.value;
    indices[threadIdx.x / 32] = best.index;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) {
      sum += sums[w];
      best.take({values[w], indices[w]});
    }
    const int64_t at = (n * pool.parts.slots() + part) * shape.channels + plane % shape.channels;
    pool.sums[at] = sum;
    pool.maxima[at] = best.value;
    pool.indices[at] = best.index;
  }
  allow_next_launch();
  finish_pool(pool, shape, mlp, n, part, shape.channels);
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

// channels_last: a thread keeps its channels of every `lanes`-th pixel of a part in registers; no shuffles.
template <class T, class Beside>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    pool_pixels(const T* x, bool wide, Shape shape, Columns by, uint32_t pixels_of_part, Mlp mlp,
                Pool<compute_t<T>> pool, Beside beside) {
  using A = compute_t<T>;
  if (blockIdx.x < beside.blocks) return beside(blockIdx.x);
  SRTOD_SHARED(A, values, [kThreads * kWidth<T>]);
  SRTOD_SHARED(uint32_t, indices, [kThreads * kWidth<T>]);
  const uint32_t block = blockIdx.x - beside.blocks, parts = pool.parts.parts;
  const uint32_t column_block = block % by.column_blocks, part = block / by.column_blocks % parts;
  const int64_t n = block / by.column_blocks / parts;
  const uint32_t column = threadIdx.x % by.columns, lane = threadIdx.x / by.columns;
  const uint32_t channel = (column_block * by.columns + column) * kWidth<T>;
  const uint32_t count = elements_below(shape.channels, channel, kWidth<T>);
  const uint32_t begin = part * pixels_of_part, end = minimum(begin + pixels_of_part, shape.pixels);
  const bool active = lane < by.lanes && count > 0;
  const T* image = x + n * shape.elements() + channel;
  ChannelPool<T> mine(begin + lane < end ? begin + lane : Maximum<A>::kNone);
  if (active) {
    for (uint32_t first = begin + lane; first < end; first += 4 * by.lanes) {  // four loads on their way at once
      Vector<T> v[4];
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k) {
        const uint32_t p = first + k * by.lanes;
        v[k] = load(image + int64_t{p} * shape.channels, wide, p < end ? count : 0);
      }
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k)
        if (first + k * by.lanes < end) mine.add(v[k], first + k * by.lanes);
    }
  }
  mine.combine_lanes(by, active, values, indices);
  if (active && lane == 0)
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) {
      if (i >= count) break;
      const int64_t at = (n * pool.parts.slots() + part) * shape.channels + channel + i;
      pool.sums[at] = mine.sum[i];
      pool.maxima[at] = mine.best[i].value;
      pool.indices[at] = mine.best[i].index;
    }
  allow_next_launch();
  finish_pool(pool, shape, mlp, n, part, by.column_blocks);
}

struct Nothing {  // beside the pooling
  uint32_t blocks = 0;
  void take_counter(int32_t*) {}
  __device__ __forceinline__ void operator()(uint32_t) const {}
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

// Pools `features`, laid out in `format`, in one launch together with `beside`.
template <class T, class Beside>
void launch_pool(const char* op, const Tensor& features, MemoryFormat format, const Mlp& mlp, PooledTensors& out,
                 const OnDevice& device, Beside beside) {
  using A = compute_t<T>;
  const Shape shape(op, features);
  if (shape.batch * shape.channels == 0) return;
  const cudaStream_t stream = device.stream();
  const bool last = format == MemoryFormat::ChannelsLast;
  const T* x = features.const_data_ptr<T>();
  const bool wide = (last ? shape.channels : shape.pixels) % kWidth<T> == 0 && is_aligned(x);
  const Columns by(shape.channels, kWidth<T>);
  int64_t pixels_of_part = int64_t{kThreads} * kWidth<T> * kPartVectors;
  if (last) {  // enough parts to fill the GPU, but some pixels for every lane
    const int64_t wanted = divide_up(4 * device.multiprocessors(), shape.batch * by.column_blocks);
    pixels_of_part = std::max<int64_t>(8 * by.lanes, divide_up(shape.pixels, wanted));
  }
  Parts parts(divide_up(shape.pixels, pixels_of_part));
  const ScalarType type = compute_type(features.scalar_type());
  Tensor sums = empty({shape.batch, parts.slots(), shape.channels}, type, features);
  Tensor maxima = empty({shape.batch, parts.slots(), shape.channels}, type, features);
  Tensor indices = empty({shape.batch, parts.slots(), shape.channels}, ScalarType::Int, features);
  Tensor hidden = empty({shape.batch, 2, mlp.hidden}, type, features);
  Tensor counters = zero_counters(shape.batch * parts.meetings() + 1, features, stream);
  parts.counters = counters.mutable_data_ptr<int32_t>();
  beside.take_counter(parts.counters + shape.batch * parts.meetings());
  const Pool<A> pool{parts,
                     sums.mutable_data_ptr<A>(),
                     maxima.mutable_data_ptr<A>(),
                     reinterpret_cast<uint32_t*>(indices.mutable_data_ptr<int32_t>()),
                     out.average.mutable_data_ptr<A>(),
                     out.maximum.mutable_data_ptr<A>(),
                     out.weights.mutable_data_ptr<A>(),
                     out.argmax.mutable_data_ptr<int64_t>(),
                     hidden.mutable_data_ptr<A>()};
  if (last)
    SRTOD_LAUNCH((pool_pixels<T, Beside>), grid_of(beside.blocks + shape.batch * parts.parts * by.column_blocks),
                 stream, x, wide, shape, by, static_cast<uint32_t>(pixels_of_part), mlp, pool, beside);
  else
    SRTOD_LAUNCH((pool_planes<T, Beside>), grid_of(beside.blocks + shape.batch * shape.channels * parts.parts), stream,
                 x, wide, shape, mlp, pool, beside);
}

}  // namespace srtod
