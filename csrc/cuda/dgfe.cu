// DGFE's forward ops, and their form in two launches: for maps that do not fit the cache, and where no cooperative
// launch is possible.
#include <torch/csrc/stable/library.h>

#include <string_view>

#include "../checks.h"
#include "dgfe.cuh"

namespace srtod {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    scale_kernel(const T* x, Shape shape, ScaleCut cut, Scaling<compute_t<T>> scaling, T* y) {
  wait_for_previous_launch();
  scale_block<Scale::forward>(blockIdx.x, gridDim.x, x, shape, cut, scaling, y);
}

void dgfe_in_two_launches(DgfeForward& pass, const OnDevice& device) {
  launch_pool(pass.op, pass.features, pass.format, pass.mlp, pass.pooled, device,
              FilterTiles(pass.filter, pass.filter_values));
  dispatch_floating(pass.features.scalar_type(), pass.op, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const Shape shape(pass.op, pass.features);
    const T* x = pass.features.const_data_ptr<T>();
    T* y = pass.enhanced.mutable_data_ptr<T>();
    const ScaleCut cut = ScaleCut::of<T>(shape, pass.format, {x, y});
    const Scaling<A> scaling{pass.filter_values.const_data_ptr<A>(), pass.pooled.weights.const_data_ptr<A>(), nullptr,
                             nullptr, nullptr};
    SRTOD_LAUNCH_DEPENDENT(scale_kernel<T>, grid_of(cut.blocks(shape)), device.stream(), x, shape, cut, scaling, y);
  });
}

// One launch where P2 fits the L2 cache: what a block cannot keep in shared memory it finds there. The environment
// variable SRTOD_COOPERATIVE overrides this, for benchmarks: 1 always asks for one launch, 0 never does.
bool wants_one_launch(const Tensor& features, const OnDevice& device) {
  const char* variable = std::getenv("SRTOD_COOPERATIVE");
  const std::string_view value = variable == nullptr ? "" : variable;
  STD_TORCH_CHECK(value == "" || value == "0" || value == "1", "SRTOD_COOPERATIVE must be 0, 1 or unset, got ",
                  variable);
  if (value != "") return value == "1";
  return features.numel() * static_cast<int64_t>(features.element_size()) <= device.cache_bytes();
}

// What both ops do, once their arguments are checked. `enhanced` may be `features`.
DgfeForward run(const char* op, const Tensor& features, const Tensor& enhanced, const Tensor& difference,
                const Tensor& threshold, const MlpTensors& mlp, int64_t resize, const OnDevice& device) {
  const MemoryFormat format = memory_format_of(features);
  const int64_t height = features.size(2), width = features.size(3);
  constexpr int64_t no_surrogate = static_cast<int64_t>(Surrogate::none);  // has a meaning backward only, as its alpha
  DgfeForward pass{op,
                   format,
                   in_format(features, format),
                   enhanced,
                   Filter(op, difference, threshold, height, width, resize, no_surrogate, 1),
                   empty({features.size(0), 1, height, width}, compute_type(features.scalar_type()), features),
                   mlp.mlp(),
                   PooledTensors(features, mlp.mlp())};
  if (features.numel() == 0) return pass;
  if (!wants_one_launch(pass.features, device) || !dgfe_in_one_launch(pass, device)) dgfe_in_two_launches(pass, device);
  return pass;
}

Tensor enhanced_like(const Tensor& features) {
  return empty({features.size(0), features.size(1), features.size(2), features.size(3)}, features.scalar_type(),
               features, memory_format_of(features));
}

void check(const char* op, const Tensor& features, const Tensor& difference, const Tensor& threshold,
           const Tensor& weight1, const Tensor& bias1, const Tensor& weight2, const Tensor& bias2) {
  check_maps(op, features, difference, threshold);
  check_mlp(op, features, weight1, bias1, weight2, bias2);
  check_same_device(op, features, {&difference, &threshold, &weight1, &bias1, &weight2, &bias2});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dgfe_cuda(
    const Tensor& features, const Tensor& difference, const Tensor& threshold, const Tensor& weight1,
    const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, int64_t resize, int64_t, double) {
  const char* op = "dgfe";
  check(op, features, difference, threshold, weight1, bias1, weight2, bias2);
  const OnDevice device(features);
  const DgfeForward pass = run(op, features, enhanced_like(features), difference, threshold,
                               MlpTensors(weight1, bias1, weight2, bias2), resize, device);
  const auto& [weights, average, maximum, argmax, hidden] = pass.pooled;
  return {pass.enhanced, pass.filter_values, weights, average, maximum, argmax, hidden};
}

void dgfe_inplace_cuda(Tensor features, const Tensor& difference, const Tensor& threshold, const Tensor& weight1,
                       const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, int64_t resize) {
  const char* op = "dgfe_";
  check(op, features, difference, threshold, weight1, bias1, weight2, bias2);
  STD_TORCH_CHECK(features.is_contiguous() || is_channels_last(features), op,
                  ": needs features laid out as contiguous or channels_last");
  const OnDevice device(features);
  run(op, features, features, difference, threshold, MlpTensors(weight1, bias1, weight2, bias2), resize, device);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("dgfe", TORCH_BOX(&dgfe_cuda));
  m.impl("dgfe_", TORCH_BOX(&dgfe_inplace_cuda));
}

}  // namespace srtod
