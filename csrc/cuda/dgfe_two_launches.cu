// DGFE forward in two launches: for maps that do not fit the cache, and where no cooperative launch is possible.
#include "dgfe.cuh"

namespace srtod {
namespace {

template <class A>
struct BesidePooling {  // blocks of the first launch: one tile each
  ImageWork<A> work;
  uint32_t filter_blocks, blocks;

  void take_counter(int32_t* counter) { work.counter = counter; }  // zero

  __device__ __forceinline__ void operator()(uint32_t block) const {
    if (block < filter_blocks) return work.filter_tile(block);
    SRTOD_SHARED(double, scratch, [kWarps]);
    const double squares = block_sum(static_cast<double>(work.error_tile(block - filter_blocks)), scratch);
    if (threadIdx.x == 0) work.partial[block - filter_blocks] = squares;
    const uint32_t count = blocks - filter_blocks;
    if (is_last_block(work.counter, count))
      finish_error(work.partial, count, work.filter.difference.images, scratch, work.mse);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    scale_kernel(const T* x, Shape shape, ScaleCut cut, Scaling<compute_t<T>> scaling, T* y) {
  wait_for_previous_launch();
  scale_block<false>(blockIdx.x, gridDim.x, x, shape, cut, scaling, y);
}

}  // namespace

void dgfe_in_two_launches(DgfeForward& pass, const OnDevice& device) {
  dispatch_floating(pass.features.scalar_type(), pass.op, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const Shape shape(pass.op, pass.features);
    BesidePooling<A> beside{ImageWork<A>(pass, pass.filter_values, pass.mse), 0, 0};
    beside.filter_blocks = grid_of(shape.batch * beside.work.filter_tiles).x;
    beside.blocks = grid_of(shape.batch * (int64_t{beside.work.filter_tiles} + beside.work.error_tiles)).x;
    Tensor partial = empty({beside.blocks - beside.filter_blocks}, ScalarType::Double, pass.features);
    beside.work.partial = partial.mutable_data_ptr<double>();
    launch_pool<T>(pass.op, pass.features, pass.format, pass.mlp, pass.pooled, device, beside);

    const T* x = pass.features.const_data_ptr<T>();
    T* y = pass.enhanced.mutable_data_ptr<T>();
    const ScaleCut cut = ScaleCut::of<T>(shape, pass.format, {x, y});
    const Scaling<A> scaling{beside.work.values, pass.pooled.weights.const_data_ptr<A>(), nullptr, nullptr, nullptr};
    SRTOD_LAUNCH_DEPENDENT(scale_kernel<T>, grid_of(cut.blocks(shape)), device.stream(), x, shape, cut, scaling, y);
  });
}

}  // namespace srtod
