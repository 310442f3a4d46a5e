// What the kernels rely on, so that no caller can make them read or write out of bounds. Sentences meant for users are
// raised earlier, in Python (srtod/ops/_checks.py).
#pragma once
#include <initializer_list>
#include <optional>

#include "tensors.h"

namespace srtod {

inline void check_same_device(const char* op, const Tensor& first, std::initializer_list<const Tensor*> others) {
  for (const Tensor* other : others)
    STD_TORCH_CHECK(first.device() == other->device(), op, ": all tensors must be on the same device");
}

inline void check_images(const char* op, const Tensor& reconstruction, const Tensor& image,
                         const std::optional<Tensor>& valid_size) {
  STD_TORCH_CHECK(reconstruction.dim() == 4 && image.dim() == 4, op, ": expected images [N, C, H, W]");
  for (int dim = 0; dim < 4; ++dim)
    STD_TORCH_CHECK(reconstruction.size(dim) == image.size(dim) && (dim == 0 || image.size(dim) > 0), op,
                    ": expected two images of the same shape, with pixels");
  check_same_device(op, reconstruction, {&image});
  if (!valid_size) return;
  STD_TORCH_CHECK(valid_size->numel() == 2 * image.size(0) && valid_size->scalar_type() == ScalarType::Long, op,
                  ": expected valid_size int64 [N, 2]");
  check_same_device(op, image, {&*valid_size});
}

inline void check_image_gradients(const char* op, const Tensor& image, const std::optional<Tensor>& grad_difference,
                                  const std::optional<Tensor>& grad_mse) {
  if (grad_difference)
    STD_TORCH_CHECK(grad_difference->dim() == 4 && grad_difference->size(0) == image.size(0) &&
                        grad_difference->size(1) == 1 && grad_difference->size(2) == image.size(2) &&
                        grad_difference->size(3) == image.size(3) &&
                        grad_difference->scalar_type() == image.scalar_type(),
                    op, ": expected a gradient [N, 1, H, W] of the difference map's type");
  if (grad_mse)
    STD_TORCH_CHECK(grad_mse->numel() == 1 && grad_mse->scalar_type() == compute_type(image.scalar_type()), op,
                    ": expected a gradient of one element for the mean squared error");
  if (grad_difference) check_same_device(op, image, {&*grad_difference});
  if (grad_mse) check_same_device(op, image, {&*grad_mse});
}

inline void check_difference(const char* op, const Tensor& difference, const Tensor& threshold, int64_t height,
                             int64_t width) {
  STD_TORCH_CHECK(difference.dim() == 4 && difference.size(1) == 1 && difference.size(2) > 0 &&
                      difference.size(3) > 0 && height > 0 && width > 0,
                  op, ": expected difference [N, 1, H, W] and a size, neither empty");
  STD_TORCH_CHECK(threshold.numel() == 1, op, ": expected a threshold of one element");
  check_same_device(op, difference, {&threshold});
}

inline void check_filter_gradient(const char* op, const Tensor& grad, const Tensor& difference) {
  STD_TORCH_CHECK(grad.dim() == 4 && difference.dim() == 4 && grad.size(0) == difference.size(0) && grad.size(1) == 1 &&
                      grad.scalar_type() == difference.scalar_type(),
                  op, ": expected a gradient [N, 1, h, w] of the difference map's type");
  check_same_device(op, difference, {&grad});
}

inline void check_maps(const char* op, const Tensor& features, const Tensor& difference, const Tensor& threshold) {
  STD_TORCH_CHECK(features.dim() == 4 && difference.dim() == 4 && difference.size(1) == 1 &&
                      difference.size(0) == features.size(0) && features.size(2) > 0 && features.size(3) > 0 &&
                      difference.size(2) > 0 && difference.size(3) > 0,
                  op, ": expected features [N, C, h, w] and difference [N, 1, H, W], none of the last four empty");
  STD_TORCH_CHECK(threshold.numel() == 1, op, ": expected a threshold of one element");
  STD_TORCH_CHECK(compute_type(features.scalar_type()) == compute_type(difference.scalar_type()), op,
                  ": features and difference must both be float64 or neither");
}

inline void check_mlp(const char* op, const Tensor& features, const Tensor& weight1, const Tensor& bias1,
                      const Tensor& weight2, const Tensor& bias2) {
  const int64_t channels = features.size(1), hidden = weight1.dim() == 2 ? weight1.size(0) : -1;
  STD_TORCH_CHECK(weight1.dim() == 2 && weight1.size(1) == channels && bias1.numel() == hidden && weight2.dim() == 2 &&
                      weight2.size(0) == channels && weight2.size(1) == hidden && bias2.numel() == channels,
                  op, ": expected weight1 [R, C], bias1 [R], weight2 [C, R], bias2 [C] for features [N, C, h, w]");
}

// What the MLP left in its hidden layer, before the ReLU, of the average and of the maximum.
inline void check_hidden(const char* op, const Tensor& features, const Tensor& hidden, const Tensor& weight1,
                         const Tensor& weight2) {
  STD_TORCH_CHECK(hidden.dim() == 3 && hidden.size(0) == features.size(0) && hidden.size(1) == 2 &&
                      hidden.is_contiguous() && hidden.scalar_type() == compute_type(features.scalar_type()),
                  op, ": expected a hidden layer [N, 2, R], contiguous, in the type of arithmetic");
  STD_TORCH_CHECK(weight1.dim() == 2 && weight1.size(0) == hidden.size(2) && weight1.size(1) == features.size(1) &&
                      weight2.dim() == 2 && weight2.size(0) == features.size(1) && weight2.size(1) == hidden.size(2),
                  op, ": expected weight1 [R, C] and weight2 [C, R] for features [N, C, h, w] and a hidden layer of R");
}

inline void check_pooled(const char* op, const Tensor& features, std::initializer_list<const Tensor*> pooled,
                         const Tensor& argmax) {
  const auto has_shape = [&](const Tensor& t) {
    return t.dim() >= 2 && t.size(0) == features.size(0) && t.size(1) == features.size(1) &&
           t.numel() == features.size(0) * features.size(1) && t.is_contiguous();
  };
  for (const Tensor* t : pooled)
    STD_TORCH_CHECK(has_shape(*t) && t->scalar_type() == compute_type(features.scalar_type()), op,
                    ": expected pooled values [N, C], contiguous, in the type of arithmetic");
  STD_TORCH_CHECK(has_shape(argmax) && argmax.scalar_type() == ScalarType::Long, op,
                  ": expected argmax [N, C], contiguous, int64");
}

// The filter that a forward pass kept for its backward pass.
inline void check_filter(const char* op, const Tensor& features, const Tensor& filter) {
  STD_TORCH_CHECK(filter.numel() == features.size(0) * features.size(2) * features.size(3) && filter.is_contiguous() &&
                      filter.scalar_type() == compute_type(features.scalar_type()),
                  op, ": expected a filter [N, 1, h, w], contiguous, in the type of arithmetic");
  check_same_device(op, features, {&filter});
}

inline void check_features(const char* op, const Tensor& features) {
  STD_TORCH_CHECK(features.dim() == 4 && features.size(2) > 0 && features.size(3) > 0, op,
                  ": expected features [N, C, h, w] with pixels");
}

inline void check_gradient(const char* op, const Tensor& grad, const Tensor& features) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.numel() == features.numel() && grad.scalar_type() == features.scalar_type(),
                  op, ": expected a gradient of the features' shape and type");
  for (int dim = 0; dim < 4; ++dim)
    STD_TORCH_CHECK(grad.size(dim) == features.size(dim), op, ": expected a gradient of the features' shape");
}

}  // namespace srtod
