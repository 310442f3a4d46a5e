// DGFE backward in two launches: one reads g and P2 for the sums over channels (the filter's gradient) and over pixels
// (the channel weights' gradient), with the MLP's backward; the other writes the gradients.
#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "dgfe.cuh"

namespace srtod {
namespace {

template <class A>
struct Sums {
  const A* filter;   // [N, h * w]
  const A* weights;  // [N, C]
  A* grad_filter;    // [groups, N, h * w], to be summed over `groups`
  A* grad_weights;   // [N, slots, C], to be summed over the slots
  Parts parts;       // of the pixels of an image
  uint32_t groups;   // of its channels
};

// After a part of the pixels of image n is left: the last block of the image runs the MLP's backward.
template <class A>
__device__ __forceinline__ void finish_sums(const Sums<A>& sums, const Shape& shape, const WeightsBackward<A>& mlp,
                                            int64_t n, uint32_t part) {
  allow_next_launch();
  A* of_image = sums.grad_weights + n * sums.parts.slots() * shape.channels;
  const auto combine = [&](uint32_t begin, uint32_t end, uint32_t slot) {
    for (uint32_t c = threadIdx.x; c < shape.channels; c += kThreads) {
      A sum = 0;
#pragma unroll 8
      for (uint32_t k = begin; k < end; ++k) sum += of_image[int64_t{k} * shape.channels + c];
      of_image[int64_t{slot} * shape.channels + c] = sum;
    }
  };
  if (sums.parts.is_last_of_image(n, part, sums.groups, combine)) weights_backward(mlp, n);
}

constexpr uint32_t kMaxGroup = 32;  // channels of a group at most (NCHW)
// Of the kernels that sum, how many blocks share a multiprocessor; double needs more registers.
template <class T>
constexpr int kSumBlocks = sizeof(T) <= 4 ? 3 : kBlocksPerMultiprocessor;

// NCHW: a thread owns kWidth neighbouring pixels and goes through a group of channels. The sum over channels stays in
// registers, that over pixels costs a warp reduction a channel.
template <class T>
__global__ void __launch_bounds__(kThreads, kSumBlocks<T>)
    sum_planes(const T* __restrict__ g, const T* __restrict__ x, bool wide, Shape shape, uint32_t group_channels,
               Sums<compute_t<T>> sums, WeightsBackward<compute_t<T>> mlp) {
  using A = compute_t<T>;
  SRTOD_SHARED(A, of_warp, [kWarps][kMaxGroup]);
  const uint32_t tiles = sums.parts.parts, tile = blockIdx.x % tiles, group = blockIdx.x / tiles % sums.groups;
  const int64_t n = blockIdx.x / tiles / sums.groups;
  const uint32_t pixel = (tile * kThreads + threadIdx.x) * kWidth<T>;
  const uint32_t count = elements_below(shape.pixels, pixel, kWidth<T>);
  const uint32_t begin = group * group_channels, end = minimum(begin + group_channels, shape.channels);
  A f[kWidth<T>], grad_filter[kWidth<T>];
#pragma unroll
  for (uint32_t i = 0; i < kWidth<T>; ++i) {
    f[i] = i < count ? sums.filter[n * shape.pixels + pixel + i] : A(0);  // where g and x read as zero
    grad_filter[i] = A(0);
  }
  for (uint32_t first = begin; first < end; first += 2) {  // two pairs of loads on their way at once
    Vector<T> gv[2], xv[2];
#pragma unroll
    for (uint32_t k = 0; k < 2; ++k) {
      const int64_t at = (n * shape.channels + first + k) * shape.pixels + pixel;
      gv[k] = load(g + at, wide, first + k < end ? count : 0);
      xv[k] = load(x + at, wide, first + k < end ? count : 0);
    }
#pragma unroll
    for (uint32_t k = 0; k < 2; ++k) {
      if (first + k >= end) break;
      const A s = sums.weights[n * shape.channels + first + k];
      A of_pixels = 0;
#pragma unroll
      for (uint32_t i = 0; i < kWidth<T>; ++i) {
        const A gx = gv[k].template at<A>(i) * xv[k].template at<A>(i);
        grad_filter[i] += gx * s;
        of_pixels += gx * f[i];
      }
      of_pixels = warp_sum(of_pixels);
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][first + k - begin] = of_pixels;
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < kWidth<T>; ++i)
    if (i < count) sums.grad_filter[(group * shape.batch + n) * shape.pixels + pixel + i] = grad_filter[i];
  __syncthreads();
  if (threadIdx.x < end - begin) {
    A sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += of_warp[w][threadIdx.x];
    sums.grad_weights[(n * sums.parts.slots() + tile) * shape.channels + begin + threadIdx.x] = sum;
  }
  finish_sums(sums, shape, mlp, n, tile);
}

// channels_last: a warp takes a pixel and kGroup of its channels. The sum over channels is a warp reduction, those over
// pixels stay in registers.
template <class T>
constexpr uint32_t kRounds = 256 / (32 * kWidth<T>);  // vectors of a lane in a pixel
template <class T>
constexpr uint32_t kGroup = 32 * kWidth<T> * kRounds<T>;

template <class T>
__global__ void __launch_bounds__(kThreads, kSumBlocks<T>)
    sum_pixels(const T* __restrict__ g, const T* __restrict__ x, bool wide, Shape shape, uint32_t pixels_of_part,
               Sums<compute_t<T>> sums, WeightsBackward<compute_t<T>> mlp) {
  using A = compute_t<T>;
  SRTOD_SHARED(A, of_warp, [kWarps][kGroup<T>]);
  const uint32_t parts = sums.parts.parts, part = blockIdx.x % parts, group = blockIdx.x / parts % sums.groups;
  const int64_t n = blockIdx.x / parts / sums.groups;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t begin = part * pixels_of_part, end = minimum(begin + pixels_of_part, shape.pixels);
  uint32_t channel[kRounds<T>], count[kRounds<T>];
  A s[kRounds<T>][kWidth<T>], grad_weights[kRounds<T>][kWidth<T>];
#pragma unroll
  for (uint32_t r = 0; r < kRounds<T>; ++r) {
    channel[r] = group * kGroup<T> + (r * 32 + lane) * kWidth<T>;
    count[r] = elements_below(shape.channels, channel[r], kWidth<T>);
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) {
      grad_weights[r][i] = A(0);
      s[r][i] = i < count[r] ? sums.weights[n * shape.channels + channel[r] + i] : A(0);
    }
  }
  constexpr uint32_t ahead = kRounds<T> == 1 ? 2 : 1;  // pixels whose loads are on their way at once
  for (uint32_t first = begin + warp; first < end; first += ahead * kWarps) {
    Vector<T> gv[ahead][kRounds<T>], xv[ahead][kRounds<T>];
    A f[ahead];
#pragma unroll
    for (uint32_t k = 0; k < ahead; ++k) {
      const uint32_t p = first + k * kWarps;
      const int64_t at = n * shape.elements() + int64_t{p} * shape.channels;
      f[k] = p < end ? sums.filter[n * shape.pixels + p] : A(0);
#pragma unroll
      for (uint32_t r = 0; r < kRounds<T>; ++r) {
        gv[k][r] = load(g + at + channel[r], wide, p < end ? count[r] : 0);
        xv[k][r] = load(x + at + channel[r], wide, p < end ? count[r] : 0);
      }
    }
#pragma unroll
    for (uint32_t k = 0; k < ahead; ++k) {
      const uint32_t p = first + k * kWarps;
      if (p >= end) break;
      A of_channels = 0;
#pragma unroll
      for (uint32_t r = 0; r < kRounds<T>; ++r)
#pragma unroll
        for (uint32_t i = 0; i < kWidth<T>; ++i) {
          const A gx = gv[k][r].template at<A>(i) * xv[k][r].template at<A>(i);
          grad_weights[r][i] += gx * f[k];
          of_channels += gx * s[r][i];  // of channels that are not there all is zero
        }
      of_channels = warp_sum(of_channels);
      if (lane == 0) sums.grad_filter[(group * shape.batch + n) * shape.pixels + p] = of_channels;
    }
  }
#pragma unroll
  for (uint32_t r = 0; r < kRounds<T>; ++r)
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) of_warp[warp][(r * 32 + lane) * kWidth<T> + i] = grad_weights[r][i];
  __syncthreads();
  for (uint32_t k = threadIdx.x; k < kGroup<T>; k += kThreads) {
    const uint32_t c = group * kGroup<T> + k;
    if (c >= shape.channels) break;
    A sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += of_warp[w][k];
    sums.grad_weights[(n * sums.parts.slots() + part) * shape.channels + c] = sum;
  }
  finish_sums(sums, shape, mlp, n, part);
}

// The gradients behind the filter: of the threshold, and of the differences where wanted.
template <class A>
struct FilterBackward {
  Filter filter;
  const A* grad_filter;  // [groups, N, h * w]
  uint32_t groups, tiles, blocks;
  int64_t batch;
  AnyFloatOut grad_difference;  // data = null: not wanted
  double* sums;                 // of each block
  int32_t* counter;
  AnyFloatOut grad_threshold;

  __device__ __forceinline__ void operator()(uint32_t block) const {
    SRTOD_SHARED(double, scratch, [kWarps]);
    const int64_t n = block / tiles;
    const double sum = difference_gradient_tile<A>(
        filter, n, block % tiles,
        [&](uint32_t i, uint32_t j) {
          A of_groups = 0;
          for (uint32_t group = 0; group < groups; ++group)
            of_groups += grad_filter[(group * batch + n) * filter.pixels() + i * filter.width + j];
          return of_groups;
        },
        grad_difference, scratch);
    if (threadIdx.x == 0) sums[block] = sum;
    if (is_last_block(counter, blocks)) threshold_gradient(sums, blocks, grad_threshold, scratch);
  }
};

// The first blocks do the gradient of the features, then come what lies behind the filter and the rest of the MLP's
// backward: little work, which the last of the first do not wait for.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    gradient_kernel(const T* g, Shape shape, ScaleCut cut, Scaling<compute_t<T>> scaling, T* grad,
                    uint32_t scale_blocks, FilterBackward<compute_t<T>> behind, WeightsBackward<compute_t<T>> mlp) {
  wait_for_previous_launch();
  const uint32_t block = blockIdx.x;
  if (block < scale_blocks)
    scale_block<Scale::backward>(block, scale_blocks, g, shape, cut, scaling, grad);
  else if (block < scale_blocks + behind.blocks)
    behind(block - scale_blocks);
  else
    mlp_backward(mlp, block - scale_blocks - behind.blocks);
}

struct DgfeBackward {  // all that a backward pass reads
  const char* op;
  Tensor grad, features;
  Filter filter;
  Tensor filter_values, weights, average, maximum, argmax, hidden;
  MlpTensors mlp;
  Tensor grad_difference;  // to be written; empty: not wanted
};

struct Gradients {
  Tensor features, threshold, weight1, bias1, weight2, bias2;
};

template <class T, class A = compute_t<T>>
void launch(DgfeBackward& pass, const Shape& shape, bool channels_last, WeightsBackwardTensors& t,
            Tensor& grad_features, Tensor& grad_threshold, const OnDevice& device) {
  const cudaStream_t stream = device.stream();
  const ScalarType type = compute_type(pass.features.scalar_type());
  const T *g = pass.grad.const_data_ptr<T>(), *x = pass.features.const_data_ptr<T>();
  T* out = grad_features.mutable_data_ptr<T>();
  const ScaleCut cut =
      ScaleCut::of<T>(shape, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous, {g, x, out});

  // Parts of the pixels and groups of the channels: as many blocks as fill the GPU once, few sums to be combined.
  const int64_t many = kSumBlocks<T> * device.multiprocessors();
  int64_t parts = divide_up(shape.pixels, kThreads * kWidth<T>), pixels_of_part = 0;
  uint32_t group_channels = kGroup<T>;
  if (channels_last) {
    const int64_t groups = divide_up(shape.channels, group_channels);
    pixels_of_part = std::max<int64_t>(2 * kWarps, divide_up(shape.pixels, divide_up(many, shape.batch * groups)));
    parts = divide_up(shape.pixels, pixels_of_part);
  } else {
    group_channels = kMaxGroup;
    if (shape.batch * parts * divide_up(shape.channels, group_channels) < many / 2) group_channels /= 2;
  }
  const uint32_t groups = static_cast<uint32_t>(divide_up(shape.channels, group_channels));
  Sums<A> sums{nullptr, nullptr, nullptr, nullptr, Parts(parts), groups};
  Tensor grad_filter = empty({groups, shape.batch, shape.pixels}, type, pass.features);
  Tensor grad_weights = empty({shape.batch, sums.parts.slots(), shape.channels}, type, pass.features);
  const int64_t meetings = shape.batch * sums.parts.meetings();
  Tensor counters = zero_counters(meetings + 1, pass.features, stream);
  int32_t* counter = counters.mutable_data_ptr<int32_t>();
  sums.filter = pass.filter_values.const_data_ptr<A>();
  sums.weights = pass.weights.const_data_ptr<A>();
  sums.grad_filter = grad_filter.mutable_data_ptr<A>();
  sums.grad_weights = grad_weights.mutable_data_ptr<A>();
  sums.parts.counters = counter;
  const WeightsBackward<A> mlp =
      t.arguments<A>(shape, pass.mlp.mlp(), sums.grad_weights, sums.parts.slots(), sums.parts.last_begin(),
                     sums.parts.last_end(), pass.weights, pass.average, pass.maximum, pass.hidden);
  const dim3 sum_blocks = grid_of(shape.batch * parts * groups);
  if (channels_last)
    SRTOD_LAUNCH(sum_pixels<T>, sum_blocks, stream, g, x, cut.wide, shape, static_cast<uint32_t>(pixels_of_part), sums,
                 mlp);
  else
    SRTOD_LAUNCH(sum_planes<T>, sum_blocks, stream, g, x, cut.wide, shape, group_channels, sums, mlp);

  const uint32_t tiles = gradient_tiles(pass.filter), behind_blocks = grid_of(shape.batch * tiles).x;
  Tensor behind_sums = empty({behind_blocks}, ScalarType::Double, pass.features);
  const Scaling<A> scaling{sums.filter, sums.weights, t.grad_average.const_data_ptr<A>(),
                           t.grad_maximum.const_data_ptr<A>(), pass.argmax.const_data_ptr<int64_t>()};
  const FilterBackward<A> behind{pass.filter,
                                 sums.grad_filter,
                                 groups,
                                 tiles,
                                 behind_blocks,
                                 shape.batch,
                                 pass.grad_difference.numel() > 0 ? AnyFloatOut(pass.grad_difference) : AnyFloatOut(),
                                 behind_sums.mutable_data_ptr<double>(),
                                 counter + meetings,
                                 AnyFloatOut(grad_threshold)};
  const uint32_t scale_blocks = grid_of(cut.blocks(shape)).x;
  SRTOD_LAUNCH_DEPENDENT(gradient_kernel<T>, grid_of(int64_t{scale_blocks} + behind_blocks + mlp_blocks(mlp.mlp)),
                         stream, g, shape, cut, scaling, out, scale_blocks, behind, mlp);
}

Gradients run(DgfeBackward& pass, const OnDevice& device) {
  const Tensor& features = pass.features;
  const MemoryFormat format = memory_format_of(features);
  pass.grad = in_format(pass.grad, format);
  pass.features = in_format(features, format);
  const Shape shape(pass.op, features);
  WeightsBackwardTensors t(shape, features, pass.mlp);
  Tensor grad_features = empty({features.size(0), features.size(1), features.size(2), features.size(3)},
                               features.scalar_type(), features, format);
  Tensor grad_threshold = empty({}, pass.filter.threshold.type, features);
  if (features.numel() == 0) {
    t.set_zero(device.stream());
    set_zero(grad_threshold, device.stream());
  } else {
    dispatch_floating(features.scalar_type(), pass.op, [&](auto tag) {
      launch<decltype(tag)>(pass, shape, format == MemoryFormat::ChannelsLast, t, grad_features, grad_threshold,
                            device);
    });
  }
  return {grad_features, grad_threshold, t.grad_weight1, t.grad_bias1, t.grad_weight2, t.grad_bias2};
}

void check_kept(const char* op, const Tensor& grad, const Tensor& features, const Tensor& threshold,
                const Tensor& filter, const Tensor& weights, const Tensor& average, const Tensor& maximum,
                const Tensor& argmax, const Tensor& hidden, const Tensor& weight1, const Tensor& weight2) {
  check_hidden(op, features, hidden, weight1, weight2);
  check_filter(op, features, filter);
  check_pooled(op, features, {&weights, &average, &maximum}, argmax);
  check_gradient(op, grad, features);
  check_same_device(op, features,
                    {&grad, &threshold, &weights, &average, &maximum, &argmax, &hidden, &weight1, &weight2});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dgfe_backward_cuda(
    const Tensor& grad, const Tensor& features, const Tensor& difference, const Tensor& threshold, const Tensor& filter,
    const Tensor& weights, const Tensor& average, const Tensor& maximum, const Tensor& argmax, const Tensor& hidden,
    const Tensor& weight1, const Tensor& weight2, int64_t resize, int64_t surrogate, double alpha,
    bool difference_grad) {
  const char* op = "dgfe";
  check_maps(op, features, difference, threshold);
  check_kept(op, grad, features, threshold, filter, weights, average, maximum, argmax, hidden, weight1, weight2);
  check_same_device(op, features, {&difference});
  const OnDevice device(features);
  const Filter f(op, difference, threshold, features.size(2), features.size(3), resize, surrogate, alpha);
  Tensor grad_difference = empty_gradient(difference, difference_grad, f, device.stream());
  DgfeBackward pass{op,
                    grad,
                    features,
                    f,
                    filter,
                    weights,
                    average,
                    maximum,
                    argmax,
                    hidden,
                    MlpTensors(weight1, weight2),
                    grad_difference};
  const Gradients grads = run(pass, device);
  return {grads.features, grad_difference, grads.threshold, grads.weight1, grads.bias1, grads.weight2, grads.bias2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) { m.impl("_dgfe_backward", TORCH_BOX(&dgfe_backward_cuda)); }

}  // namespace srtod
