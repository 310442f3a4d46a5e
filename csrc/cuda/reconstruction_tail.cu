// The tail of the reconstruction: output convolution C -> 3, sigmoid, difference map and squared error in one pass over
// the features, and the convolution's gradients.
//
// The 3x3 convolution is done as a product and a sum of shifted values, as on the CPU: of every input pixel the 27
// products of its C features with the weights of 9 taps and 3 colours, which go to shared memory; then an output pixel
// adds up those of its 9 neighbours. So a feature is loaded once for a tile, straight into registers.
#include "images.cuh"
#include "output_convolution.cuh"
#include "tensor_cores.cuh"

namespace srtod {
namespace {

constexpr const char* kOp = "reconstruction_tail";
constexpr uint32_t kPaddedProducts = 28;  // a multiple of 16 bytes
constexpr uint32_t kChunk = 32;           // channels whose weights are in shared memory at once

// A tile of pixels: two rows of each warp, a column of each lane. Outputs are the inner pixels.
constexpr uint32_t kTileRows = 2 * kWarps, kTileColumns = 32, kTilePixels = kTileRows * kTileColumns;
constexpr uint32_t kOutputRows = kTileRows - 2, kOutputColumns = kTileColumns - 2;
constexpr uint32_t kOutputsOfThread = (kOutputRows * kOutputColumns + kThreads - 1) / kThreads;
// Products of one tap. Four words more than a multiple of 32: then the lanes of a tensor core's sums, 8 pixels by every
// other of 8 taps, store to different banks.
constexpr uint32_t kTapStride = kTilePixels + 4;

// Sums take most registers; float64 is not for speed.
template <class A>
constexpr int kBlocks = sizeof(A) == 8 ? 1 : kBlocksPerMultiprocessor;

// A tile of image n: its first row and column, which may be -1.
struct Tile {
  int64_t n;
  int32_t top, left;

  __device__ __forceinline__ Tile(uint32_t index, uint32_t rows, uint32_t columns, uint32_t step_y, uint32_t step_x,
                                  int32_t margin)
      : n(index / columns / rows),
        top(static_cast<int32_t>(index / columns % rows * step_y) - margin),
        left(static_cast<int32_t>(index % columns * step_x) - margin) {}
};

// The weights [3, C, 3, 3] of channels [first, first + kChunk) as [channel][kPaddedProducts], zero past the last.
// `by_tap`: products in the order tap, colour; else colour, tap.
template <class A>
__device__ __forceinline__ void load_weights(const AnyFloat& weight, uint32_t channels, uint32_t first, bool by_tap,
                                             A (*out)[kPaddedProducts]) {
  for (uint32_t i = threadIdx.x; i < kChunk * kPaddedProducts; i += kThreads) {
    const uint32_t c = first + i / kPaddedProducts, k = i % kPaddedProducts;
    const uint32_t color = by_tap ? k % kColors : k / kTaps, tap = by_tap ? k / kColors : k % kTaps;
    const bool exists = c < channels && k < kProducts;
    out[i / kPaddedProducts][k] = exists ? weight.at<A>(weight_index(color, channels, c, tap)) : A(0);
  }
}

// What both forward kernels do with the logits.
template <class A>
struct Results {
  AnyFloat bias;
  Images<Typed<A>, AnyFloat> images;  // of the logits, which are written first
  A* logits;
  AnyFloatOut difference;
  double* partial;
  int32_t* counter;
  A* mse;
  uint32_t rows, columns;  // of tiles

  // Adds up the products of a tile, colour by colour, and writes the results. `put(colour, products)` stores a thread's
  // products of that colour as [tap][row * kTileColumns + column].
  template <class Put>
  __device__ __forceinline__ void write(const Tile& tile, A* products, double* scratch, const Put& put) const {
    A sums[kOutputsOfThread][kColors];
#pragma unroll
    for (uint32_t color = 0; color < kColors; ++color) {
      __syncthreads();
      put(color, products);
      __syncthreads();
#pragma unroll
      for (uint32_t k = 0; k < kOutputsOfThread; ++k) {
        const uint32_t output = k * kThreads + threadIdx.x;
        A sum = bias.at<A>(color);
        if (output < kOutputRows * kOutputColumns) {
          const uint32_t first = output / kOutputColumns * kTileColumns + output % kOutputColumns;
#pragma unroll
          for (uint32_t tap = 0; tap < kTaps; ++tap)
            sum += products[tap * kTapStride + first + tap / 3 * kTileColumns + tap % 3];
        }
        sums[k][color] = sum;
      }
    }
    A squares = 0;
#pragma unroll
    for (uint32_t k = 0; k < kOutputsOfThread; ++k) {
      const uint32_t output = k * kThreads + threadIdx.x;
      const uint32_t y = tile.top + 1 + output / kOutputColumns, x = tile.left + 1 + output % kOutputColumns;
      if (output >= kOutputRows * kOutputColumns || y >= images.height || x >= images.width) continue;
      const int64_t pixels = images.pixels(), at = static_cast<int64_t>(y) * images.width + x;
#pragma unroll
      for (uint32_t color = 0; color < kColors; ++color)
        logits[(tile.n * kColors + color) * pixels + at] = sums[k][color];
      A of_pixel = 0;
      difference.set(tile.n * pixels + at, images.template difference<A>(sums[k], tile.n, y, x, of_pixel));
      if (images.is_valid(tile.n, y, x)) squares += of_pixel;
    }
    const double block_squares = block_sum(static_cast<double>(squares), scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = block_squares;
    if (is_last_block(counter, gridDim.x)) finish_error(partial, gridDim.x, images, scratch, mse);
  }
};

// An empty batch still has one block, whose mean over nothing is NaN, as PyTorch's.
template <class A>
__device__ __forceinline__ bool is_empty(const Results<A>& results) {
  if (results.images.batch > 0) return false;
  if (threadIdx.x == 0) *results.mse = static_cast<A>(NAN);
  return true;
}

// Any type and layout, without tensor cores. `wide`: see FeatureMap.
template <class T, bool wide>
__global__ void __launch_bounds__(kThreads, kBlocks<compute_t<T>>)
    forward_kernel(FeatureMap<const T> x, AnyFloat weight, Results<compute_t<T>> results) {
  using A = compute_t<T>;
  SRTOD_SHARED(A, weights, [kChunk][kPaddedProducts]);
  SRTOD_SHARED(A, products, [kTaps * kTapStride]);
  SRTOD_SHARED(double, scratch, [kWarps]);
  if (is_empty(results)) return;
  const Tile tile(blockIdx.x, results.rows, results.columns, kOutputRows, kOutputColumns, 1);
  const uint32_t row = threadIdx.x / kTileColumns, column = threadIdx.x % kTileColumns;
  constexpr uint32_t step = wide ? kWidth<T> : 4;
  const T* from[2];
  A sums[2][kProducts] = {};
#pragma unroll
  for (uint32_t p = 0; p < 2; ++p) {
    const int32_t iy = tile.top + row + p * kWarps, ix = tile.left + column;
    from[p] = x.has(iy, ix) ? x.data + x.strides.at(tile.n, iy, ix) : nullptr;
  }
  for (uint32_t first = 0; first < x.channels; first += kChunk) {
    __syncthreads();
    load_weights(weight, x.channels, first, true, weights);
    __syncthreads();
    const uint32_t end = minimum(kChunk, x.channels - first);
    for (uint32_t c = 0; c < end; c += step) {
      T values[2][step];
#pragma unroll
      for (uint32_t p = 0; p < 2; ++p) {
        if constexpr (wide) {
          const Vector<T> v = load(from[p] + first + c, true, from[p] == nullptr ? 0 : step);
#pragma unroll
          for (uint32_t i = 0; i < step; ++i) values[p][i] = v.values[i];
        } else {
#pragma unroll
          for (uint32_t i = 0; i < step; ++i)
            values[p][i] = from[p] != nullptr && c + i < end ? from[p][(first + c + i) * x.strides.c] : T(0);
        }
      }
#pragma unroll
      for (uint32_t i = 0; i < step; ++i)
#pragma unroll
        for (uint32_t k = 0; k < kProducts; ++k) {
          const A w = weights[c + i][k];
          sums[0][k] += w * static_cast<A>(values[0][i]);
          sums[1][k] += w * static_cast<A>(values[1][i]);
        }
    }
  }
  results.write(tile, products, scratch, [&](uint32_t color, A* out) {
#pragma unroll
    for (uint32_t p = 0; p < 2; ++p)
#pragma unroll
      for (uint32_t tap = 0; tap < kTaps; ++tap)
        out[tap * kTapStride + (row + p * kWarps) * kTileColumns + column] = sums[p][tap * kColors + color];
  });
}

constexpr uint32_t kMostChannels = 64;                  // on tensor cores, and a multiple of 32
constexpr uint32_t kWeightStride = kMostChannels + 32;  // elements: lanes that load 16 bytes meet different banks

// Half precision in channels_last on tensor cores. A weight counts as the sum of two half-precision numbers, so that
// float32 weights lose nothing that matters; features are exact. Of a row of 32 channels a lane loads 8 neighbours,
// 16 bytes: which channel is called which row of B is free.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    forward_tensor_kernel(FeatureMap<const T> x, AnyFloat weight, Results<float> results) {
  SRTOD_SHARED(Vector<T>, weights, [2][32 * kWeightStride / 8]);  // [high or low][product][channel]
  SRTOD_SHARED(float, products, [kTaps * kTapStride]);
  SRTOD_SHARED(double, scratch, [kWarps]);
  if (is_empty(results)) return;
  for (uint32_t i = threadIdx.x; i < 32 * x.channels; i += kThreads) {
    const uint32_t product = i / x.channels, c = i % x.channels;
    float value = 0;
    if (product < kProducts) value = weight.at<float>(weight_index(product / kTaps, x.channels, c, product % kTaps));
    const T high = static_cast<T>(value);
    const uint32_t at = product * kWeightStride + c;
    weights[0][at / 8].values[at % 8] = high;
    weights[1][at / 8].values[at % 8] = static_cast<T>(value - static_cast<float>(high));
  }
  __syncthreads();
  const Tile tile(blockIdx.x, results.rows, results.columns, kOutputRows, kOutputColumns, 1);
  const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  float sums[2][2][4][4] = {};  // [row of the warp][half of the row][8 products][see tensor_cores.cuh]
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {  // a row's half of 16 pixels: more at once would spill registers
    const uint32_t p = i / 2, h = i % 2;
    const int32_t iy = tile.top + warp + p * kWarps, ix = tile.left + 16 * h + g;
    for (uint32_t c = 0; c < x.channels; c += 32) {
      Vector<T> values[2];  // of pixels g and g + 8
#pragma unroll
      for (uint32_t k = 0; k < 2; ++k) {
        const bool exists = x.has(iy, ix + 8 * k);
        const T* from = x.data + (exists ? x.strides.at(tile.n, iy, ix + 8 * k) + c + 8 * t : 0);
        values[k] = load(from, true, exists ? 8 : 0);
      }
      uint32_t a[2][4];  // [16 of the 32 channels]
#pragma unroll
      for (uint32_t s = 0; s < 2; ++s)
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) memcpy(&a[s][k], &values[k % 2].values[4 * s + k / 2 * 2], 4);
#pragma unroll
      for (uint32_t part = 0; part < 2; ++part)
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) {
          const Vector<T> w = weights[part][((8 * j + g) * kWeightStride + c) / 8 + t];
#pragma unroll
          for (uint32_t s = 0; s < 2; ++s) {
            uint32_t b[2];
            memcpy(b, &w.values[4 * s], 8);
            multiply_add_16x8x16<T>(sums[p][h][j], a[s], b);
          }
        }
    }
  }
  results.write(tile, products, scratch, [&](uint32_t color, float* out) {
#pragma unroll
    for (uint32_t p = 0; p < 2; ++p)
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j)
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
          const uint32_t tap = 8 * j + 2 * t + i % 2 - color * kTaps;  // wraps below the colour's first
          if (tap >= kTaps) continue;
#pragma unroll
          for (uint32_t h = 0; h < 2; ++h)
            out[tap * kTapStride + (warp + p * kWarps) * kTileColumns + 16 * h + g + i / 2 * 8] = sums[p][h][j][i];
        }
  });
}

// --- backward ------------------------------------------------------------------------------------

// The logits' gradient around a tile, zero outside the image, in shared memory [colour][row][column].
constexpr uint32_t kGradientRows = kTileRows + 2, kGradientStride = kTileColumns + 3;

template <class A>
struct LogitGradient {
  const A* data;  // [N, 3, height, width], contiguous
  uint32_t height, width;

  __device__ __forceinline__ void load(const Tile& tile, A (*out)[kGradientRows][kGradientStride]) const {
    constexpr uint32_t columns = kTileColumns + 2;
    for (uint32_t i = threadIdx.x; i < kColors * kGradientRows * columns; i += kThreads) {
      const uint32_t color = i / columns / kGradientRows, row = i / columns % kGradientRows, column = i % columns;
      const uint32_t y = tile.top + row - 1, x = tile.left + column - 1;  // wrap where they are negative
      const bool exists = y < height && x < width;
      out[color][row][column] =
          exists ? data[((tile.n * kColors + color) * height + y) * static_cast<int64_t>(width) + x] : A(0);
    }
  }
};

// grad x[c](y, x) = sum over colours and taps of w[colour][c][dy][dx] * grad logit[colour](y - dy + 1, x - dx + 1)
template <class T, bool wide>
__global__ void __launch_bounds__(kThreads, kBlocks<compute_t<T>>)
    features_kernel(LogitGradient<compute_t<T>> grad, AnyFloat weight, FeatureMap<T> out, uint32_t rows,
                    uint32_t columns) {
  using A = compute_t<T>;
  SRTOD_SHARED(A, weights, [kChunk][kPaddedProducts]);
  SRTOD_SHARED(A, around, [kColors][kGradientRows][kGradientStride]);
  const Tile tile(blockIdx.x, rows, columns, kTileRows, kTileColumns, 0);
  const uint32_t row = threadIdx.x / kTileColumns, column = threadIdx.x % kTileColumns;
  constexpr uint32_t step = wide ? kWidth<T> : 1;
  grad.load(tile, around);
  __syncthreads();
  A g[2][kProducts];
  T* to[2];
#pragma unroll
  for (uint32_t p = 0; p < 2; ++p) {
    const uint32_t y = row + p * kWarps;
#pragma unroll
    for (uint32_t k = 0; k < kProducts; ++k) g[p][k] = around[k / kTaps][y + 2 - k / 3 % 3][column + 2 - k % 3];
    const int32_t oy = tile.top + y, ox = tile.left + column;
    to[p] = out.has(oy, ox) ? out.data + out.strides.at(tile.n, oy, ox) : nullptr;
  }
  for (uint32_t first = 0; first < out.channels; first += kChunk) {
    __syncthreads();
    load_weights(weight, out.channels, first, false, weights);
    __syncthreads();
    const uint32_t end = minimum(kChunk, out.channels - first);
    for (uint32_t c = 0; c < end; c += step) {
      Vector<T> values[2];
#pragma unroll
      for (uint32_t i = 0; i < step; ++i) {
        A sums[2] = {};
#pragma unroll
        for (uint32_t k = 0; k < kProducts; ++k) {
          const A w = weights[c + i][k];
          sums[0] += w * g[0][k];
          sums[1] += w * g[1][k];
        }
        values[0].values[i] = static_cast<T>(sums[0]);
        values[1].values[i] = static_cast<T>(sums[1]);
      }
#pragma unroll
      for (uint32_t p = 0; p < 2; ++p) {
        if (to[p] == nullptr) continue;
        if constexpr (wide)
          store(values[p], to[p] + first + c, true, step);
        else
          to[p][(first + c) * out.strides.c] = values[p].values[0];
      }
    }
  }
}

// grad w[colour][c][dy][dx] = sum over pixels of x[c](y, x) * grad logit[colour](y - dy + 1, x - dx + 1). A lane has
// two channels, 32 apart, a warp two rows of each tile; the gradient's 3 by 3 values of a pixel move along the row with
// it.
constexpr uint32_t kStripColumns = 30;  // a multiple of 3: then what moves along stays in the same registers
constexpr uint32_t kChannelsOfBlock = 64;

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<compute_t<T>>)
    weights_kernel(LogitGradient<compute_t<T>> grad, FeatureMap<const T> x, uint32_t rows, uint32_t columns,
                   uint32_t tiles, uint32_t blocks, compute_t<T>* partial) {
  using A = compute_t<T>;
  SRTOD_SHARED(A, around, [kColors][kGradientRows][kGradientStride]);
  SRTOD_SHARED(A, of_warps, [kWarps][kChannelsOfBlock]);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t block = blockIdx.x % blocks, first = blockIdx.x / blocks * kChannelsOfBlock;
  const bool exists[2] = {first + lane < x.channels, first + lane + 32 < x.channels};
  A sums[2][kProducts] = {};
  for (uint32_t index = block; index < tiles; index += blocks) {
    const Tile tile(index, rows, columns, kTileRows, kStripColumns, 0);
    __syncthreads();
    grad.load(tile, around);
    __syncthreads();
    for (uint32_t p = 0; p < 2; ++p) {
      const uint32_t row = warp + p * kWarps;
      const int32_t y = tile.top + row;
      if (!x.has(y, tile.left)) continue;
      const uint32_t count = minimum(kStripColumns, x.width - tile.left);
      const T* from = x.data + x.strides.at(tile.n, y, tile.left) + (first + lane) * x.strides.c;
      A g[kColors * 3][3];  // [colour, dy][column modulo 3]
#pragma unroll
      for (uint32_t k = 0; k < kColors * 3; ++k)
#pragma unroll
        for (uint32_t j = 0; j < 2; ++j) g[k][j] = around[k / 3][row + 2 - k % 3][j];
      for (uint32_t i = 0; i < count; i += 3) {
        T values[3][2];
#pragma unroll
        for (uint32_t j = 0; j < 3; ++j)
#pragma unroll
          for (uint32_t h = 0; h < 2; ++h)
            values[j][h] = i + j < count && exists[h] ? from[(i + j) * x.strides.w + 32 * h * x.strides.c] : T(0);
#pragma unroll
        for (uint32_t j = 0; j < 3; ++j) {
#pragma unroll
          for (uint32_t k = 0; k < kColors * 3; ++k) g[k][(j + 2) % 3] = around[k / 3][row + 2 - k % 3][i + j + 2];
#pragma unroll
          for (uint32_t h = 0; h < 2; ++h)
#pragma unroll
            for (uint32_t k = 0; k < kProducts; ++k)
              sums[h][k] += static_cast<A>(values[j][h]) * g[k / 3][(j + 2 - k % 3) % 3];
        }
      }
    }
  }
#pragma unroll
  for (uint32_t k = 0; k < kProducts; ++k) {
    __syncthreads();
    of_warps[warp][lane] = sums[0][k];
    of_warps[warp][lane + 32] = sums[1][k];
    __syncthreads();
    if (threadIdx.x >= kChannelsOfBlock || first + threadIdx.x >= x.channels) continue;
    A sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += of_warps[w][threadIdx.x];
    partial[(block * kProducts + k) * static_cast<int64_t>(x.channels) + first + threadIdx.x] = sum;
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    add_weights_kernel(const A* partial, uint32_t blocks, uint32_t channels, AnyFloatOut grad_weight) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x, count = kProducts * channels;
  if (i >= count) return;
  double sum = 0;
  for (uint32_t block = 0; block < blocks; ++block) sum += partial[static_cast<int64_t>(block) * count + i];
  const uint32_t k = i / channels, c = i % channels;
  grad_weight.set(weight_index(k / kTaps, channels, c, k % kTaps), static_cast<A>(sum));
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_tail_cuda(const Tensor& features, const Tensor& weight_tensor,
                                                            const Tensor& bias_tensor, const Tensor& image,
                                                            std::optional<Tensor> valid) {
  check_tail(kOp, features, weight_tensor, &bias_tensor);
  check_tail_image(kOp, features, image, valid);
  const OnDevice device(features);
  const cudaStream_t stream = device.stream();
  const std::optional<Tensor> valid_size = contiguous(valid);
  const Tensor weight = in_format(weight_tensor, MemoryFormat::Contiguous);
  const Tensor bias = in_format(bias_tensor, MemoryFormat::Contiguous);
  const int64_t batch = image.size(0), height = image.size(2), width = image.size(3);
  Tensor difference = empty({batch, 1, height, width}, image.scalar_type(), image);
  Tensor mse = empty({}, compute_type(features.scalar_type()), image);
  Tensor logits = empty({batch, kColors, height, width}, mse.scalar_type(), image);
  const int64_t rows = divide_up(height, kOutputRows), columns = divide_up(width, kOutputColumns);
  const int64_t blocks = std::max<int64_t>(1, batch * rows * columns);
  Tensor partial = empty({blocks}, ScalarType::Double, image);
  Tensor counter = zero_counters(1, image, stream);
  dispatch_floating(features.scalar_type(), kOp, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    A* const out = logits.mutable_data_ptr<A>();
    const Images<Typed<A>, AnyFloat> images(kOp, logits, image, {out}, AnyFloat(image), true, valid_size);
    const Results<A> results{AnyFloat(bias),
                             images,
                             out,
                             AnyFloatOut(difference),
                             partial.mutable_data_ptr<double>(),
                             counter.mutable_data_ptr<int32_t>(),
                             mse.mutable_data_ptr<A>(),
                             static_cast<uint32_t>(rows),
                             static_cast<uint32_t>(columns)};
    const FeatureMap<const T> x(kOp, features, features.const_data_ptr<T>());
    if constexpr (sizeof(T) == 2) {
      if (x.is_wide() && x.channels % 32 == 0 && x.channels <= kMostChannels) {
        SRTOD_LAUNCH(forward_tensor_kernel<T>, grid_of(blocks), stream, x, AnyFloat(weight), results);
        return;
      }
    }
    if (x.is_wide())
      SRTOD_LAUNCH((forward_kernel<T, true>), grid_of(blocks), stream, x, AnyFloat(weight), results);
    else
      SRTOD_LAUNCH((forward_kernel<T, false>), grid_of(blocks), stream, x, AnyFloat(weight), results);
  });
  return {difference, mse, logits};
}

std::tuple<Tensor, Tensor> output_convolution_backward_cuda(const Tensor& grad_logits, const Tensor& features,
                                                            const Tensor& weight_tensor, bool features_grad,
                                                            bool weight_grad) {
  check_tail(kOp, features, weight_tensor, nullptr);
  check_tail_gradient(kOp, grad_logits, features);
  const OnDevice device(features);
  const cudaStream_t stream = device.stream();
  const Tensor grad_tensor = in_format(grad_logits, MemoryFormat::Contiguous);
  const Tensor weight = in_format(weight_tensor, MemoryFormat::Contiguous);
  const int64_t batch = features.size(0), channels = features.size(1);
  const int64_t height = features.size(2), width = features.size(3);
  Tensor grad_features = features_grad ? empty({batch, channels, height, width}, features.scalar_type(), features,
                                               memory_format_of(features))
                                       : empty({0}, features.scalar_type(), features);
  Tensor grad_weight = weight_grad ? empty({kColors, channels, 3, 3}, weight.scalar_type(), weight)
                                   : empty({0}, weight.scalar_type(), weight);
  const int64_t rows = divide_up(height, kTileRows);
  dispatch_floating(features.scalar_type(), kOp, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const LogitGradient<A> grad{grad_tensor.const_data_ptr<A>(), static_cast<uint32_t>(grad_tensor.size(2)),
                                static_cast<uint32_t>(grad_tensor.size(3))};
    if (grad_features.numel() > 0) {
      const FeatureMap<T> out(kOp, grad_features, grad_features.mutable_data_ptr<T>());
      const int64_t columns = divide_up(width, kTileColumns);
      const auto launch = [&](auto kernel) {
        SRTOD_LAUNCH(kernel, grid_of(batch * rows * columns), stream, grad, AnyFloat(weight), out,
                     static_cast<uint32_t>(rows), static_cast<uint32_t>(columns));
      };
      if (out.is_wide())
        launch(features_kernel<T, true>);
      else
        launch(features_kernel<T, false>);
    }
    if (!weight_grad) return;
    const FeatureMap<const T> x(kOp, features, features.const_data_ptr<T>());
    const int64_t columns = divide_up(width, kStripColumns), tiles = batch * rows * columns;
    STD_TORCH_CHECK(tiles <= 2147483647, kOp, ": features this large do not fit one launch");
    const int64_t groups = divide_up(channels, kChannelsOfBlock);
    const int64_t blocks = std::min(tiles, kBlocksPerMultiprocessor * device.multiprocessors());
    Tensor partial = empty({blocks, kProducts * channels}, compute_type(features.scalar_type()), features);
    if (blocks > 0)
      SRTOD_LAUNCH(weights_kernel<T>, grid_of(blocks * groups), stream, grad, x, static_cast<uint32_t>(rows),
                   static_cast<uint32_t>(columns), static_cast<uint32_t>(tiles), static_cast<uint32_t>(blocks),
                   partial.mutable_data_ptr<A>());
    SRTOD_LAUNCH(add_weights_kernel<A>, grid_of(divide_up(kProducts * channels, kThreads)), stream,
                 partial.const_data_ptr<A>(), static_cast<uint32_t>(blocks), static_cast<uint32_t>(channels),
                 AnyFloatOut(grad_weight));
  });
  return {grad_features, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("reconstruction_tail", TORCH_BOX(&reconstruction_tail_cuda));
  m.impl("_output_convolution_backward", TORCH_BOX(&output_convolution_backward_cuda));
}

}  // namespace srtod
