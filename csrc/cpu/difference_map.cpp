// Difference map and reconstruction error on the CPU: D = mean_c |I_r - I_o| (SR-TOD, Eq. 3) and mean (I_r - I_o)^2, in
// one pass over both images, whatever their strides.
#include <vector>

#include "pages.h"
#include "rows.h"

namespace srtod {
namespace {

constexpr const char* kOp = "difference_map";
constexpr int64_t kPixelTile = 512;

template <class A>
SRTOD_CLONES void sigmoid_row(const A* x, int64_t n, A* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = sigmoid(x[i]);
}

// absolute += |r - i|; returns the sum of (r - i)^2 over the first `valid` pixels
template <class A>
SRTOD_CLONES A accumulate_row(const A* __restrict r, const A* __restrict image, int64_t n, int64_t valid,
                              A* __restrict absolute) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < valid; ++i) {
    const A d = r[i] - image[i];
    absolute[i] += d < A(0) ? -d : d;
    sum += d * d;
  }
#pragma omp simd
  for (int64_t i = valid; i < n; ++i) {
    const A d = r[i] - image[i];
    absolute[i] += d < A(0) ? -d : d;
  }
  return sum;
}

template <class A>
SRTOD_CLONES void multiply_row(A* x, A factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// grad = dL/dr, times dr/dlogit = r (1 - r) where r came from logits
template <class A>
SRTOD_CLONES void gradient_row(const A* __restrict r, const A* __restrict image, const A* __restrict grad_absolute,
                               A squared, int64_t n, int64_t valid, bool from_logits, A* __restrict grad) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const A value = reconstruction_gradient(r[i] - image[i], grad_absolute[i], i < valid ? squared : A(0));
    grad[i] = from_logits ? value * (r[i] * (A(1) - r[i])) : value;
  }
}

template <class T>
struct Image {  // [N, C, H, W] with any strides
  T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;

  T* row(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return data + n * stride_n + c * stride_c + y * stride_h + x * stride_w;
  }
};

template <class T>
Image<const T> image_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

struct Size {
  int64_t batch, channels, height, width;

  explicit Size(const Tensor& t) : batch(t.size(0)), channels(t.size(1)), height(t.size(2)), width(t.size(3)) {}
};

// The valid pixels of each image (top-left rectangle), clamped to the image; all of them without `valid_size`.
struct Valid {
  std::vector<int64_t> heights, widths;
  int64_t pixels = 0;

  Valid(const std::optional<Tensor>& valid_size, const Size& size)
      : heights(size.batch, size.height), widths(size.batch, size.width) {
    if (valid_size) {
      const Tensor sizes = in_format(*valid_size, MemoryFormat::Contiguous);
      const int64_t* data = sizes.const_data_ptr<int64_t>();
      for (int64_t n = 0; n < size.batch; ++n) {
        heights[n] = clamp<int64_t>(data[2 * n], 0, size.height);
        widths[n] = clamp<int64_t>(data[2 * n + 1], 0, size.width);
      }
    }
    for (int64_t n = 0; n < size.batch; ++n) pixels += heights[n] * widths[n];
  }

  // How many of the `n` pixels from (y, x) on are valid.
  int64_t in_row(int64_t image, int64_t y, int64_t x, int64_t n) const {
    return y < heights[image] ? clamp<int64_t>(widths[image] - x, 0, n) : 0;
  }
};

// Calls f(R{}, I{}) with the storage types of reconstruction and image.
template <class F>
void dispatch_images(const Tensor& reconstruction, const Tensor& image, F&& f) {
  STD_TORCH_CHECK(
      image.scalar_type() == reconstruction.scalar_type() ||
          (image.scalar_type() == ScalarType::Float && compute_type(reconstruction.scalar_type()) == ScalarType::Float),
      kOp, ": the image must have the reconstruction's type, or be float32 beside a half-precision reconstruction");
  dispatch_floating(reconstruction.scalar_type(), kOp, [&](auto tag) {
    using R = decltype(tag);
    if (image.scalar_type() == reconstruction.scalar_type())
      f(R{}, R{});
    else if constexpr (sizeof(R) == 2)
      f(R{}, float{});
  });
}

void check(const Tensor& reconstruction, const Tensor& image, const std::optional<Tensor>& valid_size) {
  STD_TORCH_CHECK(reconstruction.dim() == 4 && image.dim() == 4, kOp, ": expected images [N, C, H, W]");
  for (int dim = 0; dim < 4; ++dim)
    STD_TORCH_CHECK(reconstruction.size(dim) == image.size(dim) && (dim == 0 || image.size(dim) > 0), kOp,
                    ": expected two images of the same shape, with pixels");
  check_same_device(kOp, reconstruction, {&image});
  if (valid_size)
    STD_TORCH_CHECK(valid_size->numel() == 2 * image.size(0) && valid_size->scalar_type() == ScalarType::Long, kOp,
                    ": expected valid_size int64 [N, 2]");
}

// The reconstruction's values in [0, 1] of one row of pixels, in `scratch` or where they are stored.
template <class R, class A = compute_t<R>>
const A* reconstruction_row(const R* x, int64_t stride, int64_t n, bool from_logits, A* scratch) {
  const A* row = load_row(x, stride, n, scratch);
  if (!from_logits) return row;
  sigmoid_row(row, n, scratch);
  return scratch;
}

// Writes the difference map; returns the sum of squares over valid pixels.
template <class R, class I, class D>
double forward(const Tensor& reconstruction, const Tensor& image, bool from_logits, const Valid& valid, D* difference) {
  using A = compute_t<R>;
  const Size size(image);
  const Image<const R> r = image_of<R>(reconstruction);
  const Image<const I> o = image_of<I>(image);
  std::vector<double> squares(size.batch * size.height);  // a partial sum for each row, added up in order
  torch::stable::parallel_for(
      0, size.batch * size.height, std::max<int64_t>(1, 8192 / size.width), [&](int64_t begin, int64_t end) {
        A scratch_r[kPixelTile], scratch_o[kPixelTile], absolute[kPixelTile];
        for (int64_t k = begin; k < end; ++k) {
          const int64_t n = k / size.height, y = k % size.height;
          double sum = 0;
          for (int64_t x = 0; x < size.width; x += kPixelTile) {
            const int64_t count = std::min(kPixelTile, size.width - x), valid_count = valid.in_row(n, y, x, count);
            std::fill(absolute, absolute + count, A(0));
            for (int64_t c = 0; c < size.channels; ++c)
              sum += accumulate_row(reconstruction_row(r.row(n, c, y, x), r.stride_w, count, from_logits, scratch_r),
                                    load_row(o.row(n, c, y, x), o.stride_w, count, scratch_o), count, valid_count,
                                    absolute);
            multiply_row(absolute, A(1) / static_cast<A>(size.channels), count);
            D* out = difference + k * size.width + x;
            for (int64_t i = 0; i < count; ++i) narrow(absolute[i], out[i]);
          }
          squares[k] = sum;
        }
      });
  double total = 0;
  for (double s : squares) total += s;
  return total;
}

struct Forward {
  Tensor difference;
  double squares;
};

Forward forward(const Tensor& reconstruction, const Tensor& image, bool from_logits, const Valid& valid) {
  Forward out{empty({image.size(0), 1, image.size(2), image.size(3)}, image.scalar_type(), image), 0};
  dispatch_images(reconstruction, image, [&](auto r, auto o) {
    using R = decltype(r);
    using I = decltype(o);  // the image's type is the wider one, hence the difference map's
    out.squares = forward<R, I>(reconstruction, image, from_logits, valid, out.difference.mutable_data_ptr<I>());
  });
  return out;
}

Tensor difference_map_cpu(const Tensor& reconstruction, const Tensor& image, bool from_logits) {
  check(reconstruction, image, std::nullopt);
  return forward(reconstruction, image, from_logits, Valid(std::nullopt, Size(image))).difference;
}

std::tuple<Tensor, Tensor> reconstruction_difference_cpu(const Tensor& reconstruction, const Tensor& image,
                                                         bool from_logits, std::optional<Tensor> valid_size) {
  check(reconstruction, image, valid_size);
  const Valid valid(valid_size, Size(image));
  const Forward out = forward(reconstruction, image, from_logits, valid);
  Tensor mse = empty({}, compute_type(image.scalar_type()), image);
  dispatch_compute(mse.scalar_type(), [&](auto tag) {
    using A = decltype(tag);
    *mse.mutable_data_ptr<A>() = static_cast<A>(out.squares / static_cast<double>(valid.pixels * image.size(1)));
  });
  return {out.difference, mse};
}

template <class R, class I>
void backward(const std::optional<Tensor>& grad_difference, const std::optional<Tensor>& grad_mse,
              const Tensor& reconstruction, const Tensor& image, bool from_logits, const Valid& valid, Tensor& grad) {
  using A = compute_t<R>;
  const Size size(image);
  const Image<const R> r = image_of<R>(reconstruction);
  const Image<const I> o = image_of<I>(image);
  const Image<const I> gd = grad_difference ? image_of<I>(*grad_difference) : Image<const I>{};
  const Image<R> out{grad.mutable_data_ptr<R>(), grad.stride(0), grad.stride(1), grad.stride(2), grad.stride(3)};
  const A squared =
      grad_mse ? A(2) * *grad_mse->const_data_ptr<A>() / static_cast<A>(valid.pixels * size.channels) : A(0);
  torch::stable::parallel_for(
      0, size.batch * size.height, std::max<int64_t>(1, 8192 / size.width), [&](int64_t begin, int64_t end) {
        A scratch_r[kPixelTile], scratch_o[kPixelTile], absolute[kPixelTile] = {}, result[kPixelTile];
        for (int64_t k = begin; k < end; ++k) {
          const int64_t n = k / size.height, y = k % size.height;
          for (int64_t x = 0; x < size.width; x += kPixelTile) {
            const int64_t count = std::min(kPixelTile, size.width - x), valid_count = valid.in_row(n, y, x, count);
            if (grad_difference) {
              widen_row(gd.row(n, 0, y, x), gd.stride_w, count, absolute);
              multiply_row(absolute, A(1) / static_cast<A>(size.channels), count);
            }
            for (int64_t c = 0; c < size.channels; ++c) {
              gradient_row(reconstruction_row(r.row(n, c, y, x), r.stride_w, count, from_logits, scratch_r),
                           load_row(o.row(n, c, y, x), o.stride_w, count, scratch_o), absolute, squared, count,
                           valid_count, from_logits, result);
              R* destination = out.row(n, c, y, x);
              for (int64_t i = 0; i < count; ++i) narrow(result[i], destination[i * out.stride_w]);
            }
          }
        }
      });
}

Tensor reconstruction_difference_backward_cpu(std::optional<Tensor> grad_difference, std::optional<Tensor> grad_mse,
                                              const Tensor& reconstruction, const Tensor& image, bool from_logits,
                                              std::optional<Tensor> valid_size) {
  check(reconstruction, image, valid_size);
  if (grad_difference)
    STD_TORCH_CHECK(grad_difference->dim() == 4 && grad_difference->size(0) == image.size(0) &&
                        grad_difference->size(1) == 1 && grad_difference->size(2) == image.size(2) &&
                        grad_difference->size(3) == image.size(3) &&
                        grad_difference->scalar_type() == image.scalar_type(),
                    kOp, ": expected a gradient [N, 1, H, W] of the difference map's type");
  if (grad_mse)
    STD_TORCH_CHECK(grad_mse->numel() == 1 && grad_mse->scalar_type() == compute_type(image.scalar_type()), kOp,
                    ": expected a gradient of one element for the mean squared error");
  Tensor grad = empty({image.size(0), image.size(1), image.size(2), image.size(3)}, reconstruction.scalar_type(),
                      reconstruction, memory_format_of(reconstruction));
  use_huge_pages(grad);
  const Valid valid(valid_size, Size(image));
  dispatch_images(reconstruction, image, [&](auto r, auto o) {
    backward<decltype(r), decltype(o)>(grad_difference, grad_mse, reconstruction, image, from_logits, valid, grad);
  });
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, CPU, m) {
  m.impl("difference_map", TORCH_BOX(&difference_map_cpu));
  m.impl("reconstruction_difference", TORCH_BOX(&reconstruction_difference_cpu));
  m.impl("_reconstruction_difference_backward", TORCH_BOX(&reconstruction_difference_backward_cpu));
}

}  // namespace srtod
