// Channel reweighting: the pools and channel weights in one launch, which DGFE in two launches begins with, too; two
// launches backward.
#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "scaling.cuh"

namespace srtod {
namespace {

constexpr const char* kOp = "channel_reweighting";

template <class A>
struct Pool {
  Parts parts;
  A *sums, *maxima;                // [N, slots, C]
  uint32_t* indices;               // [N, slots, C]
  A *average, *maximum, *weights;  // [N, C]
  int64_t* argmax;                 // [N, C]
  A* hidden;                       // [N, 2, R]

  __device__ __forceinline__ void set(int64_t slot, uint32_t channels, uint32_t c, const Pooled<A>& pooled) const {
    sums[slot * channels + c] = pooled.sum;
    maxima[slot * channels + c] = pooled.best.value;
    indices[slot * channels + c] = pooled.best.index;
  }
};

// After part `part` of image n is left: the last block of the image combines all and runs the MLP. `argmax(c, maximum)`
// is the index of the maximum of channel c.
template <class A, class Argmax>
__device__ __forceinline__ void finish_pool(const Pool<A>& pool, const Shape& shape, const Mlp& mlp, int64_t n,
                                            uint32_t part, uint32_t blocks_of_part, const Argmax& argmax) {
  allow_next_launch();
  const uint32_t channels = shape.channels;
  const int64_t slots = n * pool.parts.slots();
  const auto combined = [&](uint32_t begin, uint32_t end, uint32_t c) {
    return combine_parts(pool.sums, pool.maxima, pool.indices, (slots + begin) * channels + c, end - begin, channels);
  };
  const auto combine = [&](uint32_t begin, uint32_t end, uint32_t slot) {
    for (uint32_t c = threadIdx.x; c < channels; c += kThreads)
      pool.set(slots + slot, channels, c, combined(begin, end, c));
  };
  if (!pool.parts.is_last_of_image(n, part, blocks_of_part, combine)) return;
  for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
    const Pooled<A> all = combined(pool.parts.last_begin(), pool.parts.last_end(), c);
    pool.average[n * channels + c] = all.sum / static_cast<A>(shape.pixels);
    pool.maximum[n * channels + c] = all.best.value;
    pool.argmax[n * channels + c] = argmax(c, all.best);
  }
  __syncthreads();
  weigh_channels(mlp, pool.average + n * channels, pool.maximum + n * channels, pool.hidden + n * 2 * mlp.hidden,
                 pool.weights + n * channels);
}

constexpr int kPoolBlocks = 3;  // that share a multiprocessor

// NCHW: a block pools one part of one plane. The last `beside.blocks` blocks do `beside` instead.
template <class T>
__global__ void __launch_bounds__(kThreads, kPoolBlocks)
    pool_planes(const T* x, bool wide, Shape shape, Mlp mlp, Pool<compute_t<T>> pool, FilterTiles beside) {
  using A = compute_t<T>;
  constexpr uint32_t kPart = kThreads * kWidth<T> * kPartVectors;
  const uint32_t block = blockIdx.x, parts = pool.parts.parts;
  if (block >= gridDim.x - beside.blocks) return beside.compute<A>(block - (gridDim.x - beside.blocks));
  SRTOD_SHARED(A, sums, [kWarps]);
  SRTOD_SHARED(A, values, [kWarps]);
  SRTOD_SHARED(uint32_t, indices, [kWarps]);
  const uint32_t part = block % parts, plane = block / parts;
  const int64_t n = plane / shape.channels;
  const T* row = x + int64_t{plane} * shape.pixels;
  A sum = 0;
  const uint32_t first = part * kPart + threadIdx.x * kWidth<T>;
  Maximum<A> best = Maximum<A>::before(first < shape.pixels ? first : Maximum<A>::kNone);
#pragma unroll 1
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
      add_vector(v[k], p, elements_below(shape.pixels, p, kWidth<T>), sum, best);
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
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      sum += sums[w];
      best.take({values[w], indices[w]});
    }
    pool.set(n * pool.parts.slots() + part, shape.channels, plane % shape.channels, {sum, best});
  }
  finish_pool(pool, shape, mlp, n, part, shape.channels, [&](uint32_t c, const Maximum<A>& maximum) {
    return exact_index(x + (n * shape.channels + c) * shape.pixels, maximum, shape.pixels);
  });
}

// channels_last: a thread keeps its channels of every `lanes`-th pixel of a part in registers; no shuffles.
template <class T>
__global__ void __launch_bounds__(kThreads, kPoolBlocks)
    pool_pixels(const T* x, bool wide, Shape shape, Columns by, uint32_t pixels_of_part, Mlp mlp,
                Pool<compute_t<T>> pool, FilterTiles beside) {
  using A = compute_t<T>;
  const uint32_t block = blockIdx.x, parts = pool.parts.parts;
  if (block >= gridDim.x - beside.blocks) return beside.compute<A>(block - (gridDim.x - beside.blocks));
  SRTOD_SHARED(A, values, [kThreads * kWidth<T>]);
  SRTOD_SHARED(uint32_t, indices, [kThreads * kWidth<T>]);
  const uint32_t column_block = block % by.column_blocks, part = block / by.column_blocks % parts;
  const int64_t n = block / by.column_blocks / parts;
  const uint32_t column = threadIdx.x % by.columns, lane = threadIdx.x / by.columns;
  const uint32_t first_channel = column_block * by.columns * kWidth<T>, channel = first_channel + column * kWidth<T>;
  const uint32_t count = elements_below(shape.channels, channel, kWidth<T>);
  const uint32_t begin = part * pixels_of_part, end = minimum(begin + pixels_of_part, shape.pixels);
  const T* image = x + n * shape.elements() + channel;
  ChannelPool<T> mine(begin + lane < end ? begin + lane : Maximum<A>::kNone);
  if (lane < by.lanes && count > 0) {
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
  const int64_t slot = (n * pool.parts.slots() + part) * shape.channels + first_channel;
  const uint32_t of_block = shape.channels - first_channel;
  mine.combine_lanes(
      by, values, indices,
      [&](uint32_t c, A sum) {
        if (c < of_block) pool.sums[slot + c] = sum;
      },
      [&](uint32_t c, const Maximum<A>& best) {
        if (c >= of_block) return;
        pool.maxima[slot + c] = best.value;
        pool.indices[slot + c] = best.index;
      });
  finish_pool(pool, shape, mlp, n, part, by.column_blocks,
              [](uint32_t, const Maximum<A>& maximum) { return maximum.index; });
}

template <class T>
void launch(const char* op, const Tensor& features, MemoryFormat format, const Mlp& mlp, PooledTensors& out,
            const OnDevice& device, const FilterTiles& beside) {
  using A = compute_t<T>;
  const Shape shape(op, features);
  if (shape.batch * shape.channels == 0) return;
  const cudaStream_t stream = device.stream();
  const bool last = format == MemoryFormat::ChannelsLast;
  const T* x = features.const_data_ptr<T>();
  const bool wide = (last ? shape.channels : shape.pixels) % kWidth<T> == 0 && is_aligned(x);
  const Columns by(shape.channels, kWidth<T>);
  int64_t pixels_of_part = int64_t{kThreads} * kWidth<T> * kPartVectors;
  if (last) {  // as many parts as fill the GPU once, but some pixels for every lane
    const int64_t wanted = divide_up(kPoolBlocks * device.multiprocessors(), shape.batch * by.column_blocks);
    pixels_of_part = std::max<int64_t>(8 * by.lanes, divide_up(shape.pixels, wanted));
  }
  Parts parts(divide_up(shape.pixels, pixels_of_part));
  const ScalarType type = compute_type(features.scalar_type());
  Tensor sums = empty({shape.batch, parts.slots(), shape.channels}, type, features);
  Tensor maxima = empty({shape.batch, parts.slots(), shape.channels}, type, features);
  Tensor indices = empty({shape.batch, parts.slots(), shape.channels}, ScalarType::Int, features);
  Tensor counters = zero_counters(shape.batch * parts.meetings(), features, stream);
  parts.counters = counters.mutable_data_ptr<int32_t>();
  const Pool<A> pool{parts,
                     sums.mutable_data_ptr<A>(),
                     maxima.mutable_data_ptr<A>(),
                     reinterpret_cast<uint32_t*>(indices.mutable_data_ptr<int32_t>()),
                     out.average.mutable_data_ptr<A>(),
                     out.maximum.mutable_data_ptr<A>(),
                     out.weights.mutable_data_ptr<A>(),
                     out.argmax.mutable_data_ptr<int64_t>(),
                     out.hidden.mutable_data_ptr<A>()};
  if (last)
    SRTOD_LAUNCH(pool_pixels<T>, grid_of(beside.blocks + shape.batch * parts.parts * by.column_blocks), stream, x, wide,
                 shape, by, static_cast<uint32_t>(pixels_of_part), mlp, pool, beside);
  else
    SRTOD_LAUNCH(pool_planes<T>, grid_of(beside.blocks + shape.batch * shape.channels * parts.parts), stream, x, wide,
                 shape, mlp, pool, beside);
}

}  // namespace

void launch_pool(const char* op, const Tensor& features, MemoryFormat format, const Mlp& mlp, PooledTensors& out,
                 const OnDevice& device, const FilterTiles& beside) {
  dispatch_floating(features.scalar_type(), op,
                    [&](auto tag) { launch<decltype(tag)>(op, features, format, mlp, out, device, beside); });
}

namespace {

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) weights_backward_kernel(WeightsBackward<A> b) {
  allow_next_launch();
  weights_backward(b, blockIdx.x);
}

// The gradient of the features is constant over each channel's pixels but for its arg-max. Blocks are cut as those that
// scale (scaling.cuh), which write the same; the last ones do what is left of the MLP's backward.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    spread_gradient(Shape shape, ScaleCut cut, Scaling<compute_t<T>> spread, T* grad, WeightsBackward<compute_t<T>> mlp,
                    uint32_t mlp_blocks) {
  wait_for_previous_launch();
  const uint32_t blocks = gridDim.x - mlp_blocks;
  if (blockIdx.x >= blocks)
    mlp_backward(mlp, blockIdx.x - blocks);
  else
    scale_block<Scale::spread>(blockIdx.x, blocks, static_cast<const T*>(nullptr), shape, cut, spread, grad);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> channel_reweighting_cuda(const Tensor& features,
                                                                            const Tensor& weight1, const Tensor& bias1,
                                                                            const Tensor& weight2,
                                                                            const Tensor& bias2) {
  check_features(kOp, features);
  check_mlp(kOp, features, weight1, bias1, weight2, bias2);
  check_same_device(kOp, features, {&weight1, &bias1, &weight2, &bias2});
  const OnDevice device(features);
  const MemoryFormat format = memory_format_of(features);
  const MlpTensors mlp(weight1, bias1, weight2, bias2);
  const Tensor x = in_format(features, format);
  PooledTensors out(features, mlp.mlp());
  launch_pool(kOp, x, format, mlp.mlp(), out, device);
  return {out.weights, out.average, out.maximum, out.argmax, out.hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> channel_reweighting_backward_cuda(
    const Tensor& grad, const Tensor& features, const Tensor& weights, const Tensor& average, const Tensor& maximum,
    const Tensor& argmax, const Tensor& hidden, const Tensor& weight1, const Tensor& weight2) {
  check_features(kOp, features);
  check_hidden(kOp, features, hidden, weight1, weight2);
  check_pooled(kOp, features, {&grad, &weights, &average, &maximum}, argmax);
  check_same_device(kOp, features, {&grad, &weights, &average, &maximum, &argmax, &hidden, &weight1, &weight2});
  const OnDevice device(features);
  const cudaStream_t stream = device.stream();
  const MemoryFormat format = memory_format_of(features);
  const Shape shape(kOp, features);
  const MlpTensors mlp(weight1, weight2);
  Tensor grad_features = empty({features.size(0), features.size(1), features.size(2), features.size(3)},
                               features.scalar_type(), features, format);
  WeightsBackwardTensors t(shape, features, mlp);
  if (grad_features.numel() == 0) {
    t.set_zero(stream);
    return {grad_features, t.grad_weight1, t.grad_bias1, t.grad_weight2, t.grad_bias2};
  }
  dispatch_floating(features.scalar_type(), kOp, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const auto arguments =
        t.arguments<A>(shape, mlp.mlp(), grad.const_data_ptr<A>(), 1, 0, 1, weights, average, maximum, hidden);
    SRTOD_LAUNCH(weights_backward_kernel<A>, grid_of(shape.batch), stream, arguments);
    T* out = grad_features.mutable_data_ptr<T>();
    const ScaleCut cut = ScaleCut::of<T>(shape, format, {out});
    const Scaling<A> spread{nullptr, nullptr, t.grad_average.const_data_ptr<A>(), t.grad_maximum.const_data_ptr<A>(),
                            argmax.const_data_ptr<int64_t>()};
    const int64_t last_blocks = mlp_blocks(arguments.mlp);
    SRTOD_LAUNCH_DEPENDENT(spread_gradient<T>, grid_of(cut.blocks(shape) + last_blocks), stream, shape, cut, spread,
                           out, arguments, static_cast<uint32_t>(last_blocks));
  });
  return {grad_features, t.grad_weight1, t.grad_bias1, t.grad_weight2, t.grad_bias2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("channel_reweighting", TORCH_BOX(&channel_reweighting_cuda));
  m.impl("_channel_reweighting_backward", TORCH_BOX(&channel_reweighting_backward_cuda));
}

}  // namespace srtod
