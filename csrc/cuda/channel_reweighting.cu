// Channel reweighting as an op of its own: one launch forward, two backward.
#include "pooling.cuh"

namespace srtod {
namespace {

constexpr const char* kOp = "channel_reweighting";

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) weights_backward_kernel(WeightsBackward<A> b) {
  allow_next_launch();
  weights_backward(b, blockIdx.x);
}

// The gradient of the features is constant over each channel's pixels but for its arg-max. A block takes one tile of a
// plane, or (channels_last) of the channels of one pixel.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    spread_gradient(const compute_t<T>* grad_average, const compute_t<T>* grad_maximum, const int64_t* argmax,
                    Shape shape, bool channels_last, uint32_t tiles, T* grad) {
  wait_for_previous_launch();
  const uint32_t outer = blockIdx.x / tiles, inner = blockIdx.x % tiles * kThreads + threadIdx.x;
  const uint32_t rows = channels_last ? shape.pixels : shape.channels;  // of an image
  const uint32_t row_length = channels_last ? shape.channels : shape.pixels;
  if (inner >= row_length) return;
  const int64_t n = outer / rows;
  const uint32_t row = outer % rows;
  const uint32_t c = channels_last ? inner : row, pixel = channels_last ? row : inner;
  const int64_t nc = n * shape.channels + c;
  grad[int64_t{outer} * row_length + inner] =
      static_cast<T>(grad_average[nc] + (argmax[nc] == pixel ? grad_maximum[nc] : compute_t<T>(0)));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_reweighting_cuda(const Tensor& features, const Tensor& weight1,
                                                                    const Tensor& bias1, const Tensor& weight2,
                                                                    const Tensor& bias2) {
  check_features(kOp, features);
  check_mlp(kOp, features, weight1, bias1, weight2, &bias2);
  check_same_device(kOp, features, {&weight1, &bias1, &weight2, &bias2});
  const OnDevice device(features);
  const MemoryFormat format = memory_format_of(features);
  const MlpTensors mlp(weight1, bias1, weight2, bias2);
  const Tensor x = in_format(features, format);
  PooledTensors out(features);
  dispatch_floating(features.scalar_type(), kOp,
                    [&](auto tag) { launch_pool<decltype(tag)>(kOp, x, format, mlp.mlp(), out, device, Nothing()); });
  return {out.weights, out.average, out.maximum, out.argmax};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> channel_reweighting_backward_cuda(
    const Tensor& grad, const Tensor& features, const Tensor& weights, const Tensor& average, const Tensor& maximum,
    const Tensor& argmax, const Tensor& weight1, const Tensor& bias1, const Tensor& weight2) {
  check_features(kOp, features);
  check_mlp(kOp, features, weight1, bias1, weight2);
  check_pooled(kOp, features, {&grad, &weights, &average, &maximum}, argmax);
  check_same_device(kOp, features, {&grad, &weights, &average, &maximum, &argmax, &weight1, &bias1, &weight2});
  const OnDevice device(features);
  const cudaStream_t stream = device.stream();
  const MemoryFormat format = memory_format_of(features);
  const Shape shape(kOp, features);
  const MlpTensors mlp(weight1, bias1, weight2, weight2);
  Tensor grad_features = empty({features.size(0), features.size(1), features.size(2), features.size(3)},
                               features.scalar_type(), features, format);
  WeightsBackwardTensors t(shape, features, mlp);
  if (grad_features.numel() == 0) {
    t.set_zero(stream);
    return {grad_features, t.grad_weight1, t.grad_bias1, t.grad_weight2, t.grad_bias2};
  }
  Tensor counter = zero_counters(1, features, stream);
  dispatch_floating(features.scalar_type(), kOp, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const auto arguments = t.arguments<A>(shape, mlp.mlp(), grad.const_data_ptr<A>(), 1, 0, 1, weights, average,
                                          maximum, counter.mutable_data_ptr<int32_t>());
    SRTOD_LAUNCH(weights_backward_kernel<A>, grid_of(shape.batch), stream, arguments);
    const bool last = format == MemoryFormat::ChannelsLast;
    const int64_t rows = shape.batch * (last ? shape.pixels : shape.channels);
    const uint32_t tiles = static_cast<uint32_t>(divide_up(last ? shape.channels : shape.pixels, kThreads));
    SRTOD_LAUNCH_DEPENDENT(spread_gradient<T>, grid_of(rows * tiles), stream, t.grad_average.const_data_ptr<A>(),
                           t.grad_maximum.const_data_ptr<A>(), argmax.const_data_ptr<int64_t>(), shape, last, tiles,
                           grad_features.mutable_data_ptr<T>());
  });
  return {grad_features, t.grad_weight1, t.grad_bias1, t.grad_weight2, t.grad_bias2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("channel_reweighting", TORCH_BOX(&channel_reweighting_cuda));
  m.impl("_channel_reweighting_backward", TORCH_BOX(&channel_reweighting_backward_cuda));
}

}  // namespace srtod
