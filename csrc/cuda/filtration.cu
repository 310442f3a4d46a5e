// Filtration as an op of its own.
#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "filtration.cuh"

namespace srtod {
namespace {

constexpr const char* kOp = "filtration";

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) forward_kernel(FilterTiles tiles) {
  tiles.compute<A>(blockIdx.x);
}

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    backward_kernel(Filter f, AnyFloat grad, uint32_t tiles, AnyFloatOut grad_difference, double* sums,
                    int32_t* counter, AnyFloatOut grad_threshold) {
  SRTOD_SHARED(double, scratch, [kWarps]);
  const int64_t n = blockIdx.x / tiles;
  const double sum = difference_gradient_tile<A>(
      f, n, blockIdx.x % tiles, [&](uint32_t i, uint32_t j) { return grad.at<A>(n * f.pixels() + i * f.width + j); },
      grad_difference, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  if (is_last_block(counter, gridDim.x)) threshold_gradient(sums, gridDim.x, grad_threshold, scratch);
}

Tensor filtration_cuda(const Tensor& difference, const Tensor& threshold, int64_t height, int64_t width, int64_t resize,
                       int64_t surrogate, double alpha) {
  check_difference(kOp, difference, threshold, height, width);
  const OnDevice device(difference);
  Tensor out = empty({difference.size(0), 1, height, width}, difference.scalar_type(), difference);
  if (out.numel() == 0) return out;
  const Filter f(kOp, difference, threshold, height, width, resize, surrogate, alpha);
  const FilterTiles tiles(f, out);
  dispatch_compute(difference.scalar_type(), [&](auto tag) {
    SRTOD_LAUNCH(forward_kernel<decltype(tag)>, dim3(tiles.blocks), device.stream(), tiles);
  });
  return out;
}

std::tuple<Tensor, Tensor> filtration_backward_cuda(const Tensor& grad, const Tensor& difference,
                                                    const Tensor& threshold, int64_t resize, int64_t surrogate,
                                                    double alpha, bool difference_grad) {
  check_filter_gradient(kOp, grad, difference);
  check_difference(kOp, difference, threshold, grad.size(2), grad.size(3));
  const OnDevice device(difference);
  const cudaStream_t stream = device.stream();
  const Tensor g = in_format(grad, MemoryFormat::Contiguous);
  const Filter f(kOp, difference, threshold, grad.size(2), grad.size(3), resize, surrogate, alpha);
  Tensor grad_difference = empty_gradient(difference, difference_grad, f, stream);
  Tensor grad_threshold = empty({}, threshold.scalar_type(), threshold);
  const uint32_t tiles = gradient_tiles(f);
  const int64_t blocks = difference.size(0) * tiles;
  if (blocks == 0) {
    set_zero(grad_threshold, stream);
    return {grad_difference, grad_threshold};
  }
  Tensor sums = empty({blocks}, ScalarType::Double, difference);
  Tensor counter = zero_counters(1, difference, stream);
  dispatch_compute(difference.scalar_type(), [&](auto tag) {
    using A = decltype(tag);
    SRTOD_LAUNCH(backward_kernel<A>, grid_of(blocks), stream, f, AnyFloat(g), tiles,
                 difference_grad ? AnyFloatOut(grad_difference) : AnyFloatOut(), sums.mutable_data_ptr<double>(),
                 counter.mutable_data_ptr<int32_t>(), AnyFloatOut(grad_threshold));
  });
  return {grad_difference, grad_threshold};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("filtration", TORCH_BOX(&filtration_cuda));
  m.impl("_filtration_backward", TORCH_BOX(&filtration_backward_cuda));
}

}  // namespace srtod
