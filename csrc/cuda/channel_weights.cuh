// The channel weights sigmoid(MLP(average) + MLP(maximum)) and their gradients, computed by one block.
#pragma once
#include "reductions.cuh"

namespace srtod {

struct Shape {  // of features [N, C, h, w]; indices within one image's plane fit 32 bits
  int64_t batch;
  uint32_t channels, pixels;

  Shape(const char* op, const Tensor& features) : batch(features.size(0)) {
    const int64_t of_plane = features.size(2) * features.size(3);
    STD_TORCH_CHECK(of_plane <= 2147483647 && features.size(1) <= 2147483647, op,
                    ": features of more than 2^31 - 1 pixels or channels are too large");
    channels = static_cast<uint32_t>(features.size(1));
    pixels = static_cast<uint32_t>(of_plane);
  }

  __host__ __device__ __forceinline__ int64_t elements() const { return int64_t{channels} * pixels; }  // of one image
};

struct Mlp {  // shared by both pools: weight2 relu(weight1 v + bias1) + bias2
  AnyFloat weight1, bias1, weight2, bias2;
  uint32_t channels, hidden;
};

struct MlpTensors {  // contiguous
  Tensor weight1, bias1, weight2, bias2;

  // For the backward pass, which reads no bias.
  MlpTensors(const Tensor& weight1, const Tensor& weight2) : MlpTensors(weight1, weight1, weight2, weight2) {}

  MlpTensors(const Tensor& weight1, const Tensor& bias1, const Tensor& weight2, const Tensor& bias2)
      : weight1(in_format(weight1, MemoryFormat::Contiguous)),
        bias1(in_format(bias1, MemoryFormat::Contiguous)),
        weight2(in_format(weight2, MemoryFormat::Contiguous)),
        bias2(in_format(bias2, MemoryFormat::Contiguous)) {}

  Mlp mlp() const {
    STD_TORCH_CHECK(weight1.numel() <= 2147483647, "srtod: an MLP of more than 2^31 - 1 weights is too large");
    return {AnyFloat(weight1),
            AnyFloat(bias1),
            AnyFloat(weight2),
            AnyFloat(bias2),
            static_cast<uint32_t>(weight1.size(1)),
            static_cast<uint32_t>(weight1.size(0))};
  }
};

constexpr uint32_t kMlpAhead = 8;  // weights that a thread of an MLP has on their way at once

// out [2, R] = weight1 v + bias1 before the ReLU, of v = average and v = maximum; a warp takes a row.
template <class A>
__device__ __forceinline__ void hidden_layer(const Mlp& mlp, const A* average, const A* maximum, A* out) {
  constexpr uint32_t step = 32 * kMlpAhead;
  for (uint32_t r = threadIdx.x / 32; r < mlp.hidden; r += kWarps) {
    A of_average = 0, of_maximum = 0;
    const A bias = mlp.bias1.at<A>(r);
    for (uint32_t c = threadIdx.x % 32; c < mlp.channels; c += step) {
      A weight[kMlpAhead];
      mlp.weight1.read(int64_t{r} * mlp.channels + c, 32, (mlp.channels - c + 31) / 32, weight);
#pragma unroll
      for (uint32_t k = 0; k < kMlpAhead; ++k) {
        if (c + k * 32 >= mlp.channels) break;
        of_average += weight[k] * average[c + k * 32];
        of_maximum += weight[k] * maximum[c + k * 32];
      }
    }
    of_average = warp_sum(of_average);
    of_maximum = warp_sum(of_maximum);
    if (threadIdx.x % 32 == 0) {
      out[r] = of_average + bias;
      out[mlp.hidden + r] = of_maximum + bias;
    }
  }
}

// weights [C] from average and maximum [C], which the block has written or read-only memory holds; scratch `hidden`
// [2, R].
template <class A>
__device__ __forceinline__ void weigh_channels(const Mlp& mlp, const A* average, const A* maximum, A* hidden,
                                               A* weights) {
  hidden_layer(mlp, average, maximum, hidden);
  __syncthreads();
  for (uint32_t c = threadIdx.x; c < mlp.channels; c += kThreads) {
    ChannelWeight<A> weight(mlp.bias2.at<A>(c));
    for (uint32_t first = 0; first < mlp.hidden; first += kMlpAhead) {
      A weight2[kMlpAhead];
      mlp.weight2.read(int64_t{c} * mlp.hidden + first, 1, mlp.hidden - first, weight2);
#pragma unroll
      for (uint32_t k = 0; k < kMlpAhead; ++k) {
        if (first + k >= mlp.hidden) break;
        weight.add(weight2[k], hidden[first + k], hidden[mlp.hidden + first + k]);
      }
    }
    weights[c] = weight.value();
  }
}

// --- parts that blocks leave, and who adds them up ------------------------------------------------------------------

// Blocks sum parts of an image. The last block of a group of parts combines these, the last of an image its groups: two
// short rounds instead of one block that reads hundreds of parts. Slots of an image: its parts, then its groups.
struct Parts {
  uint32_t parts, groups;
  int32_t* counters;  // [N, groups + 1], zero

  explicit Parts(int64_t parts)
      : parts(static_cast<uint32_t>(parts)),
        groups(static_cast<uint32_t>(parts > kPartsOfGroup ? divide_up(parts, kPartsOfGroup) : 0)),
        counters(nullptr) {}

  __host__ __device__ __forceinline__ uint32_t slots() const { return parts + groups; }
  __host__ __device__ __forceinline__ uint32_t meetings() const { return groups + 1; }  // counters of an image

  // What the last block of an image combines.
  __device__ __forceinline__ uint32_t last_begin() const { return groups > 0 ? parts : 0; }
  __device__ __forceinline__ uint32_t last_end() const { return slots(); }

  // Called by each of the `blocks_of_part` blocks that have left `part` of image n. True in the last block of the
  // image. `combine(begin, end, slot)` leaves the sum of the slots begin <= k < end in `slot`.
  template <class Combine>
  __device__ __forceinline__ bool is_last_of_image(int64_t n, uint32_t part, uint32_t blocks_of_part,
                                                   const Combine& combine) const {
    int32_t* of_image = counters + n * meetings();
    if (groups == 0) return is_last_block(of_image, parts * blocks_of_part);
    const uint32_t group = part / kPartsOfGroup, begin = group * kPartsOfGroup;
    const uint32_t end = minimum(begin + kPartsOfGroup, parts);
    if (!is_last_block(of_image + 1 + group, (end - begin) * blocks_of_part)) return false;
    combine(begin, end, parts + group);
    return is_last_block(of_image, groups);
  }
};

// --- backward -------------------------------------------------------------------------------------------------------

template <class A>
struct WeightsBackward {
  Mlp mlp;
  int64_t batch;
  uint32_t pixels;
  const A* grad_weights;  // [N, slots, C], to be summed over the slots begin .. end
  uint32_t slots, begin, end;
  const A *weights, *average, *maximum;
  const A* hidden;                 // [N, 2, R], which the forward pass kept
  A *grad_z, *grad_hidden;         // scratch [N, C], [N, 2, R]
  A *grad_average, *grad_maximum;  // results [N, C]; that of the average is divided by the number of pixels
  AnyFloatOut grad_weight1, grad_bias1, grad_weight2, grad_bias2;
};

// Image n, with s = sigmoid(z) and z = 2 bias2 + weight2 (relu(h_average) + relu(h_maximum)).
template <class A>
__device__ __forceinline__ void weights_backward(const WeightsBackward<A>& b, int64_t n) {
  const uint32_t channels = b.mlp.channels, hidden = b.mlp.hidden;
  const A* h = b.hidden + n * 2 * hidden;
  A* grad_h = b.grad_hidden + n * 2 * hidden;
  A* grad_z = b.grad_z + n * channels;
  for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
    A sum = 0;
#pragma unroll 8
    for (uint32_t k = b.begin; k < b.end; ++k) sum += b.grad_weights[(n * b.slots + k) * channels + c];
    const A s = b.weights[n * channels + c];
    grad_z[c] = sum * s * (A(1) - s);
  }
  __syncthreads();
  for (uint32_t r = threadIdx.x / 32; r < hidden; r += kWarps) {
    A sum = 0;
    for (uint32_t c = threadIdx.x % 32; c < channels; c += 32 * kMlpAhead) {
      A weight[kMlpAhead];
      b.mlp.weight2.read(int64_t{c} * hidden + r, int64_t{32} * hidden, (channels - c + 31) / 32, weight);
#pragma unroll
      for (uint32_t k = 0; k < kMlpAhead; ++k) {
        if (c + k * 32 >= channels) break;
        sum += grad_z[c + k * 32] * weight[k];
      }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) {
      grad_h[r] = relu_gradient(h[r], sum);
      grad_h[hidden + r] = relu_gradient(h[hidden + r], sum);
    }
  }
  __syncthreads();
  for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
    A to_average = 0, to_maximum = 0;
    for (uint32_t first = 0; first < hidden; first += kMlpAhead) {
      A weight[kMlpAhead];
      b.mlp.weight1.read(int64_t{first} * channels + c, channels, hidden - first, weight);
#pragma unroll
      for (uint32_t k = 0; k < kMlpAhead; ++k) {
        if (first + k >= hidden) break;
        to_average += grad_h[first + k] * weight[k];
        to_maximum += grad_h[hidden + first + k] * weight[k];
      }
    }
    b.grad_average[n * channels + c] = to_average / static_cast<A>(b.pixels);
    b.grad_maximum[n * channels + c] = to_maximum;
  }
}

// The MLP's own gradients are left to further blocks of the next launch, one value a thread: here they would keep the
// last block alone busy, and all that waits for it.
inline int64_t mlp_blocks(const Mlp& mlp) {
  const int64_t channels = mlp.channels, hidden = mlp.hidden;
  return divide_up(2 * channels * hidden + hidden + channels, kThreads);
}

template <class A>
__device__ __forceinline__ void mlp_backward(const WeightsBackward<A>& b, uint32_t block) {
  const uint32_t channels = b.mlp.channels, hidden = b.mlp.hidden, weights = channels * hidden;
  int64_t k = int64_t{block} * kThreads + threadIdx.x;
  A sum = 0;
  if (k < weights) {
    const uint32_t r = static_cast<uint32_t>(k) / channels, c = static_cast<uint32_t>(k) % channels;
    for (int64_t n = 0; n < b.batch; ++n) {
      const A* grad_h = b.grad_hidden + n * 2 * hidden;
      sum += grad_h[r] * b.average[n * channels + c] + grad_h[hidden + r] * b.maximum[n * channels + c];
    }
    b.grad_weight1.set(k, sum);
  } else if ((k -= weights) < weights) {
    const uint32_t c = static_cast<uint32_t>(k) / hidden, r = static_cast<uint32_t>(k) % hidden;
    for (int64_t n = 0; n < b.batch; ++n) {
      const A* h = b.hidden + n * 2 * hidden;
      sum += b.grad_z[n * channels + c] * (relu(h[r]) + relu(h[hidden + r]));
    }
    b.grad_weight2.set(k, sum);
  } else if ((k -= weights) < hidden) {
    for (int64_t n = 0; n < b.batch; ++n)
      sum += b.grad_hidden[n * 2 * hidden + k] + b.grad_hidden[n * 2 * hidden + hidden + k];
    b.grad_bias1.set(k, sum);
  } else if ((k -= hidden) < channels) {
    for (int64_t n = 0; n < b.batch; ++n) sum += A(2) * b.grad_z[n * channels + k];
    b.grad_bias2.set(k, sum);
  }
}

// The tensors that `WeightsBackward` points to.
struct WeightsBackwardTensors {
  Tensor grad_z, grad_hidden, grad_average, grad_maximum;
  Tensor grad_weight1, grad_bias1, grad_weight2, grad_bias2;

  WeightsBackwardTensors(const Shape& shape, const Tensor& features, const MlpTensors& mlp) {
    const ScalarType type = compute_type(features.scalar_type());
    const int64_t channels = shape.channels, of_mlp = mlp.weight1.size(0);
    grad_z = empty({shape.batch, channels}, type, features);
    grad_hidden = empty({shape.batch, 2, of_mlp}, type, features);
    grad_average = empty({shape.batch, channels}, type, features);
    grad_maximum = empty({shape.batch, channels}, type, features);
    grad_weight1 = empty({of_mlp, channels}, mlp.weight1.scalar_type(), features);
    grad_bias1 = empty({of_mlp}, mlp.weight1.scalar_type(), features);
    grad_weight2 = empty({channels, of_mlp}, mlp.weight2.scalar_type(), features);
    grad_bias2 = empty({channels}, mlp.weight2.scalar_type(), features);
  }

  // Sums the slots begin <= k < end of `grad_weights`.
  template <class A>
  WeightsBackward<A> arguments(const Shape& shape, const Mlp& mlp, const A* grad_weights, uint32_t slots,
                               uint32_t begin, uint32_t end, const Tensor& weights, const Tensor& average,
                               const Tensor& maximum, const Tensor& hidden) {
    return {mlp,
            shape.batch,
            shape.pixels,
            grad_weights,
            slots,
            begin,
            end,
            weights.const_data_ptr<A>(),
            average.const_data_ptr<A>(),
            maximum.const_data_ptr<A>(),
            hidden.const_data_ptr<A>(),
            grad_z.mutable_data_ptr<A>(),
            grad_hidden.mutable_data_ptr<A>(),
            grad_average.mutable_data_ptr<A>(),
            grad_maximum.mutable_data_ptr<A>(),
            AnyFloatOut(grad_weight1),
            AnyFloatOut(grad_bias1),
            AnyFloatOut(grad_weight2),
            AnyFloatOut(grad_bias2)};
  }

  void set_zero(cudaStream_t stream) {
    for (Tensor* t : {&grad_weight1, &grad_bias1, &grad_weight2, &grad_bias2}) srtod::set_zero(*t, stream);
  }
};

}  // namespace srtod
