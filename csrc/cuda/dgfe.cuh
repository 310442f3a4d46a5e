// What the files of DGFE share: P2' = Reweighting(P2) * Filtration(D) * P2 (SR-TOD, Eq. 6).
//
// Forward in one cooperative launch (dgfe_one_launch.cu), or in two: pool, with the MLP, and scale
// (dgfe_two_launches.cu). Backward in two: sums over channels and pixels, with the MLP's backward, then the gradients
// (dgfe_backward.cu).
//
//   dL/df[n,p] = sum_c g x s      dL/ds[n,c] = sum_p g x f      dL/dx = g s f + dL/davg / (h w) + [p = argmax] dL/dmax
//
// The filter f [N, h * w] is computed once, beside the pooling, and read by all channels: 4 bytes a pixel against 512
// of P2 in half precision, where every group of channels would else gather D again, of which a sector of 32 bytes holds
// two values that count. The backward pass reads it too.
#pragma once
#include "filtration.cuh"
#include "scaling.cuh"

namespace srtod {

struct DgfeForward {  // all that a forward pass reads and writes
  const char* op;
  MemoryFormat format;
  Tensor features;  // in `format`
  Tensor enhanced;  // may be `features`
  Filter filter;
  Tensor filter_values;  // [N, 1, h, w], in the type of arithmetic
  Mlp mlp;
  PooledTensors pooled;
  Tensor mse;  // of the images that `filter` reads; empty: not wanted
};

// Returns false, with nothing done, where the GPU cannot hold all blocks at once.
bool dgfe_in_one_launch(DgfeForward& pass, const OnDevice& device);
void dgfe_in_two_launches(DgfeForward& pass, const OnDevice& device);

// The filter's values, and the squared error of the images: what the forward pass does beside pooling, cut into tiles.
template <class A>
struct ImageWork {
  Filter filter;
  A* values;                           // [N, h * w]
  uint32_t filter_tiles, error_tiles;  // of an image
  double* partial;                     // of each error tile of each image
  int32_t* counter;
  A* mse;

  static constexpr uint32_t kErrorPixels = 4 * kThreads;

  ImageWork(const DgfeForward& pass, Tensor& values, Tensor& mse)
      : filter(pass.filter),
        values(values.mutable_data_ptr<A>()),
        filter_tiles(static_cast<uint32_t>(divide_up(pass.filter.pixels(), kThreads))),
        error_tiles(mse.numel() == 0 ? 0 : static_cast<uint32_t>(divide_up(pass.filter.map_pixels(), kErrorPixels))),
        partial(nullptr),
        counter(nullptr),
        mse(mse.mutable_data_ptr<A>()) {}

  __device__ __forceinline__ void filter_tile(uint32_t index) const {
    const int64_t n = index / filter_tiles;
    const uint32_t p = index % filter_tiles * kThreads + threadIdx.x;
    if (p < filter.pixels())
      values[n * filter.pixels() + p] =
          filter_value(filter, n, p / filter.width, p % filter.width, filter.threshold.at<A>(0));
  }

  // This thread's squares of one tile.
  __device__ __forceinline__ A error_tile(uint32_t index) const {
    const AnyImages& images = filter.difference.images;
    const int64_t n = index / error_tiles;
    A squares = 0;
#pragma unroll 1
    for (uint32_t k = 0; k < kErrorPixels; k += kThreads) {
      const uint32_t p = index % error_tiles * kErrorPixels + k + threadIdx.x, y = p / images.width;
      if (y >= images.height) break;
      if (images.is_valid(n, y, p - y * images.width)) images.difference<A>(n, y, p - y * images.width, squares);
    }
    return squares;
  }
};

}  // namespace srtod
