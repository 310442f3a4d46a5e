// 3x3 convolution, stride 1, padding 1, by Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray, 2016): 16
// multiplications for the four output pixels of a tile where the direct way takes 36.
//
//   tile of the input  V = B^T d B   4x4 pixels, those beside it included
//   filter             U = G g G^T   4x4
//   tile of the output Y = A^T M A   2x2, M = sum over the channels of U * V, elementwise: 16 matrix products
//
// A block of tiles goes through all three steps while it is in the second-level cache.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../checks.h"
#include "rows.h"

namespace srtod {
namespace {

constexpr int64_t kPoints = 16;             // of a transformed tile
constexpr int64_t kBlockBytes = 384 << 10;  // of transformed input: with filters and products it fits a cache of 1 MiB

struct Line {  // of the cache: no vector of a buffer crosses two
  alignas(64) float x[16];
};

struct Buffer {
  std::vector<Line> lines;
  explicit Buffer(int64_t floats) : lines((floats + 15) / 16) {}
  float* data() { return lines.data()->x; }
};

// d [16][channels] -> out [16][stride], of which `channels` are written
SRTOD_CLONES void transform_input(const float* const* d, int64_t channels, float* out, int64_t stride) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    float rows[4][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      const float d0 = d[x][c], d1 = d[4 + x][c], d2 = d[8 + x][c], d3 = d[12 + x][c];
      rows[0][x] = d0 - d2;
      rows[1][x] = d1 + d2;
      rows[2][x] = d2 - d1;
      rows[3][x] = d1 - d3;
    }
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
      float* v = out + 4 * y * stride + c;
      v[0] = rows[y][0] - rows[y][2];
      v[stride] = rows[y][1] + rows[y][2];
      v[2 * stride] = rows[y][2] - rows[y][1];
      v[3 * stride] = rows[y][1] - rows[y][3];
    }
  }
}

// m [16][stride] -> y [4][channels]
template <bool kRelu>
SRTOD_CLONES void transform_output(const float* m, int64_t stride, int64_t channels, float* const* y) {
#pragma omp simd
  for (int64_t k = 0; k < channels; ++k) {
    float rows[2][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      const float* p = m + x * stride + k;
      const float m0 = p[0], m1 = p[4 * stride], m2 = p[8 * stride], m3 = p[12 * stride];
      rows[0][x] = m0 + m1 + m2;
      rows[1][x] = m1 - m2 - m3;
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const float a = rows[i][0] + rows[i][1] + rows[i][2], b = rows[i][1] - rows[i][2] - rows[i][3];
      y[2 * i][k] = kRelu && a < 0 ? 0.0f : a;  // a NaN stays
      y[2 * i + 1][k] = kRelu && b < 0 ? 0.0f : b;
    }
  }
}

// product [kRows][2 * kWidth] = v [kRows][depth] * u [depth][2 * kWidth], in registers
template <int kWidth, int kRows>
SRTOD_CLONES void multiply(const float* __restrict v, int64_t depth, const float* __restrict u,
                           float* __restrict product) {
  typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
  Vector sums[kRows][2] = {};
  for (int64_t c = 0; c < depth; ++c) {
    Vector u0, u1;
    std::memcpy(&u0, u + 2 * kWidth * c, sizeof u0);
    std::memcpy(&u1, u + 2 * kWidth * c + kWidth, sizeof u1);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const float x = v[row * depth + c];
      sums[row][0] += x * u0;
      sums[row][1] += x * u1;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) std::memcpy(product + 2 * kWidth * row, sums[row], sizeof sums[row]);
}

// weight [K, C, 3, 3] -> u [ceil(K / kChunk)][16][C][kChunk]
template <int kChunk>
void transform_weight(const Tensor& weight, float* u) {
  constexpr float kG[4][3] = {{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}};
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const int64_t sk = weight.stride(0), sc = weight.stride(1), sy = weight.stride(2), sx = weight.stride(3);
  const float* w = weight.const_data_ptr<float>();
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t c = 0; c < inputs; ++c) {
      const float* g = w + k * sk + c * sc;
      float* out = u + (k / kChunk * kPoints * inputs + c) * kChunk + k % kChunk;
      float rows[4][3];
      for (int i = 0; i < 4; ++i)
        for (int x = 0; x < 3; ++x)
          rows[i][x] = kG[i][0] * g[x * sx] + kG[i][1] * g[sy + x * sx] + kG[i][2] * g[2 * sy + x * sx];
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j)
          out[(4 * i + j) * inputs * kChunk] = rows[i][0] * kG[j][0] + rows[i][1] * kG[j][1] + rows[i][2] * kG[j][2];
    }
}

template <int kWidth, int kRows, bool kRelu>
void convolve(const Tensor& input, const Tensor& weight, float* output) {
  constexpr int64_t kChunk = 2 * kWidth;  // output channels handled at a time
  const int64_t inputs = input.size(1), height = input.size(2), width = input.size(3), outputs = weight.size(0);
  const int64_t across = (width + 1) / 2, down = (height + 1) / 2, tiles = input.size(0) * down * across;
  const int64_t of_block = std::max<int64_t>(1, kBlockBytes / (4 * kPoints * inputs * kRows)) * kRows;
  const float* x = input.const_data_ptr<float>();
  Buffer u((outputs + kChunk - 1) / kChunk * kChunk * inputs * kPoints);
  transform_weight<kChunk>(weight, u.data());

  torch::stable::parallel_for(0, (tiles + of_block - 1) / of_block, 1, [&](int64_t begin, int64_t end) {
    Buffer v(kPoints * of_block * inputs), m(kPoints * of_block * kChunk), nothing(inputs), outside(kChunk);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * of_block, count = std::min(of_block, tiles - first);
      const auto position = [&](int64_t tile) {  // of a tile's first output pixel
        struct {
          int64_t n, y, x;
        } p{tile / (down * across), tile / across % down * 2, tile % across * 2};
        return p;
      };
      for (int64_t t = 0; t < count; ++t) {
        const auto p = position(first + t);
        const float* d[kPoints];
        for (int64_t i = 0; i < kPoints; ++i) {
          const int64_t row = p.y - 1 + i / 4, column = p.x - 1 + i % 4;
          const bool inside = row >= 0 && row < height && column >= 0 && column < width;
          d[i] = inside ? x + ((p.n * height + row) * width + column) * inputs : nothing.data();
        }
        transform_input(d, inputs, v.data() + t * inputs, of_block * inputs);
      }
      for (int64_t k = 0; k < outputs; k += kChunk) {
        for (int64_t point = 0; point < kPoints; ++point)
          for (int64_t t = 0; t < count; t += kRows)
            multiply<kWidth, kRows>(v.data() + (point * of_block + t) * inputs, inputs,
                                    u.data() + (k * kPoints + point * kChunk) * inputs,
                                    m.data() + (point * of_block + t) * kChunk);
        for (int64_t t = 0; t < count; ++t) {
          const auto p = position(first + t);
          float* y[4];
          for (int64_t i = 0; i < 4; ++i) {
            const int64_t row = p.y + i / 2, column = p.x + i % 2;
            const bool inside = row < height && column < width;
            y[i] = inside ? output + ((p.n * height + row) * width + column) * outputs + k : outside.data();
          }
          transform_output<kRelu>(m.data() + t * kChunk, of_block * kChunk, std::min(kChunk, outputs - k), y);
        }
      }
    }
  });
}

bool has_avx512() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(SRTOD_WITHOUT_AVX512) && !defined(SRTOD_BASELINE)
  return __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Tensor conv3x3_cpu(const Tensor& features, const Tensor& weight, bool relu) {
  STD_TORCH_CHECK(features.dim() == 4 && features.size(1) > 0 && features.scalar_type() == ScalarType::Float,
                  "conv3x3: expected features [N, C, H, W], float32, with channels");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == features.size(1) && weight.size(2) == 3 &&
                      weight.size(3) == 3 && weight.scalar_type() == ScalarType::Float,
                  "conv3x3: expected weight [K, C, 3, 3], float32");
  check_same_device("conv3x3", features, {&weight});
  const Tensor input = in_format(features, MemoryFormat::ChannelsLast);
  Tensor output = empty({input.size(0), weight.size(0), input.size(2), input.size(3)}, ScalarType::Float, input,
                        MemoryFormat::ChannelsLast);
  float* y = output.mutable_data_ptr<float>();
  if (output.numel() == 0) return output;
  if (has_avx512())  // 32 vector registers of 16 numbers, else 16 of 8
    relu ? convolve<16, 14, true>(input, weight, y) : convolve<16, 14, false>(input, weight, y);
  else
    relu ? convolve<8, 6, true>(input, weight, y) : convolve<8, 6, false>(input, weight, y);
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srtod, CPU, m) { m.impl("conv3x3", TORCH_BOX(&conv3x3_cpu)); }

}  // namespace srtod
