// Tensors of torch's stable ABI: their types, layouts and allocation.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <initializer_list>
#include <optional>
#include <type_traits>

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

}  // namespace srtod
