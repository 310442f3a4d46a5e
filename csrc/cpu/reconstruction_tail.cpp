// The tail of the reconstruction on the CPU: output convolution C -> 3, sigmoid, difference map and squared error in
// one pass over the features, and the convolution's gradients in another.
//
// The 3x3 convolution is done as a product and a sum of shifted rows: first every input pixel's 27 products, one for
// each tap and colour, P[27] = W[27, C] x[C]; then logit(y, x) = bias + sum over taps of P_tap(y + dy, x + dx). So a
// feature is loaded once, not nine times, and 3 output channels fill vectors that a convolution by channels leaves
// mostly empty. Backward the same by 27 shifted rows of the logits' gradient: grad x[C] = W[C, 27] G[27], grad W[27, C]
// = sum G[27] x[C].
#include "difference_map.h"
#include "output_convolution.h"
#include "pages.h"

namespace srtod {
namespace {

constexpr const char* kOp = "reconstruction_tail";
constexpr int64_t kTileRows = 32;  // of a task; at its edges two rows more are multiplied

// --- forward -------------------------------------------------------------------------------------

// products[pixel][kPaddedProducts] of pixels whose channels adjoin
template <class A>
void multiply_interleaved(const Segment<A>& x, int64_t channels, int64_t count, const A* weights, A* products) {
  with_widest_registers([&](auto width) __attribute__((always_inline)) {
    using Of = Registers<A, decltype(width)::value>;
    constexpr int vectors = kPaddedProducts / Of::kLanes, pixels = std::max(1, Of::kSums / vectors);
    const auto weight_at = [](int64_t k) { return k * kPaddedProducts; };
    const auto feature_at = [&](int64_t r, int64_t k) __attribute__((always_inline)) { return r * x.pixel_stride + k; };
    int64_t i = 0;
    for (; i + pixels <= count; i += pixels) {
      typename Of::Vector sums[pixels][vectors] = {};
      multiply_add<A, decltype(width)::value>(x.data + i * x.pixel_stride, feature_at, weights, weight_at, channels,
                                              sums);
      for (int r = 0; r < pixels; ++r)
        for (int v = 0; v < vectors; ++v) Of::at(products + (i + r) * kPaddedProducts + v * Of::kLanes) = sums[r][v];
    }
    for (; i < count; ++i) {
      typename Of::Vector sums[1][vectors] = {};
      multiply_add<A, decltype(width)::value>(x.data + i * x.pixel_stride, feature_at, weights, weight_at, channels,
                                              sums);
      for (int v = 0; v < vectors; ++v) Of::at(products + i * kPaddedProducts + v * Of::kLanes) = sums[0][v];
    }
  });
}

// The products of three rows of input pixels, of which the first is at column `begin - 1`.
template <class A>
class Products {
 public:
  Products(bool interleaved, int64_t channels)
      : interleaved_(interleaved),
        size_(interleaved ? kRowLength * kPaddedProducts : kProducts * kRowLength),
        rows_(4 * size_),
        scratch_(channels * kSlack) {}

  template <class T>
  void compute(const Features<T>& features, const A* weights, int64_t n, int64_t y, int64_t begin, int64_t end) {
    A* row = &rows_[y % 3 * size_];
    const int64_t first = std::max<int64_t>(begin - 1, 0), last = std::min(end + 1, features.width);
    const Segment<A> x = features.load(n, y, first, last - first, false, converted_);
    const int64_t step = interleaved_ ? kPaddedProducts : 1, offset = first - (begin - 1);
    if (interleaved_)
      multiply_interleaved(x, features.channels, last - first, weights, row + offset * step);
    else
      multiply_planar<9, 3>(x, features.channels, last - first, weights, row + offset, scratch_.data());
    if (begin == 0) set_zero(row, 0);
    if (end + 1 > last) set_zero(row, end - begin + 1);
  }

  // Logits of row y from the products of the rows y - 1, y, y + 1; those outside the features count as zero.
  void add_up(int64_t y, int64_t height, int64_t count, const A* bias, A* const* logits) const {
    const A* rows[3];
    for (int64_t dy = 0; dy < 3; ++dy)
      rows[dy] = &rows_[(y + dy < 1 || y + dy > height ? 3 : (y + dy - 1) % 3) * size_];
    if (interleaved_) return add_up_interleaved(rows, count, bias, logits);
    for (int64_t color = 0; color < kColors; ++color) {
      const A* taps[kTaps];
      for (int64_t tap = 0; tap < kTaps; ++tap)
        taps[tap] = rows[tap / 3] + (tap * kColors + color) * kRowLength + tap % 3;
      add_up_taps(taps, bias[color], count, logits[color]);
    }
  }

 private:
  void set_zero(A* row, int64_t column) {
    if (interleaved_)
      std::fill_n(row + column * kPaddedProducts, kPaddedProducts, A(0));
    else
      for (int64_t k = 0; k < kProducts; ++k) row[k * kRowLength + column] = 0;
  }

  SRTOD_CLONES static void add_up_taps(const A* const* taps, A bias, int64_t count, A* __restrict out) {
    const A *t0 = taps[0], *t1 = taps[1], *t2 = taps[2], *t3 = taps[3], *t4 = taps[4], *t5 = taps[5], *t6 = taps[6],
            *t7 = taps[7], *t8 = taps[8];
#pragma omp simd simdlen(64 / sizeof(A))
    for (int64_t i = 0; i < count; ++i)
      out[i] = bias + (((t0[i] + t1[i]) + (t2[i] + t3[i])) + ((t4[i] + t5[i]) + (t6[i] + t7[i])) + t8[i]);
  }

  // Three colours and a fourth value that is not used, at once.
  static void add_up_interleaved(const A* const* rows, int64_t count, const A* bias, A* const* logits) {
    using Of = Registers<A, 4 * sizeof(A)>;
    typename Of::Vector start = {bias[0], bias[1], bias[2], A(0)};
    for (int64_t i = 0; i < count; ++i) {
      typename Of::Vector sum = start;
      for (int64_t dy = 0; dy < 3; ++dy)
        for (int64_t dx = 0; dx < 3; ++dx)
          sum += Of::at(rows[dy] + (i + dx) * kPaddedProducts + (dy * 3 + dx) * kColors);
      for (int64_t color = 0; color < kColors; ++color) logits[color][i] = sum[color];
    }
  }

  bool interleaved_;
  int64_t size_;
  std::vector<A> rows_;  // three, by turns, and one of zeros
  std::vector<A> scratch_, converted_;
};

template <class T, class A = compute_t<T>>
void write_logits_and_difference(const Tensor& features, const Tensor& weight, const Tensor& bias, const Tensor& image,
                                 const std::optional<Tensor>& valid_size, Tensor& logits, Tensor& difference,
                                 Tensor& mse) {
  const Features<const T> x = features_of<T>(features);
  const std::vector<A> weights = weights_by_channel<A>(kOp, weight), biases = values_of<A>(kOp, bias);
  const int64_t height = image.size(2), width = image.size(3);
  const int64_t tasks_of_image = divide_up(height, kTileRows), tasks = x.batch * tasks_of_image;
  A* out = logits.mutable_data_ptr<A>();
  const DifferenceRows rows(logits, image, valid_size, difference);
  std::vector<double> squares(tasks);  // partial sums, added up in order
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin_task, int64_t end_task) {
    Products<A> products(x.interleaved, x.channels);
    for (int64_t task = begin_task; task < end_task; ++task) {
      const int64_t n = task / tasks_of_image, top = task % tasks_of_image * kTileRows;
      const int64_t bottom = std::min(top + kTileRows, height);
      for (int64_t begin = 0; begin < width; begin += kTileColumns - 2) {
        const int64_t end = std::min(begin + kTileColumns - 2, width);
        for (int64_t y = std::max<int64_t>(top - 1, 0); y <= bottom; ++y) {  // the input row below output row y - 1
          if (y < x.height) products.compute(x, weights.data(), n, y, begin, end);
          if (y <= top) continue;
          A* colors[kColors];
          for (int64_t color = 0; color < kColors; ++color)
            colors[color] = out + ((n * kColors + color) * height + y - 1) * width + begin;
          products.add_up(y - 1, x.height, end - begin, biases.data(), colors);
        }
      }
      squares[task] = rows.write(n, top, bottom);
    }
  });
  double total = 0;
  for (double s : squares) total += s;
  *mse.mutable_data_ptr<A>() = static_cast<A>(total / static_cast<double>(rows.valid_pixels() * kColors));
}

// --- backward ------------------------------------------------------------------------------------

// The logits' gradient around a tile of pixels, zero outside the image. Row k < 27 of G, index (colour * 3 + dy) * 3 +
// dx, is what reaches a pixel through this tap: the gradient at (y - dy + 1, x - dx + 1).
template <class A>
class ShiftedGradient {
 public:
  ShiftedGradient() : values_(kColors * (kTileRows + 2) * kRowLength) {
    for (int64_t k = 0; k < kProducts; ++k)
      offsets_[k] = k / kTaps * kPlane + (2 - k / 3 % 3) * kRowLength + (2 - k % 3);
  }

  void load(const A* grad, int64_t height, int64_t width, int64_t n, int64_t top, int64_t bottom, int64_t left,
            int64_t right) {
    for (int64_t color = 0; color < kColors; ++color)
      for (int64_t y = top - 1; y <= bottom; ++y) {
        A* to = &values_[color * kPlane + (y - (top - 1)) * kRowLength];
        std::fill_n(to, kRowLength, A(0));
        const int64_t begin = std::max<int64_t>(left - 1, 0), end = std::min(right + 1, width);
        if (y < 0 || y >= height || begin >= end) continue;
        std::copy_n(grad + ((n * kColors + color) * height + y) * width + begin, end - begin, to + begin - (left - 1));
      }
  }

  const A* row(int64_t row) const { return &values_[row * kRowLength]; }
  const int64_t* offsets() const { return offsets_; }

 private:
  static constexpr int64_t kPlane = (kTileRows + 2) * kRowLength;
  std::vector<A> values_;
  int64_t offsets_[kProducts];
};

// grad[c][i] = sum_k weights[k][c] * g[offsets[k] + i] for `count` pixels; rows of grad are `stride` apart, and may be
// written up to the end of a block.
template <class A>
void transpose_planar(const A* weights, int64_t channels, int64_t padded, const A* g, const int64_t* offsets,
                      int64_t count, A* grad) {
  with_widest_registers([&](auto width) __attribute__((always_inline)) {
    using Of = Registers<A, decltype(width)::value>;
    constexpr int rows = 8;  // divides kChannelBlock: weights of channels past the last are zero
    constexpr int64_t block = Of::kMany * Of::kLanes;
    for (int64_t i = 0; i < count; i += block)
      for (int64_t c = 0; c < channels; c += rows) {
        typename Of::Vector sums[rows][Of::kMany] = {};
        multiply_add<A, decltype(width)::value>(
            weights + c, [&](int64_t r, int64_t k) __attribute__((always_inline)) { return k * padded + r; }, g + i,
            [&](int64_t k) __attribute__((always_inline)) { return offsets[k]; }, kProducts, sums);
        for (int64_t r = 0; r < rows; ++r)
          for (int v = 0; v < Of::kMany; ++v) Of::at(grad + (c + r) * kRowLength + i + v * Of::kLanes) = sums[r][v];
      }
  });
}

// grad[i][c], pixels `padded` apart
template <class A>
void transpose_interleaved(const A* weights, int64_t padded, const A* g, const int64_t* offsets, int64_t count,
                           A* grad) {
  with_widest_registers([&](auto width) __attribute__((always_inline)) {
    using Of = Registers<A, decltype(width)::value>;
    constexpr int vectors = decltype(width)::value == 64 ? 2 : 1, pixels = Of::kSums / vectors;
    const auto weight_at = [&](int64_t k) __attribute__((always_inline)) { return k * padded; };
    const auto grad_at = [&](int64_t r, int64_t k) __attribute__((always_inline)) { return offsets[k] + r; };
    for (int64_t i = 0; i < count; i += pixels)  // kSlack pixels past the end may be read and written
      for (int64_t c = 0; c < padded; c += vectors * Of::kLanes) {
        typename Of::Vector sums[pixels][vectors] = {};
        multiply_add<A, decltype(width)::value>(g + i, grad_at, weights + c, weight_at, kProducts, sums);
        for (int r = 0; r < pixels; ++r)
          for (int v = 0; v < vectors; ++v) Of::at(grad + (i + r) * padded + c + v * Of::kLanes) = sums[r][v];
      }
  });
}

// sums[k][c] += sum over rows y and pixels i of g[y * kRowLength + offsets[k] + i] * x[c][y][i], each kSumLanes partial
// sums, for kSumChannels channels of rows whose pixels adjoin. `count` is a multiple of kSumLanes. Blocks are of three
// taps and many channels, because a tap's vectors begin anywhere, which makes most of their loads span two cache lines.
constexpr int64_t kSumLanes = 16;
constexpr int64_t kSumChannels = 8;
constexpr int64_t kSumRows = 4;  // so many rows of these channels fit the first-level cache

template <class A>
void correlate_planar(const A* const (*x)[kTileRows], int64_t begin, int64_t end, const A* g, const int64_t* offsets,
                      int64_t count, A (*sums)[kSumChannels][kSumLanes]) {
  with_widest_registers([&](auto width) __attribute__((always_inline)) {
    using Of = Registers<A, decltype(width)::value>;
    constexpr int taps = 3, group = Of::kSums / taps;
    for (int64_t c = 0; c < kSumChannels; c += group)
      for (int64_t first = 0; first < kProducts; first += taps) {
        typename Of::Vector block[taps][group];
#pragma GCC unroll 4
        for (int r = 0; r < taps; ++r)
#pragma GCC unroll 8
          for (int k = 0; k < group; ++k) block[r][k] = Of::at(sums[first + r][c + k]);
        for (int64_t y = begin; y < end; ++y) {
          const A* const around = g + y * kRowLength;
          for (int64_t i = 0; i < count; i += Of::kLanes) {
            typename Of::Vector of_tap[taps];
#pragma GCC unroll 4
            for (int r = 0; r < taps; ++r) of_tap[r] = Of::at(around + offsets[first + r] + i);
#pragma GCC unroll 8
            for (int k = 0; k < group; ++k) {
              const typename Of::Vector value = Of::at(x[c + k][y] + i);
#pragma GCC unroll 4
              for (int r = 0; r < taps; ++r) block[r][k] += of_tap[r] * value;
            }
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < taps; ++r)
#pragma GCC unroll 8
          for (int k = 0; k < group; ++k) Of::at(sums[first + r][c + k]) = block[r][k];
      }
  });
}

// sums[k][c] += sum_i g[offsets[k] + i] * x[i][c]
template <class A>
void correlate_interleaved(const Segment<A>& x, int64_t padded, const A* g, const int64_t* offsets, int64_t count,
                           A* sums) {
  with_widest_registers([&](auto width) __attribute__((always_inline)) {
    using Of = Registers<A, decltype(width)::value>;
    constexpr int vectors = decltype(width)::value == 64 ? 2 : 1;
    for (int64_t first = 0; first < kProducts; first += kTaps)
      for (int64_t c = 0; c < padded; c += vectors * Of::kLanes) {
        typename Of::Vector block[kTaps][vectors];
        A* const of_block = sums + first * padded + c;
#pragma GCC unroll 16
        for (int64_t r = 0; r < kTaps; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v) block[r][v] = Of::at(of_block + r * padded + v * Of::kLanes);
        multiply_add<A, decltype(width)::value>(
            g, [&](int64_t r, int64_t k) __attribute__((always_inline)) { return offsets[first + r] + k; }, x.data + c,
            [&](int64_t k) __attribute__((always_inline)) { return k * x.pixel_stride; }, count, block);
#pragma GCC unroll 16
        for (int64_t r = 0; r < kTaps; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v) Of::at(of_block + r * padded + v * Of::kLanes) = block[r][v];
      }
  });
}

// One tile's part of the weights' gradient [27][padded channels], added to `sums`.
template <class T, class A = compute_t<T>>
void add_weight_gradient(const Features<const T>& x, const ShiftedGradient<A>& g, int64_t n, int64_t top,
                         int64_t bottom, int64_t left, int64_t right, std::vector<A>& scratch, A* sums) {
  const int64_t count = right - left, padded = x.padded_channels();
  if (x.interleaved) {
    for (int64_t y = top; y < bottom; ++y) {
      const Segment<A> row = x.load(n, y, left, count, true, scratch);
      correlate_interleaved(row, padded, g.row(y - top), g.offsets(), count, sums);
    }
    return;
  }
  const int64_t whole = divide_up(count, kSumLanes) * kSumLanes;
  scratch.resize(kSumChannels * kTileRows * kTileColumns);
  for (int64_t c = 0; c < x.channels; c += kSumChannels) {
    const A* rows[kSumChannels][kTileRows];
    for (int64_t k = 0; k < kSumChannels; ++k)
      for (int64_t y = top; y < bottom; ++y) {
        const T* from = x.at(n, y, left) + std::min(c + k, x.channels - 1) * x.stride_c;
        A* const converted = &scratch[(k * kTileRows + y - top) * kTileColumns];
        rows[k][y - top] = converted;
        if (std::is_same_v<T, A> && x.stride_w == 1 && whole == count) {
          rows[k][y - top] = load_row(from, 1, count, converted);
          continue;
        }
        widen_row(from, x.stride_w, count, converted);
        std::fill_n(converted + count, whole - count, A(0));
      }
    A partial[kProducts][kSumChannels][kSumLanes] = {};
    for (int64_t y = 0; y < bottom - top; y += kSumRows)
      correlate_planar(rows, y, std::min(y + kSumRows, bottom - top), g.row(0), g.offsets(), whole, partial);
    for (int64_t k = 0; k < kProducts; ++k)
      for (int64_t j = 0; j < std::min(kSumChannels, x.channels - c); ++j)
        for (const A sum : partial[k][j]) sums[k * padded + c + j] += sum;
  }
}

template <class T, class A = compute_t<T>>
void write_feature_gradient(const Features<T>& out, const A* weights, const ShiftedGradient<A>& g, int64_t n,
                            int64_t top, int64_t bottom, int64_t left, int64_t right, std::vector<A>& scratch) {
  const int64_t count = right - left, padded = out.padded_channels();
  scratch.resize(kRowLength * padded);
  for (int64_t y = top; y < bottom; ++y) {
    if (out.interleaved) {
      transpose_interleaved(weights, padded, g.row(y - top), g.offsets(), count, scratch.data());
      for (int64_t i = 0; i < count; ++i) narrow_row(&scratch[i * padded], out.channels, out.at(n, y, left + i));
      continue;
    }
    transpose_planar(weights, out.channels, padded, g.row(y - top), g.offsets(), count, scratch.data());
    for (int64_t c = 0; c < out.channels; ++c)
      narrow_row(&scratch[c * kRowLength], count, out.at(n, y, left) + c * out.stride_c);
  }
}

template <class T, class A = compute_t<T>>
void write_gradients(const Tensor& grad_logits, const Tensor& features, const Tensor& weight, Tensor* grad_features,
                     Tensor* grad_weight) {
  const Features<const T> x = features_of<T>(features);
  const int64_t height = grad_logits.size(2), width = grad_logits.size(3), padded = x.padded_channels();
  const A* grad = grad_logits.const_data_ptr<A>();
  const std::vector<A> weights = weights_by_product<A>(kOp, weight, padded);
  const int64_t tasks_of_image = divide_up(x.height, kTileRows), tasks = x.batch * tasks_of_image;
  const int64_t sums_of_task = grad_weight ? kProducts * padded : 0;
  std::vector<A> sums(tasks * sums_of_task);  // added up in order
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin_task, int64_t end_task) {
    ShiftedGradient<A> g;
    std::vector<A> scratch;
    for (int64_t task = begin_task; task < end_task; ++task) {
      const int64_t n = task / tasks_of_image, top = task % tasks_of_image * kTileRows;
      const int64_t bottom = std::min(top + kTileRows, x.height);
      for (int64_t left = 0; left < x.width; left += kTileColumns) {
        const int64_t right = std::min(left + kTileColumns, x.width);
        g.load(grad, height, width, n, top, bottom, left, right);
        if (grad_weight) add_weight_gradient<T>(x, g, n, top, bottom, left, right, scratch, &sums[task * sums_of_task]);
        if (grad_features)
          write_feature_gradient<T>(Features<T>(*grad_features, grad_features->mutable_data_ptr<T>()), weights.data(),
                                    g, n, top, bottom, left, right, scratch);
      }
    }
  });
  if (!grad_weight) return;
  std::vector<double> total(kProducts * padded);
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t k = 0; k < sums_of_task; ++k) total[k] += static_cast<double>(sums[task * sums_of_task + k]);
  dispatch_floating(weight.scalar_type(), kOp, [&](auto tag) {
    using W = decltype(tag);
    W* out = grad_weight->mutable_data_ptr<W>();
    for (int64_t k = 0; k < kProducts; ++k)
      for (int64_t c = 0; c < x.channels; ++c)
        narrow(static_cast<compute_t<W>>(total[k * padded + c]), out[(k / kTaps * x.channels + c) * kTaps + k % kTaps]);
  });
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_tail_cpu(const Tensor& features, const Tensor& weight,
                                                           const Tensor& bias, const Tensor& image,
                                                           std::optional<Tensor> valid_size) {
  check_tail(kOp, features, weight, &bias);
  check_tail_image(kOp, features, image, valid_size);
  Tensor difference = empty({image.size(0), 1, image.size(2), image.size(3)}, image.scalar_type(), image);
  Tensor mse = empty({}, compute_type(features.scalar_type()), image);
  Tensor logits = empty({image.size(0), kColors, image.size(2), image.size(3)}, mse.scalar_type(), image);
  use_huge_pages(logits);
  dispatch_floating(features.scalar_type(), kOp, [&](auto tag) {
    write_logits_and_difference<decltype(tag)>(features, weight, bias, image, valid_size, logits, difference, mse);
  });
  return {difference, mse, logits};
}

std::tuple<Tensor, Tensor> output_convolution_backward_cpu(const Tensor& grad_logits, const Tensor& features,
                                                           const Tensor& weight, bool features_grad, bool weight_grad) {
  check_tail(kOp, features, weight, nullptr);
  check_tail_gradient(kOp, grad_logits, features);
  const Tensor grad = in_format(grad_logits, MemoryFormat::Contiguous);
  Tensor grad_features = features_grad ? empty({features.size(0), features.size(1), features.size(2), features.size(3)},
                                               features.scalar_type(), features, memory_format_of(features))
                                       : empty({0}, features.scalar_type(), features);
  Tensor grad_weight = weight_grad ? empty({kColors, weight.size(1), 3, 3}, weight.scalar_type(), weight)
                                   : empty({0}, weight.scalar_type(), weight);
  use_huge_pages(grad_features);
  dispatch_floating(features.scalar_type(), kOp, [&](auto tag) {
    write_gradients<decltype(tag)>(grad, features, weight, features_grad ? &grad_features : nullptr,
                                   weight_grad ? &grad_weight : nullptr);
  });
  return {grad_features, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, CPU, m) {
  m.impl("reconstruction_tail", TORCH_BOX(&reconstruction_tail_cpu));
  m.impl("_output_convolution_backward", TORCH_BOX(&output_convolution_backward_cpu));
}

}  // namespace srtod
