// Filtration as an op of its own.
#include "filtration.cuh"

namespace srtod {
namespace {

constexpr const char* kOp = "filtration";

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    forward_kernel(Filter f, uint32_t tiles, AnyFloatOut filter) {
  const int64_t n = blockIdx.x / tiles;
  const uint32_t p = blockIdx.x % tiles * kThreads + threadIdx.x;
  if (p < f.pixels())
    filter.set(n * f.pixels() + p, filter_value(f, n, p / f.width, p % f.width, f.threshold.at<A>(0)));
}

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    backward_kernel(Filter f, AnyFloat grad, uint32_t tiles, AnyFloatOut grad_difference, double* sums,
                    int32_t* counter, AnyFloatOut grad_threshold) {
  SRTOD_SHARED(double, scratch, [kWarps]);
  const int64_t n = blockIdx.x / tiles;
  const double sum = difference_gradient_tile<A>(
      f, n, blockIdx.x % tiles, [&](uint32_t i, uint32_t j) { return grad.at<A>(n * f.pixels() + i * f.width + j); },
      [&](uint32_t y, uint32_t x, A value) {
        grad_difference.set(n * f.map_pixels() + y * f.difference.width + x, value);
      },
      scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  if (is_last_block(counter, gridDim.x)) threshold_gradient(sums, gridDim.x, grad_threshold, scratch);
}

Tensor filtration_cuda(const Tensor& difference, const Tensor& threshold, int64_t height, int64_t width, int64_t resize,
                       int64_t surrogate, double alpha) {
  check_difference(kOp, difference, threshold, height, width);
  const OnDevice device(difference);
  Tensor out = empty({difference.size(0), 1, height, width}, difference.scalar_type(), difference);
  if (out.numel() == 0) return out;
  const Filter f(kOp, Difference(kOp, difference), threshold, height, width, resize, surrogate, alpha);
  dispatch_compute(difference.scalar_type(), [&](auto tag) {
    const uint32_t tiles = static_cast<uint32_t>(divide_up(height * width, kThreads));
    SRTOD_LAUNCH(forward_kernel<decltype(tag)>, grid_of(difference.size(0) * tiles), device.stream(), f, tiles,
                 AnyFloatOut(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> filtration_backward_cuda(const Tensor& grad, const Tensor& difference,
                                                    const Tensor& threshold, int64_t resize, int64_t surrogate,
                                                    double alpha) {
  check_filter_gradient(kOp, grad, difference);
  check_difference(kOp, difference, threshold, grad.size(2), grad.size(3));
  const OnDevice device(difference);
  const cudaStream_t stream = device.stream();
  const Tensor g = in_format(grad, MemoryFormat::Contiguous);
  Tensor grad_difference =
      empty({difference.size(0), 1, difference.size(2), difference.size(3)}, difference.scalar_type(), difference);
  Tensor grad_threshold = empty({}, threshold.scalar_type(), threshold);
  const Filter f(kOp, Difference(kOp, difference), threshold, grad.size(2), grad.size(3), resize, surrogate, alpha);
  const uint32_t tiles = map_tiles(f);
  const int64_t blocks = difference.size(0) * tiles;
  if (blocks == 0) {
    set_zero(grad_threshold, stream);
    return {grad_difference, grad_threshold};
  }
  Tensor sums = empty({blocks}, ScalarType::Double, difference);
  Tensor counter = zero_counters(1, difference, stream);
  dispatch_compute(difference.scalar_type(), [&](auto tag) {
    using A = decltype(tag);
    SRTOD_LAUNCH(backward_kernel<A>, grid_of(blocks), stream, f, AnyFloat(g), tiles, AnyFloatOut(grad_difference),
                 sums.mutable_data_ptr<double>(), counter.mutable_data_ptr<int32_t>(), AnyFloatOut(grad_threshold));
  });
  return {grad_difference, grad_threshold};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("filtration", TORCH_BOX(&filtration_cuda));
  m.impl("_filtration_backward", TORCH_BOX(&filtration_backward_cuda));
}

}  // namespace srtod
