// The reconstruction and the image, pixel by pixel: their difference, their squared error and the gradients of both.
#pragma once
#include <optional>

#include "reductions.cuh"

namespace srtod {

struct Strides {  // of [N, C, H, W], in elements
  int64_t n, c, h, w;

  Strides() = default;
  explicit Strides(const Tensor& t) : n(t.stride(0)), c(t.stride(1)), h(t.stride(2)), w(t.stride(3)) {}

  __device__ __forceinline__ int64_t at(int64_t i, uint32_t y, uint32_t x) const { return i * n + y * h + x * w; }
};

// R and I read the values: Typed<T> or AnyFloat.
template <class R, class I>
struct Images {
  R reconstruction;
  I image;
  Strides reconstruction_strides, image_strides;
  int64_t batch;
  uint32_t channels, height, width;
  bool from_logits;
  const int64_t* valid_size;  // [N, 2] (height, width) of what counts in the error; null: all

  Images() = default;
  Images(const char* op, const Tensor& reconstruction_tensor, const Tensor& image_tensor, R reconstruction, I image,
         bool from_logits, const std::optional<Tensor>& valid_size)
      : reconstruction(reconstruction),
        image(image),
        reconstruction_strides(reconstruction_tensor),
        image_strides(image_tensor),
        batch(image_tensor.size(0)),
        channels(static_cast<uint32_t>(image_tensor.size(1))),
        height(static_cast<uint32_t>(image_tensor.size(2))),
        width(static_cast<uint32_t>(image_tensor.size(3))),
        from_logits(from_logits),
        valid_size(valid_size ? valid_size->const_data_ptr<int64_t>() : nullptr) {
    STD_TORCH_CHECK(image_tensor.size(2) * image_tensor.size(3) <= 2147483647, op,
                    ": an image of more than 2^31 - 1 pixels is too large");
  }

  __host__ __device__ __forceinline__ uint32_t pixels() const { return height * width; }

  // Calls f(c, rebuilt, real) for every channel of a pixel, with the loads of three channels on their way at once.
  template <class A, class F>
  __device__ __forceinline__ void each_channel(int64_t n, uint32_t y, uint32_t x, const F& f) const {
    const int64_t r = reconstruction_strides.at(n, y, x), o = image_strides.at(n, y, x);
    for (uint32_t first = 0; first < channels; first += 3) {
      decltype(reconstruction.bits(0)) rebuilt[3];
      decltype(image.bits(0)) real[3];
#pragma unroll
      for (uint32_t k = 0; k < 3; ++k) {
        const uint32_t c = minimum(first + k, channels - 1);
        rebuilt[k] = reconstruction.bits(r + c * reconstruction_strides.c);
        real[k] = image.bits(o + c * image_strides.c);
      }
#pragma unroll
      for (uint32_t k = 0; k < 3; ++k) {
        if (first + k >= channels) break;
        const A value = reconstruction.template decode<A>(rebuilt[k]);
        f(first + k, from_logits ? sigmoid(value) : value, image.template decode<A>(real[k]));
      }
    }
  }

  // D = mean_c |I_r - I_o| of a pixel; its squared error sum_c (I_r - I_o)^2 is added to `squares`.
  template <class A>
  __device__ __forceinline__ A difference(int64_t n, uint32_t y, uint32_t x, A& squares) const {
    A sum = 0;
    each_channel<A>(n, y, x, [&](uint32_t, A rebuilt, A real) { add_difference(rebuilt - real, sum, squares); });
    return sum / static_cast<A>(channels);
  }

  // The same of a pixel whose logits are in registers.
  template <class A>
  __device__ __forceinline__ A difference(const A (&logits)[3], int64_t n, uint32_t y, uint32_t x, A& squares) const {
    A sum = 0;
#pragma unroll
    for (uint32_t c = 0; c < 3; ++c) {
      const A real = image.template at<A>(image_strides.at(n, y, x) + c * image_strides.c);
      add_difference(sigmoid(logits[c]) - real, sum, squares);
    }
    return sum / A(3);
  }

  template <class A>
  static __device__ __forceinline__ void add_difference(A d, A& sum, A& squares) {
    sum += d < A(0) ? -d : d;
    squares += d * d;
  }

  // Writes the gradient of a pixel of the reconstruction. `of_difference` = dL/dD, `squared` = 2 dL/dmse / count.
  template <class A, class Set>
  __device__ __forceinline__ void gradient(int64_t n, uint32_t y, uint32_t x, A of_difference, A squared,
                                           const Set& set) const {
    const A absolute = of_difference / static_cast<A>(channels);
    each_channel<A>(n, y, x, [&](uint32_t c, A rebuilt, A real) {
      const A slope = reconstruction_gradient(rebuilt - real, absolute, squared);
      set(c, from_logits ? slope * (rebuilt * (A(1) - rebuilt)) : slope);
    });
  }

  __device__ __forceinline__ bool is_valid(int64_t n, uint32_t y, uint32_t x) const {
    return valid_size == nullptr || (y < valid_size[2 * n] && x < valid_size[2 * n + 1]);
  }

  // How many values the error is the mean of.
  __device__ __forceinline__ double valid_values() const {
    int64_t count = batch * pixels();
    if (valid_size != nullptr) {
      count = 0;
      for (int64_t n = 0; n < batch; ++n)
        count += clamp<int64_t>(valid_size[2 * n], 0, height) * clamp<int64_t>(valid_size[2 * n + 1], 0, width);
    }
    return static_cast<double>(count * channels);
  }

  // 2 dL/dmse / count, zero without a gradient.
  template <class A>
  __device__ __forceinline__ A squared_factor(const A* grad_mse) const {
    return grad_mse == nullptr ? A(0) : A(2) * *grad_mse / static_cast<A>(valid_values());
  }
};

// `valid_size` as the kernels read it.
inline std::optional<Tensor> contiguous(const std::optional<Tensor>& valid_size) {
  if (!valid_size) return valid_size;
  return in_format(*valid_size, MemoryFormat::Contiguous);
}

using AnyImages = Images<AnyFloat, AnyFloat>;

// The mean squared error from the blocks' partial sums, added up in order by one block.
template <class A, class ImagePair>
__device__ __forceinline__ void finish_error(const double* partial, uint32_t count, const ImagePair& images,
                                             double* scratch, A* mse) {
  double total = 0;
  for (uint32_t k = threadIdx.x; k < count; k += kThreads) total += partial[k];
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) *mse = static_cast<A>(total / images.valid_values());
}

}  // namespace srtod
