// Filtration on the GPU, for its own op and for DGFE: the value of one filter pixel, and the gradient of one pixel of
// the difference map.
#pragma once
#include "reductions.cuh"

namespace srtod {

struct Difference {  // a map [N, 1, H, W]
  AnyFloat map;
  Strides strides;
  uint32_t height, width;

  Difference() = default;
  Difference(const char* op, const Tensor& map)
      : map(map), strides(map), height(static_cast<uint32_t>(map.size(2))), width(static_cast<uint32_t>(map.size(3))) {
    STD_TORCH_CHECK(map.size(2) * map.size(3) <= 2147483647, op, ": a map of more than 2^31 - 1 pixels is too large");
  }

  template <class A>
  __device__ __forceinline__ A at(int64_t n, uint32_t y, uint32_t x) const {
    return map.at<A>(strides.at(n, y, x));
  }
};

struct Filter {
  Difference difference;
  AnyFloat threshold;
  uint32_t height, width;  // of the filter
  float scale_y, scale_x;  // map size / filter size, as PyTorch's nearest resize rounds it
  Resize resize;
  Surrogate surrogate;
  double alpha;
  // A nearest resize in which every filter pixel has a map pixel of its own: to no larger a size, of indices that
  // float32 tells apart.
  bool samples;

  Filter() = default;
  Filter(const char* op, const Tensor& difference, const Tensor& threshold, int64_t height, int64_t width,
         int64_t resize, int64_t surrogate, double alpha)
      : difference(op, difference),
        threshold(threshold),
        height(static_cast<uint32_t>(height)),
        width(static_cast<uint32_t>(width)),
        scale_y(static_cast<float>(difference.size(2)) / static_cast<float>(height)),
        scale_x(static_cast<float>(difference.size(3)) / static_cast<float>(width)),
        resize(Resize(resize)),
        surrogate(Surrogate(surrogate)),
        alpha(alpha),
        samples(Resize(resize) == Resize::nearest && difference.size(2) >= height && difference.size(3) >= width &&
                std::max(difference.size(2), difference.size(3)) <= int64_t{1} << 24) {
    STD_TORCH_CHECK(height * width <= 2147483647, op, ": a filter of more than 2^31 - 1 pixels is too large");
  }

  __host__ __device__ __forceinline__ uint32_t pixels() const { return height * width; }
  __host__ __device__ __forceinline__ uint32_t map_pixels() const { return difference.height * difference.width; }
};

// `pooling_window` in 32 bits where they suffice: 64-bit division is a function call on a GPU.
__device__ __forceinline__ Window<uint32_t> window_of(uint32_t k, uint32_t input, uint32_t output) {
  if ((uint64_t{k} + 1) * input + output <= 0xffffffffu) return pooling_window(k, input, output);
  const Window<uint64_t> w = pooling_window<uint64_t>(k, input, output);
  return {static_cast<uint32_t>(w.begin), static_cast<uint32_t>(w.end)};
}

// How much input i of an axis counts in output k, for the resizes that are weighted sums.
template <class A>
__device__ __forceinline__ A axis_weight(Resize resize, uint32_t i, uint32_t k, uint32_t input, uint32_t output,
                                         float scale) {
  if (resize == Resize::nearest) return nearest_index(k, scale, input) == i ? A(1) : A(0);
  if (resize == Resize::area) {
    const Window<uint32_t> w = window_of(k, input, output);
    return i >= w.begin && i < w.end ? A(1) / static_cast<A>(w.end - w.begin) : A(0);
  }
  const Mixture<A, uint32_t> m = bilinear_mixture<A>(k, input, output);
  return i == m.low ? A(1) - m.fraction : i == m.high ? m.fraction : A(0);
}

// The outputs of an axis that input i can count in, never too few: with those of its neighbours, which bilinear mixes.
__device__ __forceinline__ Window<uint32_t> outputs_of(uint32_t i, uint32_t input, uint32_t output) {
  const uint32_t begin = window_of(i > 0 ? i - 1 : 0, output, input).begin;
  const uint32_t end = window_of(minimum(i + 1, input - 1), output, input).end;
  return {begin > 0 ? begin - 1 : 0, minimum(end + 1, output)};
}

struct MapWindow {  // of the map: the pixels that output (i, j) of a pooling resize covers
  Window<uint32_t> rows, columns;

  __device__ __forceinline__ MapWindow(const Filter& f, uint32_t i, uint32_t j)
      : rows(window_of(i, f.difference.height, f.height)), columns(window_of(j, f.difference.width, f.width)) {}

  __device__ __forceinline__ bool holds(uint32_t y, uint32_t x) const {
    return y >= rows.begin && y < rows.end && x >= columns.begin && x < columns.end;
  }
  // Calls visit(y, x) for every pixel, row by row.
  template <class F>
  __device__ __forceinline__ void each(const F& visit) const {
    for (uint32_t y = rows.begin; y < rows.end; ++y)
      for (uint32_t x = columns.begin; x < columns.end; ++x) visit(y, x);
  }
};

// The greatest difference in a window and its first position in the map; with NaN the last one, as PyTorch's pooling.
template <class A>
__device__ __forceinline__ Maximum<A> window_maximum(const Filter& f, int64_t n, const MapWindow& window) {
  Maximum<A> best = Maximum<A>::before(window.rows.begin * f.difference.width + window.columns.begin);
  window.each([&](uint32_t y, uint32_t x) {
    const A value = f.difference.at<A>(n, y, x);
    if (value > best.value || value != value) best = {value, y * f.difference.width + x};
  });
  return best;
}

// Value of the filter at pixel (i, j) of image n: 1 + Resize(step(D - t)).
template <class A>
__device__ __forceinline__ A filter_value(const Filter& f, int64_t n, uint32_t i, uint32_t j, A t) {
  const uint32_t height = f.difference.height, width = f.difference.width;
  switch (f.resize) {
    case Resize::nearest:
      return A(1) +
             step(f.difference.at<A>(n, nearest_index(i, f.scale_y, height), nearest_index(j, f.scale_x, width)) - t);
    case Resize::max:
      return A(1) + step(window_maximum<A>(f, n, MapWindow(f, i, j)).value - t);
    case Resize::area: {  // dividing last keeps uniform maps uniform
      A sum = 0;
      uint32_t count = 0;
      MapWindow(f, i, j).each([&](uint32_t y, uint32_t x) {
        sum += step(f.difference.at<A>(n, y, x) - t);
        ++count;
      });
      return A(1) + sum / static_cast<A>(count);
    }
    case Resize::bilinear: {
      const Mixture<A, uint32_t> rows = bilinear_mixture<A>(i, height, f.height);
      const Mixture<A, uint32_t> columns = bilinear_mixture<A>(j, width, f.width);
      A sum = 0;
#pragma unroll 1
      for (int k = 0; k < 4; ++k) {
        const A weight =
            (k / 2 ? rows.fraction : A(1) - rows.fraction) * (k % 2 ? columns.fraction : A(1) - columns.fraction);
        if (weight == A(0)) continue;  // what counts nothing is not looked at
        sum +=
            weight * step(f.difference.at<A>(n, k / 2 ? rows.high : rows.low, k % 2 ? columns.high : columns.low) - t);
      }
      return A(1) + sum;
    }
  }
  return A(1);
}

// The filter's values [N, h * w], cut into tiles of a block each; by default none.
struct FilterTiles {
  Filter filter;
  AnyFloatOut values;
  uint32_t of_image = 0, blocks = 0;

  FilterTiles() = default;
  FilterTiles(const Filter& filter, Tensor& values)
      : filter(filter),
        values(values),
        of_image(static_cast<uint32_t>(divide_up(filter.pixels(), kThreads))),
        blocks(grid_of(values.size(0) * of_image).x) {}

  template <class A>
  __device__ __forceinline__ void compute(uint32_t tile) const {
    const int64_t n = tile / of_image;
    const uint32_t p = tile % of_image * kThreads + threadIdx.x;
    if (p < filter.pixels())
      values.set(n * filter.pixels() + p,
                 filter_value(filter, n, p / filter.width, p % filter.width, filter.threshold.at<A>(0)));
  }
};

// How much the difference at (y, x) counts in output (i, j), of which `row_weight` is the share of the rows.
template <class A>
__device__ __forceinline__ A pixel_weight(const Filter& f, int64_t n, uint32_t y, uint32_t x, uint32_t i, uint32_t j,
                                          A row_weight) {
  if (f.resize != Resize::max)
    return row_weight * axis_weight<A>(f.resize, x, j, f.difference.width, f.width, f.scale_x);
  const MapWindow window(f, i, j);
  return window.holds(y, x) && window_maximum<A>(f, n, window).index == y * f.difference.width + x ? A(1) : A(0);
}

// Gradient of the difference at pixel (y, x), gathered from those filter pixels that it went into: no atomics, one
// order. `grad_filter(i, j)` is the gradient of the filter at (i, j) of the same image. Summed over all pixels and
// negated, it is the gradient of the threshold.
template <class A, class GradFilter>
__device__ __forceinline__ A difference_gradient(const Filter& f, int64_t n, uint32_t y, uint32_t x, A t,
                                                 const GradFilter& grad_filter) {
  if (f.surrogate == Surrogate::none) return A(0);
  const Window<uint32_t> rows = outputs_of(y, f.difference.height, f.height);
  const Window<uint32_t> columns = outputs_of(x, f.difference.width, f.width);
  A sum = 0;
  bool used = false;
  for (uint32_t i = rows.begin; i < rows.end; ++i) {
    A row_weight = 1;
    if (f.resize != Resize::max) row_weight = axis_weight<A>(f.resize, y, i, f.difference.height, f.height, f.scale_y);
    if (row_weight == A(0)) continue;
    for (uint32_t j = columns.begin; j < columns.end; ++j) {
      const A weight = pixel_weight(f, n, y, x, i, j, row_weight);
      if (weight == A(0)) continue;
      sum += weight * grad_filter(i, j);
      used = true;
    }
  }
  return used ? sum * surrogate_derivative(f.difference.at<A>(n, y, x) - t, f.surrogate, static_cast<A>(f.alpha))
              : A(0);
}

constexpr uint32_t kGradientsOfThread = 4;
constexpr uint32_t kGradientsOfBlock = kThreads * kGradientsOfThread;

// Blocks that compute the gradients of an image's differences. Of a filter that samples only the sampled ones are
// computed, and the others must be zero before.
inline uint32_t gradient_tiles(const Filter& f) {
  return static_cast<uint32_t>(divide_up(f.samples ? f.pixels() : f.map_pixels(), kGradientsOfBlock));
}

// The gradient of the differences [N, 1, H, W], ready for the tiles; empty where it is not wanted.
inline Tensor empty_gradient(const Tensor& difference, bool wanted, const Filter& f, cudaStream_t stream) {
  if (!wanted) return empty({0}, difference.scalar_type(), difference);
  Tensor gradient =
      empty({difference.size(0), 1, difference.size(2), difference.size(3)}, difference.scalar_type(), difference);
  if (f.samples) set_zero(gradient, stream);
  return gradient;
}

// One block's share of the gradients of the differences, tile `tile` of image n: written to `grad_difference`
// [N, 1, H, W], contiguous, where it has data. Returns the sum over the tile to every thread; it cancels much, hence
// double.
template <class A, class GradFilter>
__device__ __forceinline__ double difference_gradient_tile(const Filter& f, int64_t n, uint32_t tile,
                                                           const GradFilter& grad_filter, AnyFloatOut grad_difference,
                                                           double* scratch) {
  const A t = f.threshold.at<A>(0);
  double sum = 0;
#pragma unroll 1
  for (uint32_t k = 0; k < kGradientsOfThread; ++k) {
    const uint32_t p = tile * kGradientsOfBlock + k * kThreads + threadIdx.x;
    if (p >= (f.samples ? f.pixels() : f.map_pixels())) break;
    uint32_t y = p / (f.samples ? f.width : f.difference.width);
    uint32_t x = p - y * (f.samples ? f.width : f.difference.width);
    A grad;
    if (f.samples) {
      grad = grad_filter(y, x);
      y = nearest_index(y, f.scale_y, f.difference.height);
      x = nearest_index(x, f.scale_x, f.difference.width);
      const A slope = surrogate_derivative(f.difference.at<A>(n, y, x) - t, f.surrogate, static_cast<A>(f.alpha));
      grad = f.surrogate == Surrogate::none ? A(0) : grad * slope;
    } else {
      grad = difference_gradient(f, n, y, x, t, grad_filter);
    }
    sum += static_cast<double>(grad);
    if (grad_difference.data != nullptr) grad_difference.set(n * f.map_pixels() + y * f.difference.width + x, grad);
  }
  return block_sum(sum, scratch);
}

// The threshold's gradient from the tiles' sums, added up in order by one block.
__device__ __forceinline__ void threshold_gradient(const double* sums, uint32_t count, AnyFloatOut grad_threshold,
                                                   double* scratch) {
  double total = 0;
  for (uint32_t k = threadIdx.x; k < count; k += kThreads) total += sums[k];
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) grad_threshold.set(0, -total);
}

}  // namespace srtod
