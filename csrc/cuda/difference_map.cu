// Difference map and reconstruction error in one pass over both images, and their gradient in another.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../checks.h"
#include "reductions.cuh"

namespace srtod {
namespace {

constexpr const char* kOp = "difference_map";
constexpr uint32_t kPixelsOfThread = 4;
constexpr uint32_t kPixelsOfBlock = kThreads * kPixelsOfThread;

// The reconstruction and the image, pixel by pixel.
template <class R, class I>
struct Images {
  const R* reconstruction;
  const I* image;
  Strides reconstruction_strides, image_strides;
  int64_t batch;
  uint32_t channels, height, width;
  bool from_logits;
  const int64_t* valid_size;  // [N, 2] (height, width) of what counts in the error; null: all

  Images(const Tensor& reconstruction, const Tensor& image, bool from_logits, const std::optional<Tensor>& valid_size)
      : reconstruction(reconstruction.const_data_ptr<R>()),
        image(image.const_data_ptr<I>()),
        reconstruction_strides(reconstruction),
        image_strides(image),
        batch(image.size(0)),
        channels(static_cast<uint32_t>(image.size(1))),
        height(static_cast<uint32_t>(image.size(2))),
        width(static_cast<uint32_t>(image.size(3))),
        from_logits(from_logits),
        valid_size(valid_size ? valid_size->const_data_ptr<int64_t>() : nullptr) {
    STD_TORCH_CHECK(image.size(2) * image.size(3) <= 2147483647, kOp,
                    ": an image of more than 2^31 - 1 pixels is too large");
  }

  __host__ __device__ __forceinline__ uint32_t pixels() const { return height * width; }

  // Calls f(c, rebuilt, real) for every channel of a pixel, with the loads of three channels on their way at once.
  template <class A, class F>
  __device__ __forceinline__ void each_channel(int64_t n, uint32_t y, uint32_t x, const F& f) const {
    const int64_t r = reconstruction_strides.at(n, y, x), o = image_strides.at(n, y, x);
    for (uint32_t first = 0; first < channels; first += 3) {
      R rebuilt[3];
      I real[3];
#pragma unroll
      for (uint32_t k = 0; k < 3; ++k) {
        const uint32_t c = minimum(first + k, channels - 1);
        rebuilt[k] = reconstruction[r + c * reconstruction_strides.c];
        real[k] = image[o + c * image_strides.c];
      }
#pragma unroll
      for (uint32_t k = 0; k < 3; ++k) {
        if (first + k >= channels) break;
        const A value = static_cast<A>(rebuilt[k]);
        f(first + k, from_logits ? sigmoid(value) : value, static_cast<A>(real[k]));
      }
    }
  }

  template <class A>
  __device__ __forceinline__ PixelDifference<A> difference(int64_t n, uint32_t y, uint32_t x) const {
    PixelDifference<A> pixel;
    each_channel<A>(n, y, x, [&](uint32_t, A rebuilt, A real) { pixel.add(rebuilt, real); });
    return pixel;
  }

  // Writes the gradient of a pixel of the reconstruction. `of_difference` = dL/dD, `squared` = 2 dL/dmse / count; the
  // loss depends on D and on this pixel's error, or does not.
  template <class A, class Set>
  __device__ __forceinline__ void gradient(int64_t n, uint32_t y, uint32_t x, bool of_map, A of_difference,
                                           bool of_error, A squared, const Set& set) const {
    const A absolute = of_difference / static_cast<A>(channels);
    each_channel<A>(n, y, x, [&](uint32_t c, A rebuilt, A real) {
      const A slope = reconstruction_gradient(rebuilt - real, of_map, absolute, of_error, squared);
      set(c, from_logits ? slope * (rebuilt * (A(1) - rebuilt)) : slope);
    });
  }

  __device__ __forceinline__ bool is_valid(int64_t n, uint32_t y, uint32_t x) const {
    return valid_size == nullptr || (y < valid_size[2 * n] && x < valid_size[2 * n + 1]);
  }

  // How many values the error is the mean of.
  __device__ __forceinline__ double valid_values() const {
    int64_t count = batch * pixels();
    if (valid_size != nullptr) {
      count = 0;
      for (int64_t n = 0; n < batch; ++n)
        count += clamp<int64_t>(valid_size[2 * n], 0, height) * clamp<int64_t>(valid_size[2 * n + 1], 0, width);
    }
    return static_cast<double>(count * channels);
  }

  // 2 dL/dmse / count, zero without a gradient.
  template <class A>
  __device__ __forceinline__ A squared_factor(const A* grad_mse) const {
    return grad_mse == nullptr ? A(0) : A(2) * *grad_mse / static_cast<A>(valid_values());
  }
};

// `valid_size` as the kernels read it.
inline std::optional<Tensor> contiguous(const std::optional<Tensor>& valid_size) {
  if (!valid_size) return valid_size;
  return in_format(*valid_size, MemoryFormat::Contiguous);
}

// The mean squared error from the blocks' partial sums, added up in order by one block.
template <class A, class ImagePair>
__device__ __forceinline__ void finish_error(const double* partial, uint32_t count, const ImagePair& images,
                                             double* scratch, A* mse) {
  double total = 0;
  for (uint32_t k = threadIdx.x; k < count; k += kThreads) total += partial[k];
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) *mse = static_cast<A>(total / images.valid_values());
}

// Pixel k of this thread; neighbouring threads take neighbouring pixels. A block takes one tile of one image, so that
// only indices within an image have to be divided: 64-bit division is a function call on a GPU.
struct Pixel {
  int64_t n;
  uint32_t index, y, x;

  __device__ __forceinline__ Pixel(uint32_t k, uint32_t tiles, uint32_t width)
      : n(blockIdx.x / tiles),
        index(blockIdx.x % tiles * kPixelsOfBlock + k * kThreads + threadIdx.x),
        y(index / width),
        x(index - y * width) {}
};

uint32_t tiles_of(const Tensor& image) {
  return static_cast<uint32_t>(divide_up(image.size(2) * image.size(3), kPixelsOfBlock));
}

template <class R, class I>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    forward_kernel(Images<R, I> images, uint32_t tiles, I* __restrict__ difference, double* partial, int32_t* counter,
                   compute_t<R>* mse) {
  using A = compute_t<R>;
  SRTOD_SHARED(double, scratch, [kWarps]);
  A squares = 0;
  for (uint32_t k = 0; k < kPixelsOfThread; ++k) {
    const Pixel p(k, tiles, images.width);
    if (p.index >= images.pixels() || p.n >= images.batch) break;
    const PixelDifference<A> pixel = images.template difference<A>(p.n, p.y, p.x);
    difference[p.n * images.pixels() + p.index] = static_cast<I>(pixel.mean(images.channels));
    if (images.is_valid(p.n, p.y, p.x)) squares += pixel.squared;
  }
  if (mse == nullptr) return;
  const double block_squares = block_sum(static_cast<double>(squares), scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = block_squares;
  if (is_last_block(counter, gridDim.x)) finish_error(partial, gridDim.x, images, scratch, mse);
}

template <class R, class I>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    backward_kernel(Images<R, I> images, uint32_t tiles, const I* grad_difference, Strides of_difference,
                    const compute_t<R>* grad_mse, R* grad, Strides of_grad) {
  using A = compute_t<R>;
  const A of_error = images.squared_factor(grad_mse);
  for (uint32_t k = 0; k < kPixelsOfThread; ++k) {
    const Pixel p(k, tiles, images.width);
    if (p.index >= images.pixels()) break;
    const bool of_map = grad_difference != nullptr;
    const A of_pixel = of_map ? static_cast<A>(grad_difference[of_difference.at(p.n, p.y, p.x)]) : A(0);
    R* out = grad + of_grad.at(p.n, p.y, p.x);
    images.template gradient<A>(p.n, p.y, p.x, of_map, of_pixel, grad_mse != nullptr && images.is_valid(p.n, p.y, p.x),
                                of_error, [&](uint32_t c, A value) { out[c * of_grad.c] = static_cast<R>(value); });
  }
}

std::tuple<Tensor, Tensor> forward(const Tensor& reconstruction, const Tensor& image, bool from_logits, bool with_mse,
                                   const std::optional<Tensor>& valid) {
  check_images(kOp, reconstruction, image, valid);
  const OnDevice device(image);
  const cudaStream_t stream = device.stream();
  const std::optional<Tensor> valid_size = contiguous(valid);
  Tensor difference = empty({image.size(0), 1, image.size(2), image.size(3)}, image.scalar_type(), image);
  Tensor mse = empty({}, compute_type(image.scalar_type()), image);
  // An empty batch still has one block, whose mean over nothing is NaN, as PyTorch's.
  const uint32_t tiles = tiles_of(image);
  const int64_t blocks = std::max<int64_t>(with_mse ? 1 : 0, image.size(0) * tiles);
  if (blocks == 0) return {difference, mse};
  Tensor partial = empty({with_mse ? blocks : 0}, ScalarType::Double, image);
  Tensor counter = with_mse ? zero_counters(1, image, stream) : empty({0}, ScalarType::Int, image);
  dispatch_images(kOp, reconstruction, image, [&](auto r, auto o) {
    using R = decltype(r);
    using I = decltype(o);
    const Images<R, I> images(reconstruction, image, from_logits, valid_size);
    SRTOD_LAUNCH((forward_kernel<R, I>), grid_of(blocks), stream, images, tiles, difference.mutable_data_ptr<I>(),
                 partial.mutable_data_ptr<double>(), counter.mutable_data_ptr<int32_t>(),
                 with_mse ? mse.mutable_data_ptr<compute_t<R>>() : nullptr);
  });
  return {difference, mse};
}

Tensor difference_map_cuda(const Tensor& reconstruction, const Tensor& image, bool from_logits) {
  return std::get<0>(forward(reconstruction, image, from_logits, false, std::nullopt));
}

std::tuple<Tensor, Tensor> reconstruction_difference_cuda(const Tensor& reconstruction, const Tensor& image,
                                                          bool from_logits, std::optional<Tensor> valid_size) {
  return forward(reconstruction, image, from_logits, true, valid_size);
}

Tensor reconstruction_difference_backward_cuda(std::optional<Tensor> grad_difference, std::optional<Tensor> grad_mse,
                                               const Tensor& reconstruction, const Tensor& image, bool from_logits,
                                               std::optional<Tensor> valid) {
  check_images(kOp, reconstruction, image, valid);
  check_image_gradients(kOp, image, grad_difference, grad_mse);
  const OnDevice device(image);
  const std::optional<Tensor> valid_size = contiguous(valid);
  Tensor grad = empty({image.size(0), image.size(1), image.size(2), image.size(3)}, reconstruction.scalar_type(),
                      reconstruction, memory_format_of(reconstruction));
  if (grad.numel() == 0) return grad;
  const uint32_t tiles = tiles_of(image);
  dispatch_images(kOp, reconstruction, image, [&](auto r, auto o) {
    using R = decltype(r);
    using I = decltype(o);
    const Images<R, I> images(reconstruction, image, from_logits, valid_size);
    SRTOD_LAUNCH((backward_kernel<R, I>), grid_of(image.size(0) * tiles), device.stream(), images, tiles,
                 grad_difference ? grad_difference->const_data_ptr<I>() : nullptr,
                 grad_difference ? Strides(*grad_difference) : Strides(),
                 grad_mse ? grad_mse->const_data_ptr<compute_t<R>>() : nullptr, grad.mutable_data_ptr<R>(),
                 Strides(grad));
  });
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("difference_map", TORCH_BOX(&difference_map_cuda));
  m.impl("reconstruction_difference", TORCH_BOX(&reconstruction_difference_cuda));
  m.impl("_reconstruction_difference_backward", TORCH_BOX(&reconstruction_difference_backward_cuda));
}

}  // namespace srtod
