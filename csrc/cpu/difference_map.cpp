// Difference map D and reconstruction error mean (I_r - I_o)^2 on the CPU, in one pass over both images, whatever their
// strides.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../checks.h"
#include "pages.h"
#include "rows.h"

namespace srtod {
namespace {

constexpr const char* kOp = "difference_map";
// Pixels of a row handled at a time: all channels of a tile fit the first-level cache.
constexpr int64_t kPixelTile = 512;

template <bool from_logits, class A>
SRTOD_HOST_DEVICE A value_in_unit_range(A x) {
  return from_logits ? sigmoid(x) : x;
}

// mean = D of each pixel; returns the sum of (r - image)^2. RGB, all channels in one loop: as fast as memory allows.
template <bool from_logits, class A>
SRTOD_CLONES A difference_row_rgb(const A* const* r, const A* const* image, int64_t n, A* __restrict mean) {
  const A *r0 = r[0], *r1 = r[1], *r2 = r[2], *image0 = image[0], *image1 = image[1], *image2 = image[2];
  A squares = 0;
#pragma omp simd simdlen(64 / sizeof(A)) reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) {
    PixelDifference<A> pixel;
    pixel.add(value_in_unit_range<from_logits>(r0[i]), image0[i]);
    pixel.add(value_in_unit_range<from_logits>(r1[i]), image1[i]);
    pixel.add(value_in_unit_range<from_logits>(r2[i]), image2[i]);
    mean[i] = pixel.mean(3);
    squares += pixel.squared;
  }
  return squares;
}

// The same for any number of channels.
template <bool from_logits, class A>
A difference_row(const A* const* r, const A* const* image, int64_t channels, int64_t n, A* mean) {
  if (channels == 3) return difference_row_rgb<from_logits>(r, image, n, mean);
  A squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    PixelDifference<A> pixel;
    for (int64_t c = 0; c < channels; ++c) pixel.add(value_in_unit_range<from_logits>(r[c][i]), image[c][i]);
    mean[i] = pixel.mean(channels);
    squares += pixel.squared;
  }
  return squares;
}

// grad = dL/dr of one channel from dL/dD / C and 2 dL/dmse / count, times dr/dlogit = r (1 - r) where r is from logits.
template <bool from_logits, bool of_map, bool of_error, class A>
SRTOD_HOST_DEVICE A gradient(A x, A image, A absolute, A squared) {
  const A r = value_in_unit_range<from_logits>(x);
  const A value = reconstruction_gradient(r - image, of_map, absolute, of_error, squared);
  return from_logits ? value * (r * (A(1) - r)) : value;
}

template <bool from_logits, bool of_map, bool of_error, class A>
SRTOD_CLONES void gradient_row_rgb(const A* const* x, const A* const* image, const A* __restrict grad_mean, A squared,
                                   int64_t n, A* const* grad) {
  const A *x0 = x[0], *x1 = x[1], *x2 = x[2], *image0 = image[0], *image1 = image[1], *image2 = image[2];
  A* __restrict grad0 = grad[0], * __restrict grad1 = grad[1], * __restrict grad2 = grad[2];
#pragma omp simd simdlen(64 / sizeof(A))
  for (int64_t i = 0; i < n; ++i) {
    const A absolute = grad_mean[i] * A(1.0 / 3.0);
    grad0[i] = gradient<from_logits, of_map, of_error>(x0[i], image0[i], absolute, squared);
    grad1[i] = gradient<from_logits, of_map, of_error>(x1[i], image1[i], absolute, squared);
    grad2[i] = gradient<from_logits, of_map, of_error>(x2[i], image2[i], absolute, squared);
  }
}

template <bool from_logits, bool of_map, bool of_error, class A>
void gradient_row_of(const A* const* x, const A* const* image, const A* grad_mean, A squared, int64_t channels,
                     int64_t n, A* const* grad) {
  if (channels == 3) return gradient_row_rgb<from_logits, of_map, of_error>(x, image, grad_mean, squared, n, grad);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c)
      grad[c][i] = gradient<from_logits, of_map, of_error>(x[c][i], image[c][i],
                                                           grad_mean[i] / static_cast<A>(channels), squared);
}

// As far as the loss depends on the map and on the error.
template <bool from_logits, class A>
void gradient_row(bool of_map, bool of_error, const A* const* x, const A* const* image, const A* grad_mean, A squared,
                  int64_t channels, int64_t n, A* const* grad) {
  const auto with_map =
      of_error ? gradient_row_of<from_logits, true, true, A> : gradient_row_of<from_logits, true, false, A>;
  const auto without =
      of_error ? gradient_row_of<from_logits, false, true, A> : gradient_row_of<from_logits, false, false, A>;
  (of_map ? with_map : without)(x, image, grad_mean, squared, channels, n, grad);
}

template <class T>
SRTOD_CLONES void split_rgb(const T* __restrict x, int64_t n, compute_t<T>* __restrict out) {
#pragma omp simd simdlen(64 / sizeof(compute_t<T>))
  for (int64_t i = 0; i < n; ++i) {
    out[i] = widen(x[3 * i]);
    out[kPixelTile + i] = widen(x[3 * i + 1]);
    out[2 * kPixelTile + i] = widen(x[3 * i + 2]);
  }
}

template <class T>
SRTOD_CLONES void join_rgb(const compute_t<T>* __restrict x, int64_t n, T* __restrict out) {
#pragma omp simd simdlen(64 / sizeof(compute_t<T>))
  for (int64_t i = 0; i < n; ++i) {
    narrow(x[i], out[3 * i]);
    narrow(x[kPixelTile + i], out[3 * i + 1]);
    narrow(x[2 * kPixelTile + i], out[3 * i + 2]);
  }
}

template <class T>
struct Image {  // [N, C, H, W] with any strides
  T* data;
  int64_t channels, stride_n, stride_c, stride_h, stride_w;

  T* row(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return data + n * stride_n + c * stride_c + y * stride_h + x * stride_w;
  }
  bool is_interleaved_rgb() const { return channels == 3 && stride_c == 1 && stride_w == 3; }
};

struct Size {
  int64_t batch, channels, height, width;

  explicit Size(const Tensor& t) : batch(t.size(0)), channels(t.size(1)), height(t.size(2)), width(t.size(3)) {}

  int64_t tiles() const { return batch * height * tiles_of_row(); }
  int64_t tiles_of_row() const { return (width + kPixelTile - 1) / kPixelTile; }
};

// Where tile `index` of all `size.tiles()` begins, and how many pixels it has.
struct Place {
  int64_t n, y, x, count;

  Place(int64_t index, const Size& size)
      : n(index / size.tiles_of_row() / size.height),
        y(index / size.tiles_of_row() % size.height),
        x(index % size.tiles_of_row() * kPixelTile),
        count(std::min(kPixelTile, size.width - x)) {}
};

constexpr int64_t kTilesOfTask = 8;  // the fewest that are worth a thread

// Images whose rows follow one another in all tensors count as one long row, so that tiles need not end with rows.
template <class... Images>
Size as_long_row(const Size& size, const Images&... images) {
  Size flat = size;
  if (((images.stride_h == size.width * images.stride_w) && ...)) {
    flat.width = size.height * size.width;
    flat.height = 1;
  }
  return flat;
}

// A tile of pixels of all channels, as rows of A: where they are stored, or converted.
template <class T, class A = compute_t<std::remove_const_t<T>>>
struct Tile {
  std::vector<A> scratch;
  std::vector<const A*> rows;  // of each channel

  explicit Tile(int64_t channels) : scratch(channels * kPixelTile), rows(channels) {}

  void load(const Image<T>& image, const Place& at) {
    if (image.is_interleaved_rgb()) {
      split_rgb(image.row(at.n, 0, at.y, at.x), at.count, scratch.data());
      for (int64_t c = 0; c < 3; ++c) rows[c] = scratch.data() + c * kPixelTile;
      return;
    }
    for (int64_t c = 0; c < image.channels; ++c)
      rows[c] = load_row(image.row(at.n, c, at.y, at.x), image.stride_w, at.count, scratch.data() + c * kPixelTile);
  }

  void advance(int64_t pixels) {
    for (const A*& row : rows) row += pixels;
  }
};

template <class T>
Image<const T> image_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.size(1), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// The valid pixels of each image (top-left rectangle), clamped to the image; all of them without `valid_size`.
struct Valid {
  std::vector<int64_t> heights, widths;  // empty if all are valid
  int64_t pixels = 0;

  Valid(const std::optional<Tensor>& valid_size, const Size& size) : pixels(size.batch * size.height * size.width) {
    if (!valid_size) return;
    const Tensor sizes = in_format(*valid_size, MemoryFormat::Contiguous);
    const int64_t* data = sizes.const_data_ptr<int64_t>();
    pixels = 0;
    for (int64_t n = 0; n < size.batch; ++n) {
      heights.push_back(clamp<int64_t>(data[2 * n], 0, size.height));
      widths.push_back(clamp<int64_t>(data[2 * n + 1], 0, size.width));
      pixels += heights[n] * widths[n];
    }
  }

  // How many of a tile's pixels are valid: the first ones.
  int64_t of(const Place& at) const {
    if (heights.empty()) return at.count;
    return at.y < heights[at.n] ? clamp<int64_t>(widths[at.n] - at.x, 0, at.count) : 0;
  }
};

// Writes tiles [begin, end) of the difference map; the sum of squares over a tile's valid pixels goes to squares[tile].
template <bool from_logits, class R, class I>
void forward_tiles(const Image<const R>& r, const Image<const I>& o, const Size& size, const Valid& valid,
                   int64_t begin, int64_t end, I* difference, double* squares) {
  using A = compute_t<R>;
  Tile<const R> rebuilt(size.channels);
  Tile<const I> real(size.channels);
  A scratch[kPixelTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const Place at(tile, size);
    const int64_t valid_count = valid.of(at);
    I* destination = difference + (at.n * size.height + at.y) * size.width + at.x;
    A* mean = row_for_store(destination, scratch);
    rebuilt.load(r, at);
    real.load(o, at);
    squares[tile - begin] =
        difference_row<from_logits>(rebuilt.rows.data(), real.rows.data(), size.channels, valid_count, mean);
    rebuilt.advance(valid_count);
    real.advance(valid_count);  // the padding counts in the map, not in the error
    difference_row<from_logits>(rebuilt.rows.data(), real.rows.data(), size.channels, at.count - valid_count,
                                mean + valid_count);
    store_row(mean, at.count, destination);
  }
}

// Writes the difference map; returns the sum of squares over valid pixels.
template <bool from_logits, class R, class I>
double forward(const Tensor& reconstruction, const Tensor& image, const Valid& valid, I* difference) {
  const Image<const R> r = image_of<R>(reconstruction);
  const Image<const I> o = image_of<I>(image);
  const Size size = valid.heights.empty() ? as_long_row(Size(image), r, o) : Size(image);
  std::vector<double> squares(size.tiles());  // partial sums, added up in order
  torch::stable::parallel_for(0, size.tiles(), kTilesOfTask, [&](int64_t begin, int64_t end) {
    forward_tiles<from_logits>(r, o, size, valid, begin, end, difference, &squares[begin]);
  });
  double total = 0;
  for (double s : squares) total += s;
  return total;
}

template <bool from_logits, class R, class I>
void backward(const std::optional<Tensor>& grad_difference, const std::optional<Tensor>& grad_mse,
              const Tensor& reconstruction, const Tensor& image, const Valid& valid, Tensor& grad) {
  using A = compute_t<R>;
  const Image<const R> r = image_of<R>(reconstruction);
  const Image<const I> o = image_of<I>(image);
  const Image<R> out{
      grad.mutable_data_ptr<R>(), grad.size(1), grad.stride(0), grad.stride(1), grad.stride(2), grad.stride(3)};
  const Image<const I> gd = grad_difference ? image_of<I>(*grad_difference) : Image<const I>{};
  Size size(image);
  if (valid.heights.empty()) size = grad_difference ? as_long_row(size, r, o, out, gd) : as_long_row(size, r, o, out);
  const bool of_map = grad_difference.has_value();
  const A squared =
      grad_mse ? A(2) * *grad_mse->const_data_ptr<A>() / static_cast<A>(valid.pixels * size.channels) : A(0);
  torch::stable::parallel_for(0, size.tiles(), kTilesOfTask, [&](int64_t begin, int64_t end) {
    Tile<const R> rebuilt(size.channels);
    Tile<const I> real(size.channels);
    std::vector<A> scratch(size.channels * kPixelTile);
    std::vector<A*> rows(size.channels);
    A grad_mean[kPixelTile] = {};
    for (int64_t tile = begin; tile < end; ++tile) {
      const Place at(tile, size);
      const int64_t valid_count = valid.of(at);
      rebuilt.load(r, at);
      real.load(o, at);
      if (grad_difference) widen_row(gd.row(at.n, 0, at.y, at.x), gd.stride_w, at.count, grad_mean);
      for (int64_t c = 0; c < size.channels; ++c) {
        rows[c] = &scratch[c * kPixelTile];
        if (out.stride_w == 1) rows[c] = row_for_store(out.row(at.n, c, at.y, at.x), rows[c]);
      }
      gradient_row<from_logits>(of_map, grad_mse.has_value(), rebuilt.rows.data(), real.rows.data(), grad_mean, squared,
                                size.channels, valid_count, rows.data());
      if (valid_count < at.count) {
        rebuilt.advance(valid_count);
        real.advance(valid_count);
        for (A*& begin_of_padding : rows) begin_of_padding += valid_count;
        gradient_row<from_logits>(of_map, false, rebuilt.rows.data(), real.rows.data(), grad_mean + valid_count, A(0),
                                  size.channels, at.count - valid_count, rows.data());
        for (A*& begin_of_row : rows) begin_of_row -= valid_count;
      }
      if (out.is_interleaved_rgb()) {
        join_rgb(scratch.data(), at.count, out.row(at.n, 0, at.y, at.x));
        continue;
      }
      for (int64_t c = 0; c < size.channels; ++c) {
        R* destination = out.row(at.n, c, at.y, at.x);
        if (out.stride_w == 1)
          store_row(rows[c], at.count, destination);
        else
          for (int64_t i = 0; i < at.count; ++i) narrow(rows[c][i], destination[i * out.stride_w]);
      }
    }
  });
}

// Writes D to `difference` [N, 1, H, W], contiguous. Returns the mean of (I_r - I_o)^2 over the valid pixels.
double write_difference(const Tensor& reconstruction, const Tensor& image, bool from_logits,
                        const std::optional<Tensor>& valid_size, Tensor& difference) {
  const Valid valid(valid_size, Size(image));
  double squares = 0;
  dispatch_images(kOp, reconstruction, image, [&](auto r, auto o) {
    using R = decltype(r);
    using I = decltype(o);
    I* out = difference.mutable_data_ptr<I>();
    squares = from_logits ? forward<true, R, I>(reconstruction, image, valid, out)
                          : forward<false, R, I>(reconstruction, image, valid, out);
  });
  return squares / static_cast<double>(valid.pixels * image.size(1));
}

// The image's type is the wider one, hence the difference map's.
Tensor empty_difference(const Tensor& image) {
  return empty({image.size(0), 1, image.size(2), image.size(3)}, image.scalar_type(), image);
}

Tensor difference_map_cpu(const Tensor& reconstruction, const Tensor& image, bool from_logits) {
  check_images(kOp, reconstruction, image, std::nullopt);
  Tensor difference = empty_difference(image);
  write_difference(reconstruction, image, from_logits, std::nullopt, difference);
  return difference;
}

std::tuple<Tensor, Tensor> reconstruction_difference_cpu(const Tensor& reconstruction, const Tensor& image,
                                                         bool from_logits, std::optional<Tensor> valid_size) {
  check_images(kOp, reconstruction, image, valid_size);
  Tensor difference = empty_difference(image);
  const double mean = write_difference(reconstruction, image, from_logits, valid_size, difference);
  Tensor mse = empty({}, compute_type(image.scalar_type()), image);
  dispatch_compute(mse.scalar_type(), [&](auto tag) {
    using A = decltype(tag);
    *mse.mutable_data_ptr<A>() = static_cast<A>(mean);
  });
  return {difference, mse};
}

Tensor reconstruction_difference_backward_cpu(std::optional<Tensor> grad_difference, std::optional<Tensor> grad_mse,
                                              const Tensor& reconstruction, const Tensor& image, bool from_logits,
                                              std::optional<Tensor> valid_size) {
  check_images(kOp, reconstruction, image, valid_size);
  check_image_gradients(kOp, image, grad_difference, grad_mse);
  Tensor grad = empty({image.size(0), image.size(1), image.size(2), image.size(3)}, reconstruction.scalar_type(),
                      reconstruction, memory_format_of(reconstruction));
  use_huge_pages(grad);
  const Valid valid(valid_size, Size(image));
  dispatch_images(kOp, reconstruction, image, [&](auto r, auto o) {
    using R = decltype(r);
    using I = decltype(o);
    if (from_logits)
      backward<true, R, I>(grad_difference, grad_mse, reconstruction, image, valid, grad);
    else
      backward<false, R, I>(grad_difference, grad_mse, reconstruction, image, valid, grad);
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
