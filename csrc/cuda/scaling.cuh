// The last step of DGFE and of its backward pass: every element times its channel's weight and its pixel's filter.
#pragma once
#include "pooling.cuh"

namespace srtod {

// Forward: x s f. Backward: g s f, plus a constant and the maximum's share. Spread: these two alone, with nothing read.
enum class Scale { forward, backward, spread };

template <class A>
struct Scaling {
  const A* filter;                 // [N, h * w]; not to spread
  const A* weights;                // [N, C]; not to spread
  const A *constant, *at_maximum;  // [N, C]; not forward
  const int64_t* argmax;           // [N, C]; not forward
};

template <Scale kind, class A>
struct ChannelScaling {  // of one channel
  A weight, constant, at_maximum;
  uint32_t argmax;

  __device__ __forceinline__ void read(const Scaling<A>& scaling, int64_t nc) {
    if constexpr (kind != Scale::spread) weight = scaling.weights[nc];
    if constexpr (kind != Scale::forward) {
      constant = scaling.constant[nc];
      at_maximum = constant + scaling.at_maximum[nc];
      argmax = static_cast<uint32_t>(scaling.argmax[nc]);
    }
  }
  __device__ __forceinline__ A operator()(A value, A filter, uint32_t pixel) const {
    if constexpr (kind == Scale::spread) return argmax == pixel ? at_maximum : constant;
    A result = enhance(value, weight, filter);
    if constexpr (kind == Scale::backward) result += argmax == pixel ? at_maximum : constant;
    return result;
  }
};

// How a launch is cut. NCHW: tiles of pixels, `groups` of kScaleChannels channels. channels_last: tiles of pixels,
// groups = column blocks.
struct ScaleCut {
  bool channels_last, wide;
  Columns by;
  uint32_t tiles, groups;
  static constexpr uint32_t kChannels = 16, kPixels = 8;  // of a group (NCHW); of a lane (channels_last)

  template <class T>
  static ScaleCut of(const Shape& shape, MemoryFormat format, std::initializer_list<const T*> pointers) {
    ScaleCut cut{format == MemoryFormat::ChannelsLast, true, Columns(shape.channels, kWidth<T>), 0, 0};
    cut.wide = (cut.channels_last ? shape.channels : shape.pixels) % kWidth<T> == 0;
    for (const T* pointer : pointers) cut.wide = cut.wide && is_aligned(pointer);
    cut.tiles = static_cast<uint32_t>(
        divide_up(shape.pixels, cut.channels_last ? cut.by.lanes * kPixels : kThreads * kWidth<T>));
    cut.groups = cut.channels_last ? cut.by.column_blocks : static_cast<uint32_t>(divide_up(shape.channels, kChannels));
    return cut;
  }

  int64_t blocks(const Shape& shape) const { return shape.batch * groups * tiles; }
};

// NCHW: a thread owns kWidth neighbouring pixels and goes through a group of channels. `y` may be `x`.
template <Scale kind, class T>
__device__ __forceinline__ void scale_planes(uint32_t index, const T* x, const Shape& shape, const ScaleCut& cut,
                                             const Scaling<compute_t<T>>& scaling, T* y) {
  using A = compute_t<T>;
  const uint32_t tile = index % cut.tiles, group = index / cut.tiles % cut.groups;
  const int64_t n = index / cut.tiles / cut.groups;
  const uint32_t pixel = (tile * kThreads + threadIdx.x) * kWidth<T>;
  const uint32_t count = elements_below(shape.pixels, pixel, kWidth<T>);
  if (count == 0) return;
  A f[kWidth<T>] = {};
  if constexpr (kind != Scale::spread) {
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i)
      f[i] = scaling.filter[n * shape.pixels + minimum(pixel + i, shape.pixels - 1)];
  }
  const uint32_t end = minimum((group + 1) * ScaleCut::kChannels, shape.channels);
  for (uint32_t first = group * ScaleCut::kChannels; first < end; first += 4) {  // four loads on their way at once
    Vector<T> v[4] = {};
    const int64_t at = (n * shape.channels + first) * shape.pixels + pixel;
    if constexpr (kind != Scale::spread) {
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k)
        v[k] = load(x + at + int64_t{k} * shape.pixels, cut.wide, first + k < end ? count : 0);
    }
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) {
      if (first + k >= end) break;
      ChannelScaling<kind, A> scale;
      scale.read(scaling, n * shape.channels + first + k);
#pragma unroll
      for (uint32_t i = 0; i < kWidth<T>; ++i)
        v[k].set(i, static_cast<T>(scale(v[k].template at<A>(i), f[i], pixel + i)));
      store(v[k], y + at + int64_t{k} * shape.pixels, cut.wide, count);
    }
  }
}

// channels_last: a thread keeps to kWidth channels and goes through pixels.
template <Scale kind, class T>
__device__ __forceinline__ void scale_pixels(uint32_t index, const T* x, const Shape& shape, const ScaleCut& cut,
                                             const Scaling<compute_t<T>>& scaling, T* y) {
  using A = compute_t<T>;
  const uint32_t group = index % cut.groups, tile = index / cut.groups % cut.tiles;
  const int64_t n = index / cut.groups / cut.tiles;
  const uint32_t column = threadIdx.x % cut.by.columns, lane = threadIdx.x / cut.by.columns;
  const uint32_t channel = (group * cut.by.columns + column) * kWidth<T>;
  const uint32_t count = elements_below(shape.channels, channel, kWidth<T>);
  if (lane >= cut.by.lanes || count == 0) return;
  ChannelScaling<kind, A> scale[kWidth<T>];
#pragma unroll
  for (uint32_t i = 0; i < kWidth<T>; ++i)
    scale[i].read(scaling, n * shape.channels + minimum(channel + i, shape.channels - 1));
  const uint32_t of_tile = cut.by.lanes * ScaleCut::kPixels;
#pragma unroll
  for (uint32_t batch = 0; batch < ScaleCut::kPixels; batch += 4) {  // four loads on their way at once
    const uint32_t first = tile * of_tile + batch * cut.by.lanes + lane;
    const int64_t at = n * shape.elements() + int64_t{first} * shape.channels + channel;
    const int64_t step = int64_t{cut.by.lanes} * shape.channels;
    Vector<T> v[4] = {};
    A f[4] = {};
    if constexpr (kind != Scale::spread) {
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k) {
        const bool inside = first + k * cut.by.lanes < shape.pixels;
        v[k] = load(x + at + k * step, cut.wide, inside ? count : 0);
        f[k] = inside ? scaling.filter[n * shape.pixels + first + k * cut.by.lanes] : A(0);
      }
    }
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) {
      const uint32_t pixel = first + k * cut.by.lanes;
      if (pixel >= shape.pixels) break;
#pragma unroll
      for (uint32_t i = 0; i < kWidth<T>; ++i)
        v[k].set(i, static_cast<T>(scale[i](v[k].template at<A>(i), f[k], pixel)));
      store(v[k], y + at + k * step, cut.wide, count);
    }
  }
}

// Block `block` of `blocks`, which go from the end of the map to its beginning: what the launch before read last may
// still be in the cache.
template <Scale kind, class T>
__device__ __forceinline__ void scale_block(uint32_t block, uint32_t blocks, const T* x, const Shape& shape,
                                            const ScaleCut& cut, const Scaling<compute_t<T>>& scaling, T* y) {
  if (cut.channels_last)
    scale_pixels<kind>(blocks - 1 - block, x, shape, cut, scaling, y);
  else
    scale_planes<kind>(blocks - 1 - block, x, shape, cut, scaling, y);
}

}  // namespace srtod
