// What the CPU ops share that compute the reconstruction's output convolution, 3x3 from C channels to 3 colours: rows
// of features in the type of arithmetic, the weights, and the products of both.
#pragma once
#include <algorithm>
#include <vector>

#include "rows.h"
#include "vectors.h"

namespace srtod {

constexpr int64_t kColors = 3, kTaps = 9, kProducts = kColors * kTaps;
constexpr int64_t kPaddedProducts = 32;
constexpr int64_t kChannelBlock = 32;  // channels of a pixel are padded to a multiple of this
constexpr int64_t kTileColumns = 288;  // a multiple of all blocks of pixels: products of three rows fit the L2 cache
constexpr int64_t kSlack = 64;         // blocks of pixels may run past the end of a row
constexpr int64_t kRowLength = kTileColumns + kSlack;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Part of a row of features, as A: [channels] by [pixels].
template <class A>
struct Segment {
  const A* data;
  int64_t channel_stride, pixel_stride;  // one of them is 1
};

template <class T>
struct Features {
  using A = compute_t<std::remove_const_t<T>>;
  T* data;
  int64_t batch, channels, height, width, stride_n, stride_c, stride_h, stride_w;
  bool interleaved;  // a pixel's channels adjoin

  template <class Tensor_, class Data>
  Features(Tensor_& t, Data* data)
      : data(data),
        batch(t.size(0)),
        channels(t.size(1)),
        height(t.size(2)),
        width(t.size(3)),
        stride_n(t.stride(0)),
        stride_c(t.stride(1)),
        stride_h(t.stride(2)),
        stride_w(t.stride(3)),
        interleaved(t.stride(1) == 1 && t.stride(3) != 1) {}

  int64_t padded_channels() const { return divide_up(channels, kChannelBlock) * kChannelBlock; }
  T* at(int64_t n, int64_t y, int64_t x) const { return data + n * stride_n + y * stride_h + x * stride_w; }

  // Pixels [x, x + count) of row y; in place where nothing has to change, else in `scratch` [kTileColumns, padded
  // channels], where pixels are padded with zeros if `padded`.
  Segment<A> load(int64_t n, int64_t y, int64_t x, int64_t count, bool padded, std::vector<A>& scratch) const {
    const int64_t pixel = padded ? padded_channels() : channels;
    if constexpr (std::is_same_v<T, const A>) {
      if (!interleaved && stride_w == 1) return {at(n, y, x), stride_c, 1};
      if (interleaved && pixel == channels) return {at(n, y, x), 1, stride_w};
    }
    scratch.resize(kTileColumns * padded_channels());
    if (!interleaved) {
      for (int64_t c = 0; c < channels; ++c)
        widen_row(at(n, y, x) + c * stride_c, stride_w, count, &scratch[c * kTileColumns]);
      return {scratch.data(), kTileColumns, 1};
    }
    if (stride_w == pixel && pixel == channels) {
      widen_row(at(n, y, x), 1, count * pixel, scratch.data());
      return {scratch.data(), 1, pixel};
    }
    for (int64_t i = 0; i < count; ++i) {
      widen_row(at(n, y, x + i), 1, channels, &scratch[i * pixel]);
      std::fill(&scratch[i * pixel + channels], &scratch[i * pixel] + pixel, A(0));
    }
    return {scratch.data(), 1, pixel};
  }
};

template <class T>
Features<const T> features_of(const Tensor& t) {
  return {t, t.const_data_ptr<T>()};
}

// All elements of a small tensor of any floating type and strides, as A in order.
template <class A>
std::vector<A> values_of(const char* op, const Tensor& t) {
  const Tensor packed = in_format(t, MemoryFormat::Contiguous);
  std::vector<A> values(t.numel());
  dispatch_floating(t.scalar_type(), op, [&](auto tag) {
    const auto* data = packed.const_data_ptr<decltype(tag)>();
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<A>(widen(data[i]));
  });
  return values;
}

// Weights [channel][kPaddedProducts], a product's index being (dy * 3 + dx) * 3 + colour, from [3, C, 3, 3].
template <class A>
std::vector<A> weights_by_channel(const char* op, const Tensor& weight) {
  const std::vector<A> values = values_of<A>(op, weight);
  const int64_t channels = weight.size(1);
  std::vector<A> out(channels * kPaddedProducts);
  for (int64_t color = 0; color < kColors; ++color)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t tap = 0; tap < kTaps; ++tap)
        out[c * kPaddedProducts + tap * kColors + color] = values[(color * channels + c) * kTaps + tap];
  return out;
}

// Weights [27][padded channels], zero past the last channel, the first index being colour * 9 + dy * 3 + dx.
template <class A>
std::vector<A> weights_by_product(const char* op, const Tensor& weight, int64_t padded_channels) {
  const std::vector<A> values = values_of<A>(op, weight);
  const int64_t channels = weight.size(1);
  std::vector<A> out(kProducts * padded_channels);
  for (int64_t k = 0; k < kProducts; ++k)
    for (int64_t c = 0; c < channels; ++c)
      out[k * padded_channels + c] = values[(k / kTaps * channels + c) * kTaps + k % kTaps];
  return out;
}

// Products [rows * passes][kRowLength] of pixels whose neighbours adjoin with the weights [channel][kPaddedProducts],
// of which a block of pixels takes `rows` at a time. `scratch` has room for `channels` by kSlack.
template <int rows, int passes, class A>
void multiply_planar(const Segment<A>& x, int64_t channels, int64_t count, const A* weights, A* products, A* scratch) {
  with_widest_registers([&](auto width) __attribute__((always_inline)) {
    using Of = Registers<A, decltype(width)::value>;
    constexpr int64_t block = Of::kMany * Of::kLanes;
    for (int64_t i = 0; i < count; i += block) {
      const A* from = x.data + i;
      int64_t stride = x.channel_stride;
      const bool is_last = count - i <= block;
      if (count - i < block) {
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t k = 0; k < block; ++k) scratch[c * block + k] = k < count - i ? from[c * stride + k] : A(0);
        from = scratch;
        stride = block;
      }
      for (int pass = 0; pass < passes; ++pass) {
        typename Of::Vector sums[rows][Of::kMany] = {};
        const A* const ahead = from + (is_last ? 0 : block) + pass * Of::kLanes;
        multiply_add<A, decltype(width)::value>(
            weights + pass * rows, [](int64_t r, int64_t k) { return k * kPaddedProducts + r; }, from,
            [&](int64_t k) __attribute__((always_inline)) {
#pragma GCC unroll 4
              for (int v = 0; v < Of::kMany; v += passes)  // too many streams for the hardware to follow
                __builtin_prefetch(ahead + k * stride + v * Of::kLanes);
              return k * stride;
            },
            channels, sums);
        for (int64_t r = 0; r < rows; ++r)
          for (int v = 0; v < Of::kMany; ++v)
            Of::at(products + (pass * rows + r) * kRowLength + i + v * Of::kLanes) = sums[r][v];
      }
    }
  });
}

}  // namespace srtod
