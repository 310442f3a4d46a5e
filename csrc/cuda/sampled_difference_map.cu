// The difference map at the pixels that a nearest resize takes: the output convolution is done there alone, then D.
//
// kMembers threads share a sample. In channels_last they are neighbouring lanes, each of which loads 16 bytes of every
// pixel around the sample; in planes of channels they are a block's warps, whose lanes have neighbouring samples. Their
// sums meet in shared memory.
#include "output_convolution.cuh"

namespace srtod {
namespace {

constexpr const char* kOp = "sampled_difference_map";
constexpr uint32_t kMembers = kWarps, kSamplesAtOnce = kThreads / kMembers;
constexpr uint32_t kSamplesOfThread = 2;  // which share the weights that it loads
constexpr uint32_t kSamplesOfBlock = kSamplesAtOnce * kSamplesOfThread;
constexpr uint32_t kSumStride = kSamplesOfBlock + 4;  // members of neighbouring samples store to different banks

struct Place {
  uint32_t n, y, x;
};

// The output convolution's input at every sample.
template <class T>
struct SampledFeatures {
  struct Tap {
    FeatureMap<const T> map;
    int32_t shift;  // of the columns: -1, 0 or 1 in a map of rows
  };

  Tap taps[kTaps];
  uint32_t step;  // columns of a map from one sample to the next
  uint32_t samples, height, width;

  SampledFeatures(const Samples& s, const std::vector<Tensor>& maps)
      : step(static_cast<uint32_t>(s.step)),
        samples(static_cast<uint32_t>(s.batch * s.height * s.width)),
        height(static_cast<uint32_t>(s.height)),
        width(static_cast<uint32_t>(s.width)) {
    STD_TORCH_CHECK(s.batch * s.height * s.width <= 2147483647, kOp, ": maps this large do not fit");
    for (uint32_t tap = 0; tap < kTaps; ++tap) {
      const Tensor& map = maps[s.taps == 3 ? tap / 3 : tap];
      taps[tap] = {FeatureMap<const T>(kOp, map, map.const_data_ptr<T>()),
                   s.taps == 3 ? static_cast<int32_t>(tap % 3) - 1 : 0};
    }
  }

  bool is_wide() const {
    return std::all_of(taps, taps + kTaps, [](const Tap& tap) { return tap.map.is_wide(); });
  }

  __device__ __forceinline__ uint32_t channels() const { return taps[0].map.channels; }

  __device__ __forceinline__ Place place(uint32_t sample) const {
    return {sample / width / height, sample / width % height, sample % width};
  }

  // The first channel of what a tap sees of a sample; null outside the map.
  __device__ __forceinline__ const T* at(uint32_t tap, const Place& sample) const {
    const FeatureMap<const T>& map = taps[tap].map;
    const int32_t x = static_cast<int32_t>(step * sample.x) + taps[tap].shift;
    return map.has(sample.y, x) ? map.data + map.strides.at(sample.n, sample.y, x) : nullptr;
  }
};

// Any type and layout. `wide`: every map is, see FeatureMap.
template <class T, bool wide>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    sampled_difference_kernel(SampledFeatures<T> features, AnyFloat weight, AnyFloat bias, AnyImages images,
                              compute_t<T>* difference) {
  using A = compute_t<T>;
  constexpr uint32_t step = wide ? kWidth<T> : 4;  // channels that a member takes at once
  constexpr uint32_t part = kWidth<A>, parts = step / part;
  SRTOD_SHARED(Vector<A>, weights, [kProducts][parts][kMembers]);
  SRTOD_SHARED(A, sums_of_members, [kColors][kMembers][kSumStride]);
  const uint32_t member = wide ? threadIdx.x % kMembers : threadIdx.x / kSamplesAtOnce;
  const uint32_t of_block = wide ? threadIdx.x / kMembers : threadIdx.x % kSamplesAtOnce;
  const uint32_t begin = blockIdx.x * kSamplesOfBlock, channels = features.channels();
  A sums[kSamplesOfThread][kColors] = {};
  for (uint32_t first = 0; first < channels; first += kMembers * step) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < kProducts * kMembers * step; i += kThreads) {
      const uint32_t product = i / (kMembers * step), of_chunk = i % (kMembers * step), c = first + of_chunk;
      weights[product][of_chunk % step / part][of_chunk / step].values[of_chunk % part] =
          c < channels ? weight.at<A>(weight_index(product / kTaps, channels, c, product % kTaps)) : A(0);
    }
    __syncthreads();
    const uint32_t c = first + member * step;
#pragma unroll
    for (uint32_t tap = 0; tap < kTaps; ++tap) {
      T values[kSamplesOfThread][step];
#pragma unroll
      for (uint32_t k = 0; k < kSamplesOfThread; ++k) {
        const uint32_t sample = begin + k * kSamplesAtOnce + of_block;
        const T* from = sample < features.samples ? features.at(tap, features.place(sample)) : nullptr;
        if constexpr (wide) {
          const Vector<T> loaded = load(from + c, true, from != nullptr && c < channels ? step : 0);
#pragma unroll
          for (uint32_t i = 0; i < step; ++i) values[k][i] = loaded.values[i];
        } else {
          const int64_t stride = features.taps[tap].map.strides.c;
#pragma unroll
          for (uint32_t i = 0; i < step; ++i)
            values[k][i] = from != nullptr && c + i < channels ? from[(c + i) * stride] : T(0);
        }
      }
#pragma unroll
      for (uint32_t color = 0; color < kColors; ++color)
#pragma unroll
        for (uint32_t p = 0; p < parts; ++p) {
          const Vector<A> w = weights[color * kTaps + tap][p][member];
#pragma unroll
          for (uint32_t i = 0; i < part; ++i)
#pragma unroll
            for (uint32_t k = 0; k < kSamplesOfThread; ++k)
              sums[k][color] += w.values[i] * static_cast<A>(values[k][p * part + i]);
        }
    }
  }
#pragma unroll
  for (uint32_t color = 0; color < kColors; ++color)
#pragma unroll
    for (uint32_t k = 0; k < kSamplesOfThread; ++k)
      sums_of_members[color][member][k * kSamplesAtOnce + of_block] = sums[k][color];
  __syncthreads();
  const uint32_t sample = begin + threadIdx.x;
  if (threadIdx.x >= kSamplesOfBlock || sample >= features.samples) return;
  A logits[kColors];
#pragma unroll
  for (uint32_t color = 0; color < kColors; ++color) {
    logits[color] = bias.at<A>(color);
#pragma unroll
    for (uint32_t m = 0; m < kMembers; ++m) logits[color] += sums_of_members[color][m][threadIdx.x];
  }
  const Place at = features.place(sample);
  const float scale_y = static_cast<float>(images.height) / static_cast<float>(features.height);
  const float scale_x = static_cast<float>(images.width) / static_cast<float>(features.width);
  const uint32_t y = nearest_index(at.y, scale_y, images.height), x = nearest_index(at.x, scale_x, images.width);
  A squares = 0;
  difference[sample] = images.difference(logits, at.n, y, x, squares);
}

Tensor sampled_difference_map_cuda(std::vector<Tensor> maps, const Tensor& weight_tensor, const Tensor& bias_tensor,
                                   const Tensor& image) {
  const Samples samples(kOp, maps, weight_tensor, bias_tensor, image);
  const OnDevice device(image);
  const cudaStream_t stream = device.stream();
  const Tensor weight = in_format(weight_tensor, MemoryFormat::Contiguous);
  const Tensor bias = in_format(bias_tensor, MemoryFormat::Contiguous);
  Tensor difference =
      empty({samples.batch, 1, samples.height, samples.width}, compute_type(image.scalar_type()), image);
  if (difference.numel() == 0) return difference;
  const dim3 blocks = grid_of(divide_up(difference.numel(), kSamplesOfBlock));
  const AnyImages images(kOp, image, image, AnyFloat(image), AnyFloat(image), true, std::nullopt);
  dispatch_floating(maps[0].scalar_type(), kOp, [&](auto tag) {
    using T = decltype(tag);
    const SampledFeatures<T> features(samples, maps);
    auto* out = difference.mutable_data_ptr<compute_t<T>>();
    if (features.is_wide())
      SRTOD_LAUNCH((sampled_difference_kernel<T, true>), blocks, stream, features, AnyFloat(weight), AnyFloat(bias),
                   images, out);
    else
      SRTOD_LAUNCH((sampled_difference_kernel<T, false>), blocks, stream, features, AnyFloat(weight), AnyFloat(bias),
                   images, out);
  });
  return difference;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, SRTOD_BACKEND, m) {
  m.impl("sampled_difference_map", TORCH_BOX(&sampled_difference_map_cuda));
}

}  // namespace srtod
