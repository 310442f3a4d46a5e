// Difference map and reconstruction error in one pass over both images, and their gradient in another.
#include "images.cuh"

namespace srtod {
namespace {

constexpr const char* kOp = "difference_map";
constexpr uint32_t kPixelsOfThread = 4;
constexpr uint32_t kPixelsOfBlock = kThreads * kPixelsOfThread;

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
    forward_kernel(Images<Typed<R>, Typed<I>> images, uint32_t tiles, I* __restrict__ difference, double* partial,
                   int32_t* counter, compute_t<R>* mse) {
  using A = compute_t<R>;
  SRTOD_SHARED(double, scratch, [kWarps]);
  A squares = 0;
  for (uint32_t k = 0; k < kPixelsOfThread; ++k) {
    const Pixel p(k, tiles, images.width);
    if (p.index >= images.pixels() || p.n >= images.batch) break;
    A of_pixel = 0;
    const A d = images.template difference<A>(p.n, p.y, p.x, of_pixel);
    difference[p.n * images.pixels() + p.index] = static_cast<I>(d);
    if (images.is_valid(p.n, p.y, p.x)) squares += of_pixel;
  }
  if (mse == nullptr) return;
  const double block_squares = block_sum(static_cast<double>(squares), scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = block_squares;
  if (is_last_block(counter, gridDim.x)) finish_error(partial, gridDim.x, images, scratch, mse);
}

template <class R, class I>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    backward_kernel(Images<Typed<R>, Typed<I>> images, uint32_t tiles, const I* grad_difference, Strides of_difference,
                    const compute_t<R>* grad_mse, R* grad, Strides of_grad) {
  using A = compute_t<R>;
  const A of_error = images.squared_factor(grad_mse);
  for (uint32_t k = 0; k < kPixelsOfThread; ++k) {
    const Pixel p(k, tiles, images.width);
    if (p.index >= images.pixels()) break;
    const A of_pixel =
        grad_difference == nullptr ? A(0) : static_cast<A>(grad_difference[of_difference.at(p.n, p.y, p.x)]);
    R* out = grad + of_grad.at(p.n, p.y, p.x);
    images.template gradient<A>(p.n, p.y, p.x, of_pixel, images.is_valid(p.n, p.y, p.x) ? of_error : A(0),
                                [&](uint32_t c, A value) { out[c * of_grad.c] = static_cast<R>(value); });
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
    const Images<Typed<R>, Typed<I>> images(kOp, reconstruction, image, {reconstruction.const_data_ptr<R>()},
                                            {image.const_data_ptr<I>()}, from_logits, valid_size);
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
    const Images<Typed<R>, Typed<I>> images(kOp, reconstruction, image, {reconstruction.const_data_ptr<R>()},
                                            {image.const_data_ptr<I>()}, from_logits, valid_size);
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
