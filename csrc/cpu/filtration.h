// Filtration on the CPU, for its own op and for DGFE.
#pragma once
#include "../scalar_math.h"
#include "../tensors.h"

namespace srtod {

struct FiltrationOptions {
  int64_t height, width;  // of the filter
  Resize resize;
  Surrogate surrogate;
  double alpha;
};

// Writes the filter's values [N, height * width], in the type of arithmetic A of `difference` [N, 1, H, W].
template <class A>
void filtration_values(const Tensor& difference, const Tensor& threshold, const FiltrationOptions& options, A* filter);

// From the gradient of the filter [N, height * width]: writes that of the difference (where `grad_difference` is given,
// same shape and type as `difference`, contiguous) and returns that of the threshold.
template <class A>
A filtration_gradients(const A* grad_filter, const Tensor& difference, const Tensor& threshold,
                       const FiltrationOptions& options, std::optional<Tensor>& grad_difference);

// The one value of a tensor of any floating type.
template <class A>
A scalar_value(const Tensor& t) {
  A value = 0;
  dispatch_floating(t.scalar_type(), "threshold",
                    [&](auto tag) { value = static_cast<A>(*t.const_data_ptr<decltype(tag)>()); });
  return value;
}

// A tensor of one value, of the type and on the device of `like`.
Tensor scalar_tensor(double value, const Tensor& like);

}  // namespace srtod
