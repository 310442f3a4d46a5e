// The difference map on the CPU, for its own ops and for DGFE.
#pragma once
#include "../checks.h"

namespace srtod {

// Writes D = mean_c |I_r - I_o| to `difference` [N, 1, H, W], contiguous, in the image's type or in the type of
// arithmetic. Returns the mean of (I_r - I_o)^2 over the valid pixels.
double write_difference(const Tensor& reconstruction, const Tensor& image, bool from_logits,
                        const std::optional<Tensor>& valid_size, Tensor& difference);

// A tensor of that mean, in the type of arithmetic.
Tensor mse_tensor(double mse, const Tensor& image);

// dL/dI_r from dL/dD, in either of the types that D may have, and dL/dmse.
Tensor gradient_of_reconstruction(const std::optional<Tensor>& grad_difference, const std::optional<Tensor>& grad_mse,
                                  const Tensor& reconstruction, const Tensor& image, bool from_logits,
                                  const std::optional<Tensor>& valid_size);

}  // namespace srtod
