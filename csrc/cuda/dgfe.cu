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

void run(DgfeForward& pass, const OnDevice& device) {
  if (pass.features.numel() == 0) return;
  if (wants_one_launch(pass.features, device) && dgfe_in_one_launch(pass, device)) return;
  dgfe_in_two_launches(pass, device);
}

Tensor enhanced_like(const Tensor& features) {
  return empty({features.size(0), features.size(1), features.size(2), features.size(3)}, features.scalar_type(),
               features, memory_format_of(features));
}

Tensor filter_values_of(const Tensor& features) {
  return empty({features.size(0), 1, features.size(2), features.size(3)}, compute_type(features.scalar_type()),
               features);
}

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
  check("dgfe", features, difference, threshold, weight1, bias1, weight2, bias2);
  const OnDevice device(features);
  const MemoryFormat format = memory_format_of(features);
  const MlpTensors mlp(weight1, bias1, weight2, bias2);
  DgfeForward pass{
      "dgfe",
      format,
      in_format(features, format),
      enhanced_like(features),
      Filter("dgfe", Difference("dgfe", difference), threshold, features.size(2), features.size(3), resize, 0, 1),
      filter_values_of(features),
      mlp.mlp(),
      PooledTensors(features),
      empty({0}, compute_type(features.scalar_type()), features)};
  run(pass, device);
  return {pass.enhanced,       pass.filter_values,  pass.pooled.weights,
          pass.pooled.average, pass.pooled.maximum, pass.pooled.argmax};
}

void dgfe_inplace_cuda(Tensor features, const Tensor& difference, const Tensor& threshold, const Tensor& weight1,
                       const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, int64_t resize) {
  check("dgfe_", features, difference, threshold, weight1, bias1, weight2, bias2);
  STD_TORCH_CHECK(features.is_contiguous() || is_channels_last(features),
                  "dgfe_: needs features laid out as contiguous or channels_last");
  const OnDevice device(features);
  const MlpTensors mlp(weight1, bias1, weight2, bias2);
  DgfeForward pass{
      "dgfe_",
      memory_format_of(features),
      features,
      features,
      Filter("dgfe_", Difference("dgfe_", difference), threshold, features.size(2), features.size(3), resize, 0, 1),
      filter_values_of(features),
      mlp.mlp(),
      PooledTensors(features),
      empty({0}, compute_type(features.scalar_type()), features)};
  run(pass, device);
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
  const MemoryFormat format = memory_format_of(features);
  const MlpTensors mlp(weight1, bias1, weight2, bias2);
  const std::optional<Tensor> valid_size = contiguous(valid);
  const AnyImages images(op, reconstruction, image, AnyFloat(reconstruction), AnyFloat(image), from_logits, valid_size);
  const ScalarType type = compute_type(features.scalar_type());
  DgfeForward pass{op,
                   format,
                   in_format(features, format),
                   enhanced_like(features),
                   Filter(op, Difference(images), threshold, features.size(2), features.size(3), resize, 0, 1),
                   filter_values_of(features),
                   mlp.mlp(),
                   PooledTensors(features),
                   with_mse ? empty({}, type, features) : empty({0}, type, features)};
  run(pass, device);
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
