// What the ops share that compute the reconstruction's output convolution, 3x3 from C channels to 3 colours.
#pragma once
#include "images.cuh"

namespace srtod {

constexpr uint32_t kColors = 3, kTaps = 9, kProducts = kColors * kTaps;

// Where in weights [3, C, 3, 3] a product of a pixel's channel is.
__device__ __forceinline__ uint32_t weight_index(uint32_t color, uint32_t channels, uint32_t channel, uint32_t tap) {
  return (color * channels + channel) * kTaps + tap;
}

template <class T>
struct FeatureMap {
  T* data;
  Strides strides;
  uint32_t channels, height, width;

  FeatureMap() = default;
  FeatureMap(const char* op, const Tensor& t, T* data)
      : data(data),
        strides(t),
        channels(static_cast<uint32_t>(t.size(1))),
        height(static_cast<uint32_t>(t.size(2))),
        width(static_cast<uint32_t>(t.size(3))) {
    STD_TORCH_CHECK(t.size(2) * t.size(3) <= 2147483647 && t.size(1) <= 65535, op, ": features this large do not fit");
  }

  __device__ __forceinline__ bool has(int32_t y, int32_t x) const {
    return static_cast<uint32_t>(y) < height && static_cast<uint32_t>(x) < width;
  }

  // Channels can be loaded 16 bytes at a time.
  bool is_wide() const {
    const uint32_t width = kWidth<std::remove_const_t<T>>;
    return strides.c == 1 && channels % width == 0 && strides.n % width == 0 && strides.h % width == 0 &&
           strides.w % width == 0 && is_aligned(data);
  }
};

}  // namespace srtod
