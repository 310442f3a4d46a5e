#include "channel_reweighting.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../checks.h"
#include "pages.h"
#include "rows.h"

namespace srtod {
namespace {

constexpr int64_t kPooledElements =
    1 << 16;  // of a channels_last map that one task pools; fixed, so that sums are repeatable

// One plane: the maximum of each tile comes with its sum; only the tile that holds the maximum is searched for its
// index.
template <class T, class A = compute_t<T>>
void pool_plane(const T* plane, int64_t pixels, A& average, A& maximum, int64_t& argmax) {
  A scratch[kTile];
  A sum = 0, max = 0;
  int64_t best_tile = 0;
  for (int64_t begin = 0; begin < pixels; begin += kTile) {
    const int64_t n = std::min(kTile, pixels - begin);
    const SumMax<A> tile = sum_max(load_row(plane + begin, 1, n, scratch), n);
    sum += tile.sum;
    if (begin == 0 || tile.max > max) {
      max = tile.max;
      best_tile = begin;
    }
  }
  average = sum / static_cast<A>(pixels);
  maximum = max;
  argmax = best_tile;
  const bool may_hold_nan = sum != sum;
  for (int64_t i = may_hold_nan ? 0 : best_tile; i < pixels; ++i) {
    const A value = widen(plane[i]);
    if (value != value || (!may_hold_nan && value == max)) {
      maximum = value;
      argmax = i;
      return;
    }
  }
  // Infinities of both signs made the sum NaN.
  for (int64_t i = 0; i < pixels; ++i) {
    const A value = widen(plane[i]);
    if (i == 0 || value > maximum) {
      maximum = value;
      argmax = i;
    }
  }
}

template <class T, class A = compute_t<T>>
void pool_channels_last(const T* x, int64_t batch, int64_t channels, int64_t pixels, A* average, A* maximum,
                        int64_t* argmax) {
  const int64_t block = std::max<int64_t>(1, kPooledElements / channels), blocks = (pixels + block - 1) / block;
  std::vector<A> sums(batch * blocks * channels, A(0)), maxima(sums.size(), -std::numeric_limits<A>::infinity());
  std::vector<index_t<A>> indices(sums.size(), 0);  // within the block
  torch::stable::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch(channels);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = (k % blocks) * block, n = std::min(block, pixels - first);
      const T* row = x + (k / blocks * pixels + first) * channels;
      for (int64_t p = 0; p < n; ++p, row += channels)
        pool_pixel(load_row(row, 1, channels, scratch.data()), static_cast<index_t<A>>(p), channels,
                   &sums[k * channels], &maxima[k * channels], &indices[k * channels]);
    }
  });
  for (int64_t nc = 0; nc < batch * channels; ++nc) {
    const int64_t start = nc / channels * blocks * channels + nc % channels;
    A sum = 0, max = maxima[start];
    int64_t index = indices[start];
    for (int64_t b = 0; b < blocks; ++b) {
      const A block_max = maxima[start + b * channels];
      sum += sums[start + b * channels];
      if (block_max > max || block_max != block_max) {
        max = block_max;
        index = b * block + indices[start + b * channels];
      }
    }
    average[nc] = sum / static_cast<A>(pixels);
    maximum[nc] = max;
    argmax[nc] = index;
  }
}

template <class A>
std::vector<A> values_of(const Tensor& t) {
  const Tensor contiguous = in_format(t, MemoryFormat::Contiguous);
  std::vector<A> values(t.numel());
  dispatch_floating(t.scalar_type(), "channel_reweighting", [&](auto tag) {
    const auto* data = contiguous.const_data_ptr<decltype(tag)>();
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<A>(widen(data[i]));
  });
  return values;
}

template <class A>
Tensor tensor_of(const std::vector<A>& values, std::initializer_list<int64_t> sizes, const Tensor& like) {
  Tensor t = empty(sizes, like.scalar_type(), like);
  dispatch_floating(like.scalar_type(), "channel_reweighting", [&](auto tag) {
    auto* data = t.mutable_data_ptr<decltype(tag)>();
    for (size_t i = 0; i < values.size(); ++i) narrow(static_cast<compute_t<decltype(tag)>>(values[i]), data[i]);
  });
  return t;
}

// weight1 v + bias1, before the ReLU
template <class A>
void hidden_layer(const std::vector<A>& weight1, const std::vector<A>& bias1, const A* v, int64_t channels, A* hidden) {
  for (size_t r = 0; r < bias1.size(); ++r) {
    A sum = bias1[r];
    for (int64_t c = 0; c < channels; ++c) sum += weight1[r * channels + c] * v[c];
    hidden[r] = sum;
  }
}

}  // namespace

Pooled pool(const Tensor& features, MemoryFormat format) {
  const int64_t batch = features.size(0), channels = features.size(1), pixels = features.size(2) * features.size(3);
  const ScalarType type = compute_type(features.scalar_type());
  Pooled out{empty({batch, channels}, type, features), empty({batch, channels}, type, features),
             empty({batch, channels}, ScalarType::Long, features)};
  dispatch_floating(features.scalar_type(), "pool", [&](auto tag) {
    using T = decltype(tag);
    const T* x = features.const_data_ptr<T>();
    auto* average = out.average.mutable_data_ptr<compute_t<T>>();
    auto* maximum = out.maximum.mutable_data_ptr<compute_t<T>>();
    auto* argmax = out.argmax.mutable_data_ptr<int64_t>();
    if (format == MemoryFormat::ChannelsLast) {
      pool_channels_last(x, batch, channels, pixels, average, maximum, argmax);
      return;
    }
    torch::stable::parallel_for(0, batch * channels, std::max<int64_t>(1, 16384 / pixels),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t nc = begin; nc < end; ++nc)
                                    pool_plane(x + nc * pixels, pixels, average[nc], maximum[nc], argmax[nc]);
                                });
  });
  return out;
}

ChannelWeights channel_weights(const Pooled& pooled, const Mlp& mlp) {
  const int64_t batch = pooled.average.size(0), channels = pooled.average.size(1), hidden_size = mlp.bias1.numel();
  const ScalarType type = pooled.average.scalar_type();
  ChannelWeights out{empty({batch, channels}, type, pooled.average),
                     empty({batch, 2, hidden_size}, type, pooled.average)};
  dispatch_compute(type, [&](auto tag) {
    using A = decltype(tag);
    const std::vector<A> weight1 = values_of<A>(mlp.weight1), bias1 = values_of<A>(mlp.bias1);
    const std::vector<A> weight2 = values_of<A>(mlp.weight2), bias2 = values_of<A>(mlp.bias2);
    for (int64_t n = 0; n < batch; ++n) {
      A* from_average = out.hidden.mutable_data_ptr<A>() + n * 2 * hidden_size;
      A* from_maximum = from_average + hidden_size;
      hidden_layer(weight1, bias1, pooled.average.const_data_ptr<A>() + n * channels, channels, from_average);
      hidden_layer(weight1, bias1, pooled.maximum.const_data_ptr<A>() + n * channels, channels, from_maximum);
      A* result = out.weights.mutable_data_ptr<A>() + n * channels;
      for (int64_t c = 0; c < channels; ++c) {
        ChannelWeight<A> weight(bias2[c]);
        for (int64_t r = 0; r < hidden_size; ++r)
          weight.add(weight2[c * hidden_size + r], from_average[r], from_maximum[r]);
        result[c] = weight.value();
      }
    }
  });
  return out;
}

template <class A>
Mlp channel_weights_backward(const A* grad_weights, const ChannelWeights& kept, const Pooled& pooled,
                             const Tensor& first, const Tensor& second, A* grad_average, A* grad_maximum) {
  const int64_t batch = pooled.average.size(0), channels = pooled.average.size(1), hidden_size = first.size(0);
  const std::vector<A> weight1 = values_of<A>(first), weight2 = values_of<A>(second);
  std::vector<A> grad_weight1(weight1.size(), A(0)), grad_bias1(hidden_size, A(0));
  std::vector<A> grad_weight2(weight2.size(), A(0)), grad_bias2(channels, A(0));
  std::vector<A> grad_hidden(hidden_size);
  for (int64_t n = 0; n < batch; ++n) {
    const A* average = pooled.average.const_data_ptr<A>() + n * channels;
    const A* maximum = pooled.maximum.const_data_ptr<A>() + n * channels;
    const A* s = kept.weights.const_data_ptr<A>() + n * channels;
    const A* from_average = kept.hidden.const_data_ptr<A>() + n * 2 * hidden_size;
    const A* from_maximum = from_average + hidden_size;
    // s = sigmoid(z), z = 2 bias2 + weight2 (relu(hidden of average) + relu(hidden of maximum))
    std::fill(grad_hidden.begin(), grad_hidden.end(), A(0));
    for (int64_t c = 0; c < channels; ++c) {
      const A grad_z = grad_weights[n * channels + c] * s[c] * (A(1) - s[c]);
      grad_bias2[c] += A(2) * grad_z;
      for (int64_t r = 0; r < hidden_size; ++r) {
        grad_weight2[c * hidden_size + r] += grad_z * (relu(from_average[r]) + relu(from_maximum[r]));
        grad_hidden[r] += grad_z * weight2[c * hidden_size + r];
      }
    }
    A* to_average = grad_average + n * channels;
    A* to_maximum = grad_maximum + n * channels;
    std::fill(to_average, to_average + channels, A(0));
    std::fill(to_maximum, to_maximum + channels, A(0));
    for (int64_t r = 0; r < hidden_size; ++r) {
      const A by_average = relu_gradient(from_average[r], grad_hidden[r]);
      const A by_maximum = relu_gradient(from_maximum[r], grad_hidden[r]);
      grad_bias1[r] += by_average + by_maximum;
      for (int64_t c = 0; c < channels; ++c) {
        grad_weight1[r * channels + c] += by_average * average[c] + by_maximum * maximum[c];
        to_average[c] += by_average * weight1[r * channels + c];
        to_maximum[c] += by_maximum * weight1[r * channels + c];
      }
    }
  }
  return {tensor_of(grad_weight1, {hidden_size, channels}, first), tensor_of(grad_bias1, {hidden_size}, first),
          tensor_of(grad_weight2, {channels, hidden_size}, second), tensor_of(grad_bias2, {channels}, second)};
}

template Mlp channel_weights_backward(const float*, const ChannelWeights&, const Pooled&, const Tensor&, const Tensor&,
                                      float*, float*);
template Mlp channel_weights_backward(const double*, const ChannelWeights&, const Pooled&, const Tensor&, const Tensor&,
                                      double*, double*);

namespace {

constexpr const char* kOp = "channel_reweighting";

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> channel_reweighting_cpu(const Tensor& features,
                                                                           const Tensor& weight1, const Tensor& bias1,
                                                                           const Tensor& weight2, const Tensor& bias2) {
  check_features(kOp, features);
  check_mlp(kOp, features, weight1, bias1, weight2, bias2);
  check_same_device(kOp, features, {&weight1, &bias1, &weight2, &bias2});
  const MemoryFormat format = memory_format_of(features);
  const Pooled pooled = pool(in_format(features, format), format);
  const ChannelWeights kept = channel_weights(pooled, {weight1, bias1, weight2, bias2});
  return {kept.weights, pooled.average, pooled.maximum, pooled.argmax, kept.hidden};
}

// The gradient of the features is constant over each channel's pixels but for its arg-max.
template <class T, class A = compute_t<T>>
void fill_gradient(const A* grad_average, const A* grad_maximum, const int64_t* argmax, int64_t batch, int64_t channels,
                   int64_t pixels, bool channels_last, T* grad) {
  std::vector<T> constant(batch * channels);
  for (int64_t k = 0; k < batch * channels; ++k) narrow(grad_average[k] / static_cast<A>(pixels), constant[k]);
  if (channels_last)
    torch::stable::parallel_for(0, batch * pixels, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        std::copy_n(&constant[p / pixels * channels], channels, grad + p * channels);
    });
  else
    torch::stable::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) std::fill_n(grad + k * pixels, pixels, constant[k]);
    });
  for (int64_t k = 0; k < batch * channels; ++k) {
    if (argmax[k] < 0 || argmax[k] >= pixels) continue;
    const int64_t n = k / channels, c = k % channels;
    T& at_maximum = grad[channels_last ? (n * pixels + argmax[k]) * channels + c : k * pixels + argmax[k]];
    narrow(grad_average[k] / static_cast<A>(pixels) + grad_maximum[k], at_maximum);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> channel_reweighting_backward_cpu(
    const Tensor& grad, const Tensor& features, const Tensor& weights, const Tensor& average, const Tensor& maximum,
    const Tensor& argmax, const Tensor& hidden, const Tensor& weight1, const Tensor& weight2) {
  check_features(kOp, features);
  check_hidden(kOp, features, hidden, weight1, weight2);
  check_pooled(kOp, features, {&grad, &weights, &average, &maximum}, argmax);
  const MemoryFormat format = memory_format_of(features);
  const int64_t batch = features.size(0), channels = features.size(1), pixels = features.size(2) * features.size(3);
  Tensor grad_features =
      empty({batch, channels, features.size(2), features.size(3)}, features.scalar_type(), features, format);
  use_huge_pages(grad_features);
  Mlp grads;
  dispatch_floating(features.scalar_type(), kOp, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    std::vector<A> grad_average(batch * channels), grad_maximum(batch * channels);
    grads = channel_weights_backward(grad.const_data_ptr<A>(), {weights, hidden}, {average, maximum, argmax}, weight1,
                                     weight2, grad_average.data(), grad_maximum.data());
    fill_gradient(grad_average.data(), grad_maximum.data(), argmax.const_data_ptr<int64_t>(), batch, channels, pixels,
                  format == MemoryFormat::ChannelsLast, grad_features.mutable_data_ptr<T>());
  });
  return {grad_features, grads.weight1, grads.bias1, grads.weight2, grads.bias2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, CPU, m) {
  m.impl("channel_reweighting", TORCH_BOX(&channel_reweighting_cpu));
  m.impl("_channel_reweighting_backward", TORCH_BOX(&channel_reweighting_backward_cpu));
}

}  // namespace srtod
