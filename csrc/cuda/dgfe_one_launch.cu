// DGFE forward in one cooperative launch: every block keeps its slice of P2 in shared memory between pooling and
// scaling, as far as it fits, and finds the rest in the L2 cache, beginning with what it read last.
#include "dgfe.cuh"

namespace srtod {
namespace {

constexpr uint32_t kAhead = 4;   // loads of a thread that are on their way at once; `combine_rows` takes so many
constexpr uint32_t kChunk = 32;  // rows between two barriers of the pooling (NCHW)
constexpr uint32_t kSectorChannels = 8;  // whose sums one block combines at once: a sector of 32 bytes

// A slice is what one block owns of an image: some rows of kThreads vectors. NCHW: a row is one channel of a tile of
// kThreads * kWidth pixels; the channels of a tile follow one another. channels_last: a row is `lanes` pixels, of which
// a thread keeps to kWidth channels.
struct Slices {
  Shape shape;
  Columns by;
  bool wide;
  uint32_t slices, rows, rows_of_slice;  // of an image
  uint32_t kept;                         // rows that fit into shared memory
};

struct Place {              // of a thread's vector in its image
  int64_t at;               // offset
  uint32_t pixel, channel;  // the first ones
  uint32_t count;           // of elements
};

template <class T, bool channels_last>
__device__ __forceinline__ Place place_of(const Slices& s, uint32_t row) {
  Place p;
  if constexpr (channels_last) {
    const uint32_t column = threadIdx.x % s.by.columns, lane = threadIdx.x / s.by.columns;
    p.pixel = row * s.by.lanes + lane;
    p.channel = column * kWidth<T>;
    p.count =
        lane < s.by.lanes && p.pixel < s.shape.pixels ? elements_below(s.shape.channels, p.channel, kWidth<T>) : 0;
    p.at = int64_t{p.pixel} * s.shape.channels + p.channel;
  } else {
    const uint32_t tile = row / s.shape.channels;
    p.pixel = (tile * kThreads + threadIdx.x) * kWidth<T>;
    p.channel = row - tile * s.shape.channels;
    p.count = elements_below(s.shape.pixels, p.pixel, kWidth<T>);
    p.at = int64_t{p.channel} * s.shape.pixels + p.pixel;
  }
  return p;
}

// Calls use(first, count, places, vectors) for the rows begin <= row < end, kAhead at once or fewer; those below
// `keep_end` are left in `kept`.
template <class T, bool channels_last, class Use>
__device__ __forceinline__ void read_rows(const T* image, const Slices& s, uint32_t begin, uint32_t end,
                                          Vector<T>* kept, uint32_t keep_end, const Use& use) {
  for (uint32_t first = begin; first < end; first += kAhead) {
    Place p[kAhead];
    Vector<T> v[kAhead];
#pragma unroll
    for (uint32_t k = 0; k < kAhead; ++k) {
      p[k] = place_of<T, channels_last>(s, first + k);
      v[k] = load(image + p[k].at, s.wide, first + k < end ? p[k].count : 0);
    }
#pragma unroll
    for (uint32_t k = 0; k < kAhead; ++k)
      if (first + k < minimum(end, keep_end)) kept[(first + k - begin) * kThreads + threadIdx.x] = v[k];
    use(first, minimum(kAhead, end - first), p, v);
  }
}

template <class A>
struct SlicePool {
  uint32_t parts;                   // of an image: tiles (NCHW) or slices (channels_last)
  A *sums, *maxima;                 // [N, parts, C]
  uint32_t* indices;                // [N, parts, C]
  A *average, *maximum, *weights;   // [N, C]
  int64_t* argmax;                  // [N, C]
  A* hidden;                        // [N, 2, R]
  A *block_hidden, *block_weights;  // scratch of each block, [2, R] and [C]
};

// Pools rows of an NCHW image: sums over a warp, then over the warps of the block.
template <class T, class A = compute_t<T>>
__device__ __forceinline__ void pool_slice_of_planes(const T* image, const Slices& s, int64_t n, uint32_t begin,
                                                     uint32_t end, Vector<T>* kept, uint32_t keep_end,
                                                     const SlicePool<A>& pool) {
  SRTOD_SHARED(A, sums, [kChunk * kWarps]);
  SRTOD_SHARED(A, values, [kChunk * kWarps]);
  SRTOD_SHARED(uint32_t, indices, [kChunk * kWarps]);
  for (uint32_t chunk = begin; chunk < end; chunk += kChunk) {
    const uint32_t chunk_end = minimum(chunk + kChunk, end);
    read_rows<T, false>(image, s, chunk, chunk_end, kept + int64_t{chunk - begin} * kThreads, keep_end,
                        [&](uint32_t first, uint32_t count, const Place(&p)[kAhead], const Vector<T>(&v)[kAhead]) {
                          Pooled<A> rows[kAhead];
#pragma unroll
                          for (uint32_t k = 0; k < kAhead; ++k) {
                            const uint32_t pixels = k < count ? p[k].count : 0;
                            rows[k] = {0, Maximum<A>::before(pixels > 0 ? p[k].pixel : Maximum<A>::kNone)};
                            add_vector(v[k], p[k].pixel, pixels, rows[k].sum, rows[k].best);
                          }
                          const Pooled<A> row = combine_rows(rows);
                          const uint32_t k = threadIdx.x % 32 / 8;
                          if (threadIdx.x % 8 == 0 && k < count) {
                            const uint32_t at = (first + k - chunk) * kWarps + threadIdx.x / 32;
                            sums[at] = row.sum;
                            values[at] = row.best.value;
                            indices[at] = row.best.index;
                          }
                        });
    __syncthreads();
    if (threadIdx.x < chunk_end - chunk) {
      const uint32_t tile = (chunk + threadIdx.x) / s.shape.channels;
      const uint32_t channel = chunk + threadIdx.x - tile * s.shape.channels;
      const Pooled<A> all = combine_parts<A>(sums, values, indices, threadIdx.x * kWarps, kWarps, 1);
      const int64_t at = (n * pool.parts + tile) * s.shape.channels + channel;
      pool.sums[at] = all.sum;
      pool.maxima[at] = all.best.value;
      pool.indices[at] = all.best.index;
    }
    __syncthreads();  // before the next chunk writes over them
  }
}

// Pools rows of a channels_last image: sums stay in registers until the end.
template <class T, class A = compute_t<T>>
__device__ __forceinline__ void pool_slice_of_pixels(const T* image, const Slices& s, int64_t n, uint32_t slice,
                                                     uint32_t begin, uint32_t end, Vector<T>* kept, uint32_t keep_end,
                                                     const SlicePool<A>& pool) {
  SRTOD_SHARED(A, values, [kThreads * kWidth<T>]);
  SRTOD_SHARED(uint32_t, indices, [kThreads * kWidth<T>]);
  const Place first = place_of<T, true>(s, begin);
  ChannelPool<T> mine(first.count > 0 ? first.pixel : Maximum<A>::kNone);
  read_rows<T, true>(image, s, begin, end, kept, keep_end,
                     [&](uint32_t, uint32_t count, const Place(&p)[kAhead], const Vector<T>(&v)[kAhead]) {
#pragma unroll
                       for (uint32_t k = 0; k < kAhead; ++k)
                         if (k < count && p[k].count > 0) mine.add(v[k], p[k].pixel);
                     });
  const int64_t part = (n * pool.parts + slice) * s.shape.channels;
  mine.combine_lanes(
      s.by, values, indices,
      [&](uint32_t c, A sum) {
        if (c < s.shape.channels) pool.sums[part + c] = sum;
      },
      [&](uint32_t c, const Maximum<A>& best) {
        if (c >= s.shape.channels) return;
        pool.maxima[part + c] = best.value;
        pool.indices[part + c] = best.index;
      });
}

// Adds up the parts of all images: a block takes kSectorChannels channels at once, 32 threads of it a channel.
template <class T, bool channels_last, class A = compute_t<T>>
__device__ __forceinline__ void combine_slices(const T* x, const Shape& shape, const SlicePool<A>& pool) {
  constexpr uint32_t lanes = kThreads / kSectorChannels;
  SRTOD_SHARED(A, sums, [kThreads]);
  SRTOD_SHARED(A, values, [kThreads]);
  SRTOD_SHARED(uint32_t, indices, [kThreads]);
  const uint32_t sectors = (shape.channels + kSectorChannels - 1) / kSectorChannels;
  for (uint32_t task = blockIdx.x; task < shape.batch * sectors; task += gridDim.x) {
    const int64_t n = task / sectors;
    const uint32_t channel = task % sectors * kSectorChannels + threadIdx.x % kSectorChannels;
    const uint32_t lane = threadIdx.x / kSectorChannels;
    const uint32_t count = elements_below(pool.parts, lane, pool.parts);  // parts from this lane's first on
    if (channel < shape.channels && count > 0) {
      const int64_t first = (n * pool.parts + lane) * shape.channels + channel;
      const Pooled<A> all = combine_parts(pool.sums, pool.maxima, pool.indices, first, (count + lanes - 1) / lanes,
                                          int64_t{lanes} * shape.channels);
      sums[threadIdx.x] = all.sum;
      values[threadIdx.x] = all.best.value;
      indices[threadIdx.x] = all.best.index;
    }
    __syncthreads();
    if (channel < shape.channels && lane == 0) {
      const Pooled<A> all =
          combine_parts<A>(sums, values, indices, threadIdx.x, minimum(lanes, pool.parts), kSectorChannels);
      pool.average[n * shape.channels + channel] = all.sum / static_cast<A>(shape.pixels);
      pool.maximum[n * shape.channels + channel] = all.best.value;
      pool.argmax[n * shape.channels + channel] =
          channels_last ? all.best.index
                        : exact_index(x + (n * shape.channels + channel) * shape.pixels, all.best, shape.pixels);
    }
    __syncthreads();
  }
}

// Scales the rows of a slice, last to first; those below `keep_end` come from `kept`. `y` may be `x`.
template <class T, bool channels_last, class A = compute_t<T>>
__device__ __forceinline__ void scale_slice(const T* x, const Slices& s, uint32_t begin, uint32_t end,
                                            const Vector<T>* kept, uint32_t keep_end, const A* weights, const A* filter,
                                            T* y) {
  A of_thread[kWidth<T>] = {};  // channels_last: weights of its channels; NCHW: filter of its pixels
  uint32_t pixel = ~0u;
  if constexpr (channels_last) {
    const uint32_t channel = threadIdx.x % s.by.columns * kWidth<T>;
#pragma unroll
    for (uint32_t i = 0; i < kWidth<T>; ++i) of_thread[i] = weights[minimum(channel + i, s.shape.channels - 1)];
  }
  // The rows first <= row < last, last to first; all that is read of kAhead of them is on its way before any is used.
  const auto scale_rows = [&](uint32_t first, uint32_t last, const auto& read) {
    for (uint32_t left = last; left > first; left -= minimum(kAhead, left - first)) {
      Place p[kAhead];
      Vector<T> v[kAhead];
      A of_row[kAhead];
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) {
        const uint32_t row = left - 1 - minimum(k, left - 1 - first);
        p[k] = place_of<T, channels_last>(s, row);
        v[k] = read(row, p[k]);
        of_row[k] = channels_last ? filter[minimum(p[k].pixel, s.shape.pixels - 1)] : weights[p[k].channel];
      }
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) {
        if (k >= left - first) break;
        if (p[k].count == 0) continue;
        if constexpr (!channels_last) {
          if (p[k].pixel != pixel) {  // another tile
            pixel = p[k].pixel;
#pragma unroll
            for (uint32_t i = 0; i < kWidth<T>; ++i) of_thread[i] = filter[minimum(pixel + i, s.shape.pixels - 1)];
          }
        }
#pragma unroll
        for (uint32_t i = 0; i < kWidth<T>; ++i)
          v[k].set(i, static_cast<T>(enhance(v[k].template at<A>(i), of_row[k], of_thread[i])));
        store(v[k], y + p[k].at, s.wide, p[k].count);
      }
    }
  };
  const uint32_t kept_end = minimum(end, keep_end > begin ? keep_end : begin);
  scale_rows(kept_end, end, [&](uint32_t, const Place& p) { return load(x + p.at, s.wide, p.count); });
  scale_rows(begin, kept_end, [&](uint32_t row, const Place&) { return kept[(row - begin) * kThreads + threadIdx.x]; });
}

template <class T, bool channels_last>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    dgfe_kernel(const T* x, Slices s, Mlp mlp, SlicePool<compute_t<T>> pool, FilterTiles tiles,
                const compute_t<T>* filter, T* y) {
  using A = compute_t<T>;
  Vector<T>* kept = reinterpret_cast<Vector<T>*>(dynamic_shared_memory());
  const uint32_t units = static_cast<uint32_t>(s.shape.batch) * s.slices;  // unit = slice of an image

  for (uint32_t tile = blockIdx.x; tile < tiles.blocks; tile += gridDim.x) tiles.compute<A>(tile);
  for (uint32_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t n = unit / s.slices;
    const uint32_t slice = unit % s.slices, begin = slice * s.rows_of_slice;
    const uint32_t end = minimum(begin + s.rows_of_slice, s.rows), keep_end = unit == blockIdx.x ? begin + s.kept : 0;
    const T* image = x + n * s.shape.elements();
    if constexpr (channels_last)
      pool_slice_of_pixels(image, s, n, slice, begin, end, kept, keep_end, pool);
    else
      pool_slice_of_planes(image, s, n, begin, end, kept, keep_end, pool);
  }
  wait_for_grid();

  combine_slices<T, channels_last>(x, s.shape, pool);
  wait_for_grid();

  A* hidden = pool.block_hidden + int64_t{blockIdx.x} * 2 * mlp.hidden;
  A* weights = pool.block_weights + int64_t{blockIdx.x} * mlp.channels;
  const uint32_t mine = blockIdx.x < units ? (units - 1 - blockIdx.x) / gridDim.x + 1 : 0;
  for (uint32_t k = mine; k > 0; --k) {
    const uint32_t unit = blockIdx.x + (k - 1) * gridDim.x, slice = unit % s.slices, begin = slice * s.rows_of_slice;
    const int64_t n = unit / s.slices;
    const uint32_t end = minimum(begin + s.rows_of_slice, s.rows), keep_end = unit == blockIdx.x ? begin + s.kept : 0;
    __syncthreads();  // the weights of the unit before are still in use
    weigh_channels(mlp, pool.average + n * mlp.channels, pool.maximum + n * mlp.channels, hidden, weights);
    __syncthreads();
    if (slice == 0) {  // keep them for the backward pass
      for (uint32_t c = threadIdx.x; c < mlp.channels; c += kThreads) pool.weights[n * mlp.channels + c] = weights[c];
      for (uint32_t r = threadIdx.x; r < 2 * mlp.hidden; r += kThreads) pool.hidden[n * 2 * mlp.hidden + r] = hidden[r];
    }
    scale_slice<T, channels_last>(x + n * s.shape.elements(), s, begin, end, kept, keep_end, weights,
                                  filter + n * s.shape.pixels, y + n * s.shape.elements());
  }
}

template <class T, bool channels_last>
bool launch(DgfeForward& pass, const OnDevice& device) {
  using A = compute_t<T>;
  const Shape shape(pass.op, pass.features);
  const T* x = pass.features.const_data_ptr<T>();
  T* y = pass.enhanced.mutable_data_ptr<T>();
  const int64_t blocks = device.multiprocessors() * kBlocksPerMultiprocessor;
  Slices s{shape, Columns(shape.channels, kWidth<T>), true, 0, 0, 0, 0};
  if (channels_last && s.by.column_blocks != 1) return false;
  s.wide = (channels_last ? shape.channels : shape.pixels) % kWidth<T> == 0 && is_aligned(x) && is_aligned(y);
  const int64_t tiles = divide_up(shape.pixels, kThreads * kWidth<T>);
  const int64_t rows = channels_last ? divide_up(shape.pixels, s.by.lanes) : tiles * shape.channels;
  if (rows > 2147483647) return false;
  s.rows = static_cast<uint32_t>(rows);
  s.rows_of_slice = static_cast<uint32_t>(divide_up(rows, std::max<int64_t>(1, blocks / shape.batch)));
  s.slices = static_cast<uint32_t>(divide_up(rows, s.rows_of_slice));
  constexpr int64_t row_bytes = kThreads * 16;
  const int64_t fitting_rows =
      std::max<int64_t>(0, dynamic_shared_bytes(dgfe_kernel<T, channels_last>, device) / row_bytes);
  s.kept = static_cast<uint32_t>(std::min<int64_t>(fitting_rows, s.rows_of_slice));
  const int64_t grid = std::min<int64_t>(blocks, shape.batch * s.slices);

  const ScalarType type = compute_type(pass.features.scalar_type());
  const int64_t parts = channels_last ? s.slices : tiles;
  Tensor sums = empty({shape.batch, parts, shape.channels}, type, pass.features);
  Tensor maxima = empty({shape.batch, parts, shape.channels}, type, pass.features);
  Tensor indices = empty({shape.batch, parts, shape.channels}, ScalarType::Int, pass.features);
  Tensor hidden = empty({grid, 2, pass.mlp.hidden}, type, pass.features);
  Tensor weights = empty({grid, shape.channels}, type, pass.features);
  const SlicePool<A> pool{static_cast<uint32_t>(parts),
                          sums.mutable_data_ptr<A>(),
                          maxima.mutable_data_ptr<A>(),
                          reinterpret_cast<uint32_t*>(indices.mutable_data_ptr<int32_t>()),
                          pass.pooled.average.mutable_data_ptr<A>(),
                          pass.pooled.maximum.mutable_data_ptr<A>(),
                          pass.pooled.weights.mutable_data_ptr<A>(),
                          pass.pooled.argmax.mutable_data_ptr<int64_t>(),
                          pass.pooled.hidden.mutable_data_ptr<A>(),
                          hidden.mutable_data_ptr<A>(),
                          weights.mutable_data_ptr<A>()};
  return launch_cooperative(dgfe_kernel<T, channels_last>, grid_of(grid), s.kept * row_bytes, fitting_rows * row_bytes,
                            device.stream(), x, s, pass.mlp, pool, FilterTiles(pass.filter, pass.filter_values),
                            pass.filter_values.const_data_ptr<A>(), y);
}

}  // namespace

bool dgfe_in_one_launch(DgfeForward& pass, const OnDevice& device) {
  bool launched = false;
  dispatch_floating(pass.features.scalar_type(), pass.op, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (!std::is_same_v<T, double>)  // whose speed matters little, and its kernels take long to compile
      launched =
          pass.format == MemoryFormat::ChannelsLast ? launch<T, true>(pass, device) : launch<T, false>(pass, device);
  });
  return launched;
}

}  // namespace srtod
