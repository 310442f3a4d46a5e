// The table of contents: every op's schema. Kernels register themselves in csrc/cpu/*.cpp and csrc/cuda/*.cu; checks
// for users, fake kernels and autograd are in srtod/ops/*.py. `resize` and `surrogate` are the enums of scalar_math.h.
// A gradient that a `..._grad` of false leaves out is an empty tensor [0].
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

  m.def(
      "filtration(Tensor difference, Tensor threshold, SymInt height, SymInt width, int resize, int surrogate, "
      "float alpha) -> Tensor");
  m.def(
      "_filtration_backward(Tensor grad, Tensor difference, Tensor threshold, int resize, int surrogate, float alpha, "
      "bool difference_grad) -> (Tensor grad_difference, Tensor grad_threshold)");

  m.def(
      "channel_reweighting(Tensor features, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2) "
      "-> (Tensor channel_weight, Tensor average, Tensor maximum, Tensor argmax, Tensor hidden)");
  m.def(
      "_channel_reweighting_backward(Tensor grad, Tensor features, Tensor channel_weight, Tensor average, "
      "Tensor maximum, Tensor argmax, Tensor hidden, Tensor weight1, Tensor weight2) "
      "-> (Tensor grad_features, Tensor grad_weight1, Tensor grad_bias1, Tensor grad_weight2, Tensor grad_bias2)");

  m.def(
      "dgfe(Tensor features, Tensor difference, Tensor threshold, Tensor weight1, Tensor bias1, Tensor weight2, "
      "Tensor bias2, int resize, int surrogate, float alpha) "
      "-> (Tensor enhanced, Tensor filter, Tensor channel_weight, Tensor average, Tensor maximum, Tensor argmax, "
      "Tensor hidden)");
  m.def(
      "dgfe_(Tensor(a!) features, Tensor difference, Tensor threshold, Tensor weight1, Tensor bias1, Tensor weight2, "
      "Tensor bias2, int resize) -> ()");
  m.def(
      "_dgfe_backward(Tensor grad, Tensor features, Tensor difference, Tensor threshold, Tensor filter, "
      "Tensor channel_weight, Tensor average, Tensor maximum, Tensor argmax, Tensor hidden, Tensor weight1, "
      "Tensor weight2, int resize, int surrogate, float alpha, bool difference_grad) "
      "-> (Tensor grad_features, Tensor grad_difference, Tensor grad_threshold, Tensor grad_weight1, "
      "Tensor grad_bias1, Tensor grad_weight2, Tensor grad_bias2)");

  m.def("conv3x3(Tensor features, Tensor weight, bool relu) -> Tensor");  // CPU alone
}
