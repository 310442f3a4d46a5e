// DGFE on the CPU, in two passes over P2 forward (pool, apply) and two backward (sums over channels and pixels, then
// the gradient).
#include <torch/csrc/stable/library.h>

#include <limits>
#include <vector>

#include "../checks.h"
#include "channel_reweighting.h"
#include "filtration.h"
#include "pages.h"
#include "rows.h"

namespace srtod {
namespace {

constexpr const char* kOp = "dgfe";

struct Shape {
  int64_t batch, channels, pixels;

  explicit Shape(const Tensor& features)
      : batch(features.size(0)), channels(features.size(1)), pixels(features.size(2) * features.size(3)) {}
};

// P2' = P2 * (s f). Planes are taken last to first: what the pooling read last may still be in the cache.
template <class T, class A = compute_t<T>>
void apply_contiguous(const T* x, const A* s, const A* f, const Shape& shape, T* y) {
  torch::stable::parallel_for(0, shape.batch * shape.channels, std::max<int64_t>(1, 16384 / shape.pixels),
                              [&](int64_t begin, int64_t end) {
                                A scratch_x[kTile], scratch_y[kTile];
                                for (int64_t plane = end - 1; plane >= begin; --plane) {
                                  const A* filter = f + plane / shape.channels * shape.pixels;
                                  for (int64_t p = 0; p < shape.pixels; p += kTile) {
                                    const int64_t n = std::min(kTile, shape.pixels - p), k = plane * shape.pixels + p;
                                    A* row = row_for_store(y + k, scratch_y);
                                    scale_row(load_row(x + k, 1, n, scratch_x), filter + p, s[plane], n, row);
                                    store_row(row, n, y + k);
                                  }
                                }
                              });
}

template <class T, class A = compute_t<T>>
void apply_channels_last(const T* x, const A* s, const A* f, const Shape& shape, T* y) {
  const int64_t channels = shape.channels;
  torch::stable::parallel_for(0, shape.batch * shape.pixels, std::max<int64_t>(1, 16384 / channels),
                              [&](int64_t begin, int64_t end) {
                                std::vector<A> scratch_x(channels), scratch_y(channels);
                                for (int64_t p = end - 1; p >= begin; --p) {
                                  A* row = row_for_store(y + p * channels, scratch_y.data());
                                  scale_row(load_row(x + p * channels, 1, channels, scratch_x.data()),
                                            s + p / shape.pixels * channels, f[p], channels, row);
                                  store_row(row, channels, y + p * channels);
                                }
                              });
}

template <class T, class A = compute_t<T>>
void apply(const Tensor& features, MemoryFormat format, const Tensor& weights, const A* filter, Tensor& out) {
  const Shape shape(features);
  const A* s = weights.const_data_ptr<A>();
  if (format == MemoryFormat::ChannelsLast)
    apply_channels_last(features.const_data_ptr<T>(), s, filter, shape, out.mutable_data_ptr<T>());
  else
    apply_contiguous(features.const_data_ptr<T>(), s, filter, shape, out.mutable_data_ptr<T>());
}

void check(const char* op, const Tensor& features, const Tensor& difference, const Tensor& threshold, const Mlp& mlp) {
  check_maps(op, features, difference, threshold);
  check_mlp(op, features, mlp.weight1, mlp.bias1, mlp.weight2, mlp.bias2);
  check_same_device(op, features, {&difference, &threshold, &mlp.weight1, &mlp.bias1, &mlp.weight2, &mlp.bias2});
}

struct Kept {  // for the backward pass
  Tensor filter;
  ChannelWeights channels;
  Pooled pooled;
};

// Pools `features`, computes the channel weights and the filter, and writes the enhanced map to `out` (which may be
// `features`).
Kept run(const char* op, const Tensor& features, MemoryFormat format, const Tensor& difference, const Tensor& threshold,
         const Mlp& mlp, Resize resize, Tensor& out) {
  const Pooled pooled = pool(features, format);
  const ChannelWeights channels = channel_weights(pooled, mlp);
  const FiltrationOptions options{features.size(2), features.size(3), resize, Surrogate::none, 1};
  Tensor filter =
      empty({features.size(0), 1, options.height, options.width}, compute_type(features.scalar_type()), features);
  dispatch_floating(features.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    auto* f = filter.mutable_data_ptr<compute_t<T>>();
    filtration_values(difference, threshold, options, f);
    apply<T>(features, format, channels.weights, f, out);
  });
  return {filter, channels, pooled};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dgfe_cpu(
    const Tensor& features, const Tensor& difference, const Tensor& threshold, const Tensor& weight1,
    const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, int64_t resize, int64_t, double) {
  const Mlp mlp{weight1, bias1, weight2, bias2};
  check(kOp, features, difference, threshold, mlp);
  const MemoryFormat format = memory_format_of(features);
  Tensor out = empty({features.size(0), features.size(1), features.size(2), features.size(3)}, features.scalar_type(),
                     features, format);
  use_huge_pages(out);
  const Kept kept = run(kOp, in_format(features, format), format, difference, threshold, mlp, Resize(resize), out);
  return {out,
          kept.filter,
          kept.channels.weights,
          kept.pooled.average,
          kept.pooled.maximum,
          kept.pooled.argmax,
          kept.channels.hidden};
}

void dgfe_inplace_cpu(Tensor features, const Tensor& difference, const Tensor& threshold, const Tensor& weight1,
                      const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, int64_t resize) {
  const char* op = "dgfe_";
  const Mlp mlp{weight1, bias1, weight2, bias2};
  check(op, features, difference, threshold, mlp);
  STD_TORCH_CHECK(features.is_contiguous() || is_channels_last(features), op,
                  ": needs features laid out as contiguous or channels_last");
  run(op, features, memory_format_of(features), difference, threshold, mlp, Resize(resize), features);
}

// --- backward: with L the loss, g = dL/dP2', s the channel weights, f the filter
// ---------------------------------------
//   dL/df[n,p] = sum_c g x s      dL/ds[n,c] = sum_p g x f
//   dL/dx = g s f + dL/davg / (h w) + [p = argmax] dL/dmax, where avg and max get their gradients from s by the MLP

constexpr int64_t kSumTile = 4096;         // pixels (NCHW) of one task; fixed, so that sums are repeatable
constexpr int64_t kSumElements = 1 << 16;  // elements (channels_last) of one task

template <class T, class A = compute_t<T>>
void sums_contiguous(const T* g, const T* x, const A* s, const A* f, const Shape& shape, A* grad_filter,
                     A* grad_weights) {
  const int64_t tiles = (shape.pixels + kSumTile - 1) / kSumTile, channels = shape.channels;
  std::vector<A> partial(shape.batch * tiles * channels);
  torch::stable::parallel_for(0, shape.batch * tiles, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch_g(kSumTile), scratch_x(kSumTile);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / tiles, p = task % tiles * kSumTile, count = std::min(kSumTile, shape.pixels - p);
      A* to_filter = grad_filter + n * shape.pixels + p;
      std::fill(to_filter, to_filter + count, A(0));
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t k = (n * channels + c) * shape.pixels + p;
        partial[task * channels + c] =
            backward_sums_row(load_row(g + k, 1, count, scratch_g.data()), load_row(x + k, 1, count, scratch_x.data()),
                              f + n * shape.pixels + p, s[n * channels + c], count, to_filter);
      }
    }
  });
  for (int64_t k = 0; k < shape.batch * tiles * channels; ++k)
    grad_weights[k / (tiles * channels) * channels + k % channels] += partial[k];
}

template <class T, class A = compute_t<T>>
void sums_channels_last(const T* g, const T* x, const A* s, const A* f, const Shape& shape, A* grad_filter,
                        A* grad_weights) {
  const int64_t channels = shape.channels, block = std::max<int64_t>(1, kSumElements / channels);
  const int64_t blocks = (shape.pixels + block - 1) / block;
  std::vector<A> partial(shape.batch * blocks * channels, A(0));
  torch::stable::parallel_for(0, shape.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch_g(channels), scratch_x(channels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / blocks, first = task % blocks * block;
      for (int64_t p = first; p < std::min(first + block, shape.pixels); ++p) {
        const int64_t k = n * shape.pixels + p;
        grad_filter[k] = backward_sums_pixel(load_row(g + k * channels, 1, channels, scratch_g.data()),
                                             load_row(x + k * channels, 1, channels, scratch_x.data()),
                                             s + n * channels, f[k], channels, &partial[task * channels]);
      }
    }
  });
  for (int64_t k = 0; k < shape.batch * blocks * channels; ++k)
    grad_weights[k / (blocks * channels) * channels + k % channels] += partial[k];
}

template <class T, class A = compute_t<T>>
void gradient_contiguous(const T* g, const A* s, const A* f, const A* constant, const A* grad_maximum,
                         const int64_t* argmax, const Shape& shape, T* grad) {
  torch::stable::parallel_for(
      0, shape.batch * shape.channels, std::max<int64_t>(1, 16384 / shape.pixels), [&](int64_t begin, int64_t end) {
        A scratch_g[kTile], scratch_y[kTile];
        for (int64_t plane = end - 1; plane >= begin; --plane) {
          const A* filter = f + plane / shape.channels * shape.pixels;
          for (int64_t p = 0; p < shape.pixels; p += kTile) {
            const int64_t n = std::min(kTile, shape.pixels - p), k = plane * shape.pixels + p;
            A* row = row_for_store(grad + k, scratch_y);
            scale_shift_row(load_row(g + k, 1, n, scratch_g), filter + p, s[plane], constant[plane], n, row);
            const int64_t at = argmax[plane] - p;
            if (at >= 0 && at < n) row[at] += grad_maximum[plane];
            store_row(row, n, grad + k);
          }
        }
      });
}

template <class T, class A = compute_t<T>>
void gradient_channels_last(const T* g, const A* s, const A* f, const A* constant, const A* grad_maximum,
                            const int64_t* argmax, const Shape& shape, T* grad) {
  const int64_t channels = shape.channels;
  torch::stable::parallel_for(0, shape.batch * shape.pixels, std::max<int64_t>(1, 16384 / channels),
                              [&](int64_t begin, int64_t end) {
                                std::vector<A> scratch_g(channels), scratch_y(channels);
                                for (int64_t p = end - 1; p >= begin; --p) {
                                  const int64_t n = p / shape.pixels;
                                  A* row = row_for_store(grad + p * channels, scratch_y.data());
                                  scale_shift_pixel(load_row(g + p * channels, 1, channels, scratch_g.data()),
                                                    s + n * channels, f[p], constant + n * channels, channels, row);
                                  store_row(row, channels, grad + p * channels);
                                }
                              });
  // The arg-max pixels again, so that each is rounded once.
  for (int64_t nc = 0; nc < shape.batch * channels; ++nc) {
    const int64_t n = nc / channels;
    if (argmax[nc] < 0 || argmax[nc] >= shape.pixels) continue;
    const int64_t p = n * shape.pixels + argmax[nc], k = p * channels + nc % channels;
    narrow(enhance(widen(g[k]), s[nc], f[p]) + constant[nc] + grad_maximum[nc], grad[k]);
  }
}

struct Gradients {
  Tensor features;
  std::optional<Tensor> difference;
  Tensor threshold;
  Mlp mlp;
};

Gradients backward(const char* op, const Tensor& grad, const Tensor& features, const Tensor& difference,
                   const Tensor& threshold, const Kept& kept, const Tensor& weight1, const Tensor& weight2,
                   const FiltrationOptions& options, bool difference_grad) {
  const auto& [average, maximum, argmax] = kept.pooled;
  const auto& [weights, hidden] = kept.channels;
  check_maps(op, features, difference, threshold);
  check_same_device(op, features, {&difference, &threshold, &hidden, &weight1, &weight2});
  check_hidden(op, features, hidden, weight1, weight2);
  check_filter(op, features, kept.filter);
  check_pooled(op, features, {&weights, &average, &maximum}, argmax);
  check_gradient(op, grad, features);
  const MemoryFormat format = memory_format_of(features);
  const Tensor g = in_format(grad, format), x = in_format(features, format);
  const Shape shape(features);

  Gradients out;
  out.features =
      empty({shape.batch, shape.channels, options.height, options.width}, features.scalar_type(), features, format);
  use_huge_pages(out.features);
  if (difference_grad)
    out.difference =
        empty({shape.batch, 1, difference.size(2), difference.size(3)}, difference.scalar_type(), difference);
  dispatch_floating(features.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const T *gp = g.const_data_ptr<T>(), *xp = x.const_data_ptr<T>();
    const A *s = weights.const_data_ptr<A>(), *f = kept.filter.const_data_ptr<A>();
    std::vector<A> grad_filter(shape.batch * shape.pixels), grad_weights(shape.batch * shape.channels, A(0));
    std::vector<A> grad_average(grad_weights.size()), grad_maximum(grad_weights.size());
    if (format == MemoryFormat::ChannelsLast)
      sums_channels_last(gp, xp, s, f, shape, grad_filter.data(), grad_weights.data());
    else
      sums_contiguous(gp, xp, s, f, shape, grad_filter.data(), grad_weights.data());

    out.threshold = scalar_tensor(
        filtration_gradients(grad_filter.data(), difference, threshold, options, out.difference), threshold);
    out.mlp = channel_weights_backward(grad_weights.data(), kept.channels, kept.pooled, weight1, weight2,
                                       grad_average.data(), grad_maximum.data());
    for (A& v : grad_average) v /= static_cast<A>(shape.pixels);

    const int64_t* index = argmax.const_data_ptr<int64_t>();
    T* to_features = out.features.mutable_data_ptr<T>();
    if (format == MemoryFormat::ChannelsLast)
      gradient_channels_last(gp, s, f, grad_average.data(), grad_maximum.data(), index, shape, to_features);
    else
      gradient_contiguous(gp, s, f, grad_average.data(), grad_maximum.data(), index, shape, to_features);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dgfe_backward_cpu(
    const Tensor& grad, const Tensor& features, const Tensor& difference, const Tensor& threshold, const Tensor& filter,
    const Tensor& weights, const Tensor& average, const Tensor& maximum, const Tensor& argmax, const Tensor& hidden,
    const Tensor& weight1, const Tensor& weight2, int64_t resize, int64_t surrogate, double alpha,
    bool difference_grad) {
  const FiltrationOptions options{features.size(2), features.size(3), Resize(resize), Surrogate(surrogate), alpha};
  const Gradients grads =
      backward(kOp, grad, features, difference, threshold, {filter, {weights, hidden}, {average, maximum, argmax}},
               weight1, weight2, options, difference_grad);
  return {grads.features,  grads.difference ? *grads.difference : empty({0}, difference.scalar_type(), difference),
          grads.threshold, grads.mlp.weight1,
          grads.mlp.bias1, grads.mlp.weight2,
          grads.mlp.bias2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, CPU, m) {
  m.impl("dgfe", TORCH_BOX(&dgfe_cpu));
  m.impl("dgfe_", TORCH_BOX(&dgfe_inplace_cpu));
  m.impl("_dgfe_backward", TORCH_BOX(&dgfe_backward_cpu));
}

}  // namespace srtod
