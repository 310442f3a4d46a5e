// What the kernels rely on, so that no caller can make them read or write out of bounds. Sentences meant for users are
// raised earlier, in Python (srtod/ops/_checks.py). Also the few words that torch's stable ABI lacks.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "scalar_math.h"

namespace srtod {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Storage type -> the type of arithmetic: float64 stays, all else is done in float32.
template <class T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f(T{}) with the C++ type of `type`.
template <class F>
inline void dispatch_floating(ScalarType type, const char* op, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": expected a floating-point tensor, got ", torch::headeronly::toString(type));
  }
}

// Calls f(A{}) with the type of arithmetic for tensors of `type`.
template <class F>
inline void dispatch_compute(ScalarType type, F&& f) {
  if (type == ScalarType::Double)
    f(double{});
  else
    f(float{});
}

// Calls f(R{}, I{}) with the storage types of reconstruction and image.
template <class F>
inline void dispatch_images(const char* op, const Tensor& reconstruction, const Tensor& image, F&& f) {
  STD_TORCH_CHECK(
      image.scalar_type() == reconstruction.scalar_type() ||
          (image.scalar_type() == ScalarType::Float && compute_type(reconstruction.scalar_type()) == ScalarType::Float),
      op, ": the image must have the reconstruction's type, or be float32 beside a half-precision reconstruction");
  dispatch_floating(reconstruction.scalar_type(), op, [&](auto tag) {
    using R = decltype(tag);
    if (image.scalar_type() == reconstruction.scalar_type())
      f(R{}, R{});
    else if constexpr (sizeof(R) == 2)
      f(R{}, float{});
  });
}

inline bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (int dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
    expected *= t.size(dim);
  }
  return true;
}

// Contiguous unless the tensor is laid out as channels_last only; the fake kernels (srtod/ops/_checks.py) say the same.
inline MemoryFormat memory_format_of(const Tensor& t) {
  return !t.is_contiguous() && is_channels_last(t) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// `t` itself where it is laid out in `format` already, else a copy.
inline Tensor in_format(const Tensor& t, MemoryFormat format) {
  const bool fits = format == MemoryFormat::ChannelsLast ? is_channels_last(t) : t.is_contiguous();
  return fits ? t : torch::stable::contiguous(t, format);
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type, const Tensor& on,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty({sizes.begin(), sizes.size()}, type, std::nullopt, on.device(), std::nullopt, format);
}

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

// `map` is a difference map [N, 1, H, W], or an image [N, map_channels, H, W] that one is made from.
inline void check_maps(const char* op, const Tensor& features, const Tensor& map, const Tensor& threshold,
                       int64_t map_channels = 1) {
  STD_TORCH_CHECK(features.dim() == 4 && map.dim() == 4 && map.size(1) == map_channels &&
                      map.size(0) == features.size(0) && features.size(2) > 0 && features.size(3) > 0 &&
                      map.size(2) > 0 && map.size(3) > 0,
                  op, ": expected features [N, C, h, w] and difference [N, 1, H, W], none of the last four empty");
  STD_TORCH_CHECK(threshold.numel() == 1, op, ": expected a threshold of one element");
  STD_TORCH_CHECK(compute_type(features.scalar_type()) == compute_type(map.scalar_type()), op,
                  ": features and difference must both be float64 or neither");
}

inline void check_mlp(const char* op, const Tensor& features, const Tensor& weight1, const Tensor& bias1,
                      const Tensor& weight2, const Tensor* bias2 = nullptr) {
  const int64_t channels = features.size(1), hidden = weight1.dim() == 2 ? weight1.size(0) : -1;
  STD_TORCH_CHECK(weight1.dim() == 2 && weight1.size(1) == channels && bias1.numel() == hidden && weight2.dim() == 2 &&
                      weight2.size(0) == channels && weight2.size(1) == hidden &&
                      (!bias2 || bias2->numel() == channels),
                  op, ": expected weight1 [R, C], bias1 [R], weight2 [C, R], bias2 [C] for features [N, C, h, w]");
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

// Features [N, C, H, W] and an output convolution from C channels to 3 colours.
inline void check_tail(const char* op, const Tensor& features, const Tensor& weight, const Tensor* bias) {
  check_features(op, features);
  const bool fits = weight.dim() == 4 && weight.size(0) == 3 && weight.size(1) == features.size(1) &&
                    weight.size(2) == 3 && weight.size(3) == 3 && features.size(1) > 0;
  STD_TORCH_CHECK(fits && (!bias || bias->numel() == 3), op,
                  ": expected weight [3, C, 3, 3] and bias [3] for features [N, C, H, W]");
  check_same_device(op, features, {&weight});
  if (bias) check_same_device(op, features, {bias});
}

// The image is the top-left part of what the features cover.
inline void check_tail_image(const char* op, const Tensor& features, const Tensor& image,
                             const std::optional<Tensor>& valid_size) {
  check_images(op, image, image, valid_size);
  STD_TORCH_CHECK(image.size(0) == features.size(0) && image.size(1) == 3 && image.size(2) <= features.size(2) &&
                      image.size(3) <= features.size(3),
                  op, ": expected an image [N, 3, H, W] no larger than the features");
  STD_TORCH_CHECK(compute_type(image.scalar_type()) == compute_type(features.scalar_type()), op,
                  ": features and image must both be float64 or neither");
  check_same_device(op, features, {&image});
}

// Three maps [N, C, h, s w] of every s-th row of pixels and its neighbours, or nine maps [N, C, h, w] of single pixels,
// around the h x w pixels of an image [N, 3, H, W] that a nearest resize takes; three need H = s h and W = s w.
struct Samples {
  int64_t batch, height, width;  // of the samples
  int64_t step;                  // columns of a map from one sample to the next
  int64_t taps;                  // of a map's columns that a sample looks at: 3 next to each other, or its own

  Samples(const char* op, const std::vector<Tensor>& maps, const Tensor& weight, const Tensor& bias,
          const Tensor& image) {
    STD_TORCH_CHECK(maps.size() == 3 || maps.size() == 9, op, ": expected three or nine maps");
    for (const Tensor& map : maps) {
      check_tail(op, map, weight, &bias);
      check_same_device(op, maps[0], {&map});
      STD_TORCH_CHECK(map.scalar_type() == maps[0].scalar_type(), op, ": expected maps of one type");
      for (int dim = 0; dim < 4; ++dim)
        STD_TORCH_CHECK(map.size(dim) == maps[0].size(dim), op, ": expected maps of one shape");
    }
    check_images(op, image, image, std::nullopt);
    check_same_device(op, maps[0], {&image});
    STD_TORCH_CHECK(image.size(0) == maps[0].size(0) && image.size(1) == 3 &&
                        compute_type(image.scalar_type()) == compute_type(maps[0].scalar_type()),
                    op, ": expected an image [N, 3, H, W] of the maps' batch, both float64 or neither");
    batch = image.size(0);
    height = maps[0].size(2);
    taps = maps.size() == 3 ? 3 : 1;
    step = taps == 3 ? image.size(2) / height : 1;
    width = step == 0 ? 0 : maps[0].size(3) / step;
    STD_TORCH_CHECK(taps == 1 || (step > 0 && image.size(2) == step * height && image.size(3) == step * width &&
                                  maps[0].size(3) == image.size(3)),
                    op,
                    ": three maps must have the image's width, and one row for so many of the image's as divide it");
  }
};

inline void check_tail_gradient(const char* op, const Tensor& grad, const Tensor& features) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == features.size(0) && grad.size(1) == 3 &&
                      grad.size(2) <= features.size(2) && grad.size(3) <= features.size(3) &&
                      grad.scalar_type() == compute_type(features.scalar_type()),
                  op, ": expected a gradient [N, 3, H, W] of the logits, in the type of arithmetic");
  check_same_device(op, features, {&grad});
}

}  // namespace srtod
