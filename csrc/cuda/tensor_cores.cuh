// Products of 16x16 by 16x8 half-precision matrices, with sums in float32.
#pragma once
#include "launch.cuh"

namespace srtod {

// Lane 4 g + t of a warp holds, two values of a half type in a word, of A (16 rows, 16 columns)
//   a[0]: (g, 2t), (g, 2t + 1)    a[1]: (g + 8, same)    a[2]: (g, 2t + 8), (g, 2t + 9)    a[3]: (g + 8, same),
// of B (16 rows, 8 columns) b[0]: (2t, g), (2t + 1, g)    b[1]: (2t + 8, g), (2t + 9, g),
// and of the sums (16 rows, 8 columns) sums[0], [1]: (g, 2t), (g, 2t + 1)    sums[2], [3]: (g + 8, same).
#ifdef SRTOD_EMULATION
template <class T>
void multiply_add_16x8x16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const unsigned lane = emulation::machine().current->lane, g = lane / 4, t = lane % 4;
  const auto half = [](uint32_t word, unsigned k) {
    const uint16_t bits = static_cast<uint16_t>(word >> (16 * k));
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<float>(value);
  };
  for (unsigned part = 0; part < 2; ++part)
    for (unsigned from = 0; from < 4; ++from) {
      uint32_t rows[2], columns[2];
      for (unsigned k = 0; k < 2; ++k) rows[k] = emulation::shuffle(a[2 * part + k], 4 * g + from);
      for (unsigned k = 0; k < 2; ++k) columns[k] = emulation::shuffle(b[part], 4 * (2 * t + k) + from);
      for (unsigned row = 0; row < 2; ++row)
        for (unsigned column = 0; column < 2; ++column)
          for (unsigned k = 0; k < 2; ++k) sums[2 * row + column] += half(rows[row], k) * half(columns[column], k);
    }
}
#else
template <class T>
__device__ __forceinline__ void multiply_add_16x8x16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, Half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

}  // namespace srtod
