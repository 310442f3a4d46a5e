// The difference map at the pixels that a nearest resize takes, on the CPU: there alone the output convolution is done,
// then D, as of a small image.
#include "difference_map.h"
#include "output_convolution.h"

namespace srtod {
namespace {

constexpr const char* kOp = "sampled_difference_map";

// Logits of a row of samples, map by map.
template <class T>
class SampledConvolution {
 public:
  using A = compute_t<T>;

  SampledConvolution(const Samples& samples, const std::vector<Tensor>& maps, const Tensor& weight, const Tensor& bias)
      : samples_(samples), bias_(values_of<A>(kOp, bias)), by_channel_(weights_by_channel<A>(kOp, weight)) {
    for (const Tensor& map : maps) maps_.push_back(features_of<T>(map));
    zeros_.resize(maps_[0].padded_channels());
    by_product_ = weights_by_product<A>(kOp, weight, maps_[0].padded_channels());
  }

  // What one thread needs.
  struct Scratch {
    std::vector<A> converted, products, last_block;
  };

  void write_row(int64_t n, int64_t y, A* const* logits, Scratch& scratch) const {
    const int64_t tile = (kTileColumns - samples_.taps) / samples_.step + 1;
    for (int64_t begin = 0; begin < samples_.width; begin += tile) {
      const int64_t count = std::min(tile, samples_.width - begin);
      A* out[kColors];
      for (int64_t color = 0; color < kColors; ++color) {
        out[color] = logits[color] + begin;
        std::fill_n(out[color], count, bias_[color]);
      }
      for (size_t m = 0; m < maps_.size(); ++m) add_map(m, n, y, begin, count, out, scratch);
    }
  }

 private:
  // Columns of a map around samples; the first and the last one may lie outside the map.
  struct Columns {
    int64_t left, right, first, last;  // [left, right), and of these [first, last) exist
  };

  void add_map(int64_t m, int64_t n, int64_t y, int64_t begin, int64_t count, A* const* logits,
               Scratch& scratch) const {
    const Features<const T>& map = maps_[m];
    const int64_t left = samples_.step * begin - samples_.taps / 2;
    const int64_t right = left + samples_.step * (count - 1) + samples_.taps;
    const Columns columns{left, right, std::max<int64_t>(left, 0), std::min(right, map.width)};
    const int64_t first_tap = m * samples_.taps;
    if (map.interleaved && map.channels == map.padded_channels()) {
      const Segment<T> x{map.at(n, y, columns.first), 1, map.stride_w};
      return add_interleaved(x, columns, first_tap, count, logits);
    }
    const Segment<A> x =
        map.load(n, y, columns.first, columns.last - columns.first, map.interleaved, scratch.converted);
    if (map.interleaved)
      add_interleaved(x, columns, first_tap, count, logits);
    else
      add_planar(x, columns, first_tap, count, logits, scratch);
  }

  // All columns' products with the map's taps, as in the reconstruction's tail: of the vectors' lanes this wastes some,
  // but features that lie one sample apart would have to be brought together first.
  void add_planar(const Segment<A>& x, const Columns& columns, int64_t first_tap, int64_t count, A* const* logits,
                  Scratch& scratch) const {
    const int64_t channels = maps_[0].channels, existing = columns.last - columns.first;
    scratch.products.resize(samples_.taps * kColors * kRowLength);
    scratch.last_block.resize(channels * kSlack);
    A* const products = scratch.products.data();
    const A* const weights = &by_channel_[first_tap * kColors];
    A* const at_first = products + (columns.first - columns.left);
    if (samples_.taps == 3)
      multiply_planar<9, 1>(x, channels, existing, weights, at_first, scratch.last_block.data());
    else
      multiply_planar<3, 1>(x, channels, existing, weights, at_first, scratch.last_block.data());
    for (int64_t k = 0; k < samples_.taps * kColors; ++k) {
      A* const row = products + k * kRowLength;
      if (columns.left < columns.first) row[0] = 0;
      if (columns.right > columns.last) row[columns.right - columns.left - 1] = 0;
      A* const out = logits[k % kColors];
      for (int64_t j = 0; j < count; ++j) out[j] += row[samples_.step * j + k / kColors];
    }
  }

  // Dot products over the channels, stored as S.
  template <class S>
  void add_interleaved(const Segment<S>& x, const Columns& columns, int64_t first_tap, int64_t count,
                       A* const* logits) const {
    const int64_t padded = maps_[0].padded_channels();
    const S* const zeros = reinterpret_cast<const S*>(zeros_.data());
    with_widest_registers([&](auto width) __attribute__((always_inline)) {
      using Of = Registers<A, decltype(width)::value>;
      constexpr int64_t block = Of::kSums / kColors;
      const int64_t ahead = samples_.step * block * x.pixel_stride;
      for (int64_t j = 0; j < count; j += block) {
        typename Of::Vector sums[block][kColors] = {};
        for (int64_t tap = 0; tap < samples_.taps; ++tap) {
          const S* pixels[block];
          for (int64_t r = 0; r < block; ++r) {
            const int64_t column = columns.left + samples_.step * std::min(j + r, count - 1) + tap;
            const bool exists = columns.first <= column && column < columns.last;
            pixels[r] = exists ? x.data + (column - columns.first) * x.pixel_stride : zeros;
          }
          const A* const weights = &by_product_[(first_tap + tap) * padded];
          for (int64_t c = 0; c < padded; c += Of::kLanes) {
            typename Of::Vector w[kColors];
            for (int64_t color = 0; color < kColors; ++color) w[color] = Of::at(weights + color * kTaps * padded + c);
#pragma GCC unroll 8
            for (int64_t r = 0; r < block; ++r) {
              const typename Of::Vector value = widen_lanes<decltype(width)::value>(pixels[r] + c);
              __builtin_prefetch(pixels[r] + c + ahead);  // samples lie too far apart for the hardware to foresee
#pragma GCC unroll 4
              for (int64_t color = 0; color < kColors; ++color) sums[r][color] += value * w[color];
            }
          }
        }
        for (int64_t r = 0; r < std::min(block, count - j); ++r)
          for (int64_t color = 0; color < kColors; ++color)
            logits[color][j + r] += sum_of_lanes<A, decltype(width)::value>(sums[r][color]);
      }
    });
  }

  const Samples& samples_;
  std::vector<Features<const T>> maps_;
  std::vector<A> bias_, by_channel_, by_product_, zeros_;
};

// The image's samples in row y of all of them.
template <class A>
void sample_row(const Tensor& image, const Samples& samples, int64_t n, int64_t y, A* const* colors) {
  const float scale_y = static_cast<float>(image.size(2)) / static_cast<float>(samples.height);
  const float scale_x = static_cast<float>(image.size(3)) / static_cast<float>(samples.width);
  dispatch_floating(image.scalar_type(), kOp, [&](auto tag) {
    const auto* from = image.const_data_ptr<decltype(tag)>() + n * image.stride(0) +
                       nearest_index(y, scale_y, image.size(2)) * image.stride(2);
    const int64_t width = image.size(3), stride_c = image.stride(1), stride_w = image.stride(3);
    for (int64_t j = 0; j < samples.width; ++j) {
      const auto* pixel = from + nearest_index(j, scale_x, width) * stride_w;
      for (int64_t color = 0; color < kColors; ++color)
        colors[color][j] = static_cast<A>(widen(pixel[color * stride_c]));
    }
  });
}

Tensor sampled_difference_map_cpu(std::vector<Tensor> maps, const Tensor& weight, const Tensor& bias,
                                  const Tensor& image) {
  const Samples samples(kOp, maps, weight, bias, image);
  const ScalarType type = compute_type(image.scalar_type());
  Tensor difference = empty({samples.batch, 1, samples.height, samples.width}, type, image);
  Tensor logits = empty({samples.batch, kColors, samples.height, samples.width}, type, image);
  Tensor sampled = empty({samples.batch, kColors, samples.height, samples.width}, type, image);
  dispatch_floating(maps[0].scalar_type(), kOp, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const SampledConvolution<T> convolution(samples, maps, weight, bias);
    const std::optional<Tensor> everywhere;
    const DifferenceRows rows(logits, sampled, everywhere, difference);
    A* const logit = logits.mutable_data_ptr<A>();
    A* const color = sampled.mutable_data_ptr<A>();
    torch::stable::parallel_for(0, samples.batch * samples.height, 1, [&](int64_t begin, int64_t end) {
      typename SampledConvolution<T>::Scratch scratch;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t n = row / samples.height, y = row % samples.height;
        A *logit_rows[kColors], *color_rows[kColors];
        for (int64_t c = 0; c < kColors; ++c) {
          const int64_t at = ((n * kColors + c) * samples.height + y) * samples.width;
          logit_rows[c] = logit + at;
          color_rows[c] = color + at;
        }
        convolution.write_row(n, y, logit_rows, scratch);
        sample_row(image, samples, n, y, color_rows);
        rows.write(n, y, y + 1);
      }
    });
  });
  return difference;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, CPU, m) { m.impl("sampled_difference_map", TORCH_BOX(&sampled_difference_map_cpu)); }

}  // namespace srtod
