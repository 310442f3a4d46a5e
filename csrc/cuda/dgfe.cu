// DGFE's forward ops: which launches they take, and on what.
#include <string_view>

#include "dgfe.cuh"

namespace srtod {
namespace {

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

// What all three ops do, once their arguments are checked. `enhanced` may be `features`; `mse` is empty: not wanted.
DgfeForward run(const char* op, const Tensor& features, const Tensor& enhanced, const Difference& difference,
                const Tensor& threshold, const MlpTensors& mlp, int64_t resize, const Tensor& mse,
                const OnDevice& device) {
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
                   PooledTensors(features),
                   mse};
  if (features.numel() == 0) return pass;
  if (!wants_one_launch(pass.features, device) || !dgfe_in_one_launch(pass, device)) dgfe_in_two_launches(pass, device);
  return pass;
}

Tensor enhanced_like(const Tensor& features) {
  return empty({features.size(0), features.size(1), features.size(2), features.size(3)}, features.scalar_type(),
               features, memory_format_of(features));
}

Tensor no_mse(const Tensor& features) { return empty({0}, compute_type(features.scalar_type()), features); }

void check(const char* op, const Tensor& features, const Tensor& difference, const Tensor& threshold,
           const Tensor& weight1, const Tensor& bias1, const Tensor& weight2, const Tensor& bias2) {
  check_maps(op, features, difference, threshold);
  check_mlp(op, features, weight1, bias1, weight2, &bias2);
  check_same_device(op, features, {&difference, &threshold, &weight1, &bias1, &weight2, &bias2});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dgfe_cuda(const Tensor& features, const Tensor& difference,
                                                                     const Tensor& threshold, const Tensor& weight1,
                                                                     const Tensor& bias1, const Tensor& weight2,
                                                                     const Tensor& bias2, int64_t resize, int64_t,
                                                                     double) {
  const char* op = "dgfe";
  check(op, features, difference, threshold, weight1, bias1, weight2, bias2);
  const OnDevice device(features);
  const DgfeForward pass = run(op, features, enhanced_like(features), Difference(op, difference), threshold,
                               MlpTensors(weight1, bias1, weight2, bias2), resize, no_mse(features), device);
  return {pass.enhanced,       pass.filter_values,  pass.pooled.weights,
          pass.pooled.average, pass.pooled.maximum, pass.pooled.argmax};
}

void dgfe_inplace_cuda(Tensor features, const Tensor& difference, const Tensor& threshold, const Tensor& weight1,
                       const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, int64_t resize) {
  const char* op = "dgfe_";
  check(op, features, difference, threshold, weight1, bias1, weight2, bias2);
  STD_TORCH_CHECK(features.is_contiguous() || is_channels_last(features), op,
                  ": needs features laid out as contiguous or channels_last");
  const OnDevice device(features);
  run(op, features, features, Difference(op, difference), threshold, MlpTensors(weight1, bias1, weight2, bias2), resize,
      no_mse(features), device);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dgfe_from_reconstruction_cuda(
    const Tensor& features, const Tensor& reconstruction, const Tensor& image, const Tensor& threshold,
    const Tensor& weight1, const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, bool from_logits,
    std::optional<Tensor> valid, bool with_mse, int64_t resize, int64_t, double) {
  const char* op = "dgfe_from_reconstruction";
  check_images(op, reconstruction, image, valid);
  check_maps(op, features, image, threshold, image.size(1));
  check_mlp(op, features, weight1, bias1, weight2, &bias2);
  check_same_device(op, features, {&image, &threshold, &weight1, &bias1, &weight2, &bias2});
  const OnDevice device(features);
  const std::optional<Tensor> valid_size = contiguous(valid);
  const AnyImages images(op, reconstruction, image, AnyFloat(reconstruction), AnyFloat(image), from_logits, valid_size);
  DgfeForward pass = run(
      op, features, enhanced_like(features), Difference(images), threshold, MlpTensors(weight1, bias1, weight2, bias2),
      resize, with_mse ? empty({}, compute_type(features.scalar_type()), features) : no_mse(features), device);
  if (features.size(0) == 0) fill_bytes(pass.mse, 0xff, device.stream());  // NaN, the mean of nothing
  return {pass.enhanced,       pass.mse,          pass.filter_values, pass.pooled.weights, pass.pooled.average,
          pass.pooled.maximum, pass.pooled.argmax};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("dgfe", TORCH_BOX(&dgfe_cuda));
  m.impl("dgfe_", TORCH_BOX(&dgfe_inplace_cuda));
  m.impl("dgfe_from_reconstruction", TORCH_BOX(&dgfe_from_reconstruction_cuda));
}

}  // namespace srtod
