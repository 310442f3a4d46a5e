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

}  // namespace srtod
