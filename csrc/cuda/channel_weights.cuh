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

struct MlpTensors {  // contiguous; `bias2` is not needed backward
  Tensor weight1, bias1, weight2, bias2;

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

// out [R] = weight1 v + bias1, before the ReLU; a warp takes a row.
template <class A>
__device__ __forceinline__ void hidden_layer(const Mlp& mlp, const A* v, A* out) {
  for (uint32_t r = threadIdx.x / 32; r < mlp.hidden; r += kWarps) {
    A sum = 0;
    for (uint32_t c = threadIdx.x % 32; c < mlp.channels; c += 32)
      sum += mlp.weight1.at<A>(r * mlp.channels + c) * v[c];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) out[r] = sum + mlp.bias1.at<A>(r);
  }
}

// weights [C] from average and maximum [C], which the block has written or read-only memory holds; scratch `hidden`
// [2, R].
template <class A>
__device__ __forceinline__ void weigh_channels(const Mlp& mlp, const A* average, const A* maximum, A* hidden,
                                               A* weights) {
  hidden_layer(mlp, average, hidden);
  hidden_layer(mlp, maximum, hidden + mlp.hidden);
  __syncthreads();
  for (uint32_t c = threadIdx.x; c < mlp.channels; c += kThreads) {
    ChannelWeight<A> weight(mlp.bias2.at<A>(c));
    for (uint32_t r = 0; r < mlp.hidden; ++r)
      weight.add(mlp.weight2.at<A>(c * mlp.hidden + r), hidden[r], hidden[mlp.hidden + r]);
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
  A *grad_z, *hidden, *grad_hidden;  // scratch [N, C], [N, 2, R], [N, 2, R]
  A *grad_average, *grad_maximum;    // results [N, C]; that of the average is divided by the number of pixels
  AnyFloatOut grad_weight1, grad_bias1, grad_weight2, grad_bias2;
  int32_t* counter;  // of images done
};

// Image n, with s = sigmoid(z) and z = 2 bias2 + weight2 (relu(h_average) + relu(h_maximum)).
template <class A>
__device__ __forceinline__ void backward_of_image(const WeightsBackward<A>& b, int64_t n) {
  const uint32_t channels = b.mlp.channels, hidden = b.mlp.hidden;
  A* h = b.hidden + n * 2 * hidden;
  A* grad_h = b.grad_hidden + n * 2 * hidden;
  A* grad_z = b.grad_z + n * channels;
  hidden_layer(b.mlp, b.average + n * channels, h);
  hidden_layer(b.mlp, b.maximum + n * channels, h + hidden);
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
    for (uint32_t c = threadIdx.x % 32; c < channels; c += 32)
      sum += grad_z[c] * b.mlp.weight2.template at<A>(c * hidden + r);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) {
      grad_h[r] = relu_gradient(h[r], sum);
      grad_h[hidden + r] = relu_gradient(h[hidden + r], sum);
    }
  }
  __syncthreads();
  for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
    A to_average = 0, to_maximum = 0;
    for (uint32_t r = 0; r < hidden; ++r) {
      const A weight = b.mlp.weight1.template at<A>(r * channels + c);
      to_average += grad_h[r] * weight;
      to_maximum += grad_h[hidden + r] * weight;
    }
    b.grad_average[n * channels + c] = to_average / static_cast<A>(b.pixels);
    b.grad_maximum[n * channels + c] = to_maximum;
  }
}

// The MLP's own gradients, once all images are done.
template <class A>
__device__ __forceinline__ void backward_of_mlp(const WeightsBackward<A>& b) {
  const uint32_t channels = b.mlp.channels, hidden = b.mlp.hidden;
  for (uint32_t k = threadIdx.x; k < channels * hidden; k += kThreads) {
    const uint32_t r = k / channels, c = k % channels;
    A of_weight1 = 0, of_weight2 = 0;
    for (int64_t n = 0; n < b.batch; ++n) {
      const A *h = b.hidden + n * 2 * hidden, *grad_h = b.grad_hidden + n * 2 * hidden;
      of_weight1 += grad_h[r] * b.average[n * channels + c] + grad_h[hidden + r] * b.maximum[n * channels + c];
      of_weight2 += b.grad_z[n * channels + c] * (relu(h[r]) + relu(h[hidden + r]));
    }
    b.grad_weight1.set(k, of_weight1);
    b.grad_weight2.set(c * hidden + r, of_weight2);
  }
  for (uint32_t r = threadIdx.x; r < hidden; r += kThreads) {
    A sum = 0;
    for (int64_t n = 0; n < b.batch; ++n)
      sum += b.grad_hidden[n * 2 * hidden + r] + b.grad_hidden[n * 2 * hidden + hidden + r];
    b.grad_bias1.set(r, sum);
  }
  for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
    A sum = 0;
    for (int64_t n = 0; n < b.batch; ++n) sum += A(2) * b.grad_z[n * channels + c];
    b.grad_bias2.set(c, sum);
  }
}

template <class A>
__device__ __forceinline__ void weights_backward(const WeightsBackward<A>& b, int64_t n) {
  backward_of_image(b, n);
  if (is_last_block(b.counter, static_cast<uint32_t>(b.batch))) backward_of_mlp(b);
}

// The tensors that `WeightsBackward` points to.
struct WeightsBackwardTensors {
  Tensor grad_z, hidden, grad_hidden, grad_average, grad_maximum;
  Tensor grad_weight1, grad_bias1, grad_weight2, grad_bias2;

  WeightsBackwardTensors(const Shape& shape, const Tensor& features, const MlpTensors& mlp) {
    const ScalarType type = compute_type(features.scalar_type());
    const int64_t channels = shape.channels, of_mlp = mlp.weight1.size(0);
    grad_z = empty({shape.batch, channels}, type, features);
    hidden = empty({shape.batch, 2, of_mlp}, type, features);
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
                               const Tensor& maximum, int32_t* counter) {
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
            grad_z.mutable_data_ptr<A>(),
            hidden.mutable_data_ptr<A>(),
            grad_hidden.mutable_data_ptr<A>(),
            grad_average.mutable_data_ptr<A>(),
            grad_maximum.mutable_data_ptr<A>(),
            AnyFloatOut(grad_weight1),
            AnyFloatOut(grad_bias1),
            AnyFloatOut(grad_weight2),
            AnyFloatOut(grad_bias2),
            counter};
  }

  void set_zero(cudaStream_t stream) {
    for (Tensor* t : {&grad_weight1, &grad_bias1, &grad_weight2, &grad_bias2}) srtod::set_zero(*t, stream);
  }
};

}  // namespace srtod
