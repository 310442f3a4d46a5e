// The table of contents: every op's schema. Kernels register themselves in csrc/cpu/*.cpp and csrc/cuda/*.cu; checks
// for users, fake kernels and autograd are in srtod/ops/*.py. `resize` and `surrogate` are the enums of scalar_math.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

STABLE_TORCH_LIBRARY(srtod, m) {
  m.def("difference_map(Tensor reconstruction, Tensor image, bool from_logits) -> Tensor");
  m.def(
      "reconstruction_difference(Tensor reconstruction, Tensor image, bool from_logits, Tensor? valid_size) "
      "-> (Tensor difference, Tensor mse)");
  m.def(
      "_reconstruction_difference_backward(Tensor? grad_difference, Tensor? grad_mse, Tensor reconstruction, "
      "Tensor image, bool from_logits, Tensor? valid_size) -> Tensor");

  // `logits` [N, 3, H, W] in the type of arithmetic: what the gradients are computed from.
  m.def(
      "reconstruction_tail(Tensor features, Tensor weight, Tensor bias, Tensor image, Tensor? valid_size) "
      "-> (Tensor difference, Tensor mse, Tensor logits)");
  m.def(
      "_output_convolution_backward(Tensor grad_logits, Tensor features, Tensor weight, bool features_grad, "
      "bool weight_grad) -> (Tensor grad_features, Tensor grad_weight)");
  // `features`: three maps of rows or nine of pixels around the samples; no gradient.
  m.def("sampled_difference_map(Tensor[] features, Tensor weight, Tensor bias, Tensor image) -> Tensor");

  m.def(
      "filtration(Tensor difference, Tensor threshold, SymInt height, SymInt width, int resize, int surrogate, "
      "float alpha) -> Tensor");
  m.def(
      "_filtration_backward(Tensor grad, Tensor difference, Tensor threshold, int resize, int surrogate, float alpha) "
      "-> (Tensor grad_difference, Tensor grad_threshold)");

  m.def(
      "channel_reweighting(Tensor features, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2) "
      "-> (Tensor channel_weight, Tensor average, Tensor maximum, Tensor argmax)");
  m.def(
      "_channel_reweighting_backward(Tensor grad, Tensor features, Tensor channel_weight, Tensor average, "
      "Tensor maximum, Tensor argmax, Tensor weight1, Tensor bias1, Tensor weight2) "
      "-> (Tensor grad_features, Tensor grad_weight1, Tensor grad_bias1, Tensor grad_weight2, Tensor grad_bias2)");

  m.def(
      "dgfe(Tensor features, Tensor difference, Tensor threshold, Tensor weight1, Tensor bias1, Tensor weight2, "
      "Tensor bias2, int resize, int surrogate, float alpha) "
      "-> (Tensor enhanced, Tensor filter, Tensor channel_weight, Tensor average, Tensor maximum, Tensor argmax)");
  m.def(
      "dgfe_(Tensor(a!) features, Tensor difference, Tensor threshold, Tensor weight1, Tensor bias1, Tensor weight2, "
      "Tensor bias2, int resize) -> ()");
  m.def(
      "_dgfe_backward(Tensor grad, Tensor features, Tensor difference, Tensor threshold, Tensor filter, "
      "Tensor channel_weight, Tensor average, Tensor maximum, Tensor argmax, Tensor weight1, Tensor bias1, "
      "Tensor weight2, int resize, int surrogate, float alpha, bool difference_grad) "
      "-> (Tensor grad_features, Tensor grad_difference, Tensor grad_threshold, Tensor grad_weight1, "
      "Tensor grad_bias1, Tensor grad_weight2, Tensor grad_bias2)");

  // `mse` and its gradient are those of reconstruction_difference; `mse` is empty [0] where it is not asked for.
  m.def(
      "dgfe_from_reconstruction(Tensor features, Tensor reconstruction, Tensor image, Tensor threshold, "
      "Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, bool from_logits, Tensor? valid_size, "
      "bool with_mse, int resize, int surrogate, float alpha) "
      "-> (Tensor enhanced, Tensor mse, Tensor filter, Tensor channel_weight, Tensor average, Tensor maximum, "
      "Tensor argmax)");
  m.def(
      "_dgfe_from_reconstruction_backward(Tensor grad, Tensor? grad_mse, Tensor features, Tensor reconstruction, "
      "Tensor image, Tensor threshold, Tensor filter, Tensor channel_weight, Tensor average, Tensor maximum, "
      "Tensor argmax, Tensor weight1, Tensor bias1, Tensor weight2, bool from_logits, Tensor? valid_size, int resize, "
      "int surrogate, float alpha, bool reconstruction_grad) "
      "-> (Tensor grad_features, Tensor grad_reconstruction, Tensor grad_threshold, Tensor grad_weight1, "
      "Tensor grad_bias1, Tensor grad_weight2, Tensor grad_bias2)");
}
