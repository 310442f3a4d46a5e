// The difference map on the CPU, for its own ops and for DGFE.
#pragma once
#include "../checks.h"

namespace srtod {

// Writes D = mean_c |I_r - I_o| to `difference` [N, 1, H, W], contiguous, in the image's type or in the type of
// arithmetic. Returns the mean of (I_r - I_o)^2 over the valid pixels.
double write_difference(const Tensor& reconstruction, const Tensor& image, bool from_logits,
                        const std::optional<Tensor>& valid_size, Tensor& difference);

// The same by rows: for an op that computes the logits [N, 3, H, W], contiguous and in the type of arithmetic, row by
// row.
class DifferenceRows {
 public:
  DifferenceRows(const Tensor& logits, const Tensor& image, const std::optional<Tensor>& valid_size, Tensor& difference)
      : logits_(logits), image_(image), valid_size_(valid_size), difference_(difference) {}

  // Writes rows [begin, end) of D of image n, from logits; returns the sum of (I_r - I_o)^2 over their valid pixels.
  double write(int64_t n, int64_t begin, int64_t end) const;
  int64_t valid_pixels() const;

 private:
  const Tensor &logits_, &image_;
  const std::optional<Tensor>& valid_size_;
  Tensor& difference_;
};

// A tensor of that mean, in the type of arithmetic.
Tensor mse_tensor(double mse, const Tensor& image);

// dL/dI_r from dL/dD, in either of the types that D may have, and dL/dmse.
Tensor gradient_of_reconstruction(const std::optional<Tensor>& grad_difference, const std::optional<Tensor>& grad_mse,
                                  const Tensor& reconstruction, const Tensor& image, bool from_logits,
                                  const std::optional<Tensor>& valid_size);

}  // namespace srtod
