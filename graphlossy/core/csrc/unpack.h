// Codes of a group, planar as graphlossy/core/_reference.py lays them out, to one byte each.
#pragma once
#include "cpu_dispatch.h"

namespace lossy {

template <int BITS>
LOSSY_INLINE void unpack_planes(const uint8_t* __restrict packed, uint8_t* __restrict code, int32_t n) {
  constexpr uint8_t kMask = (1 << BITS) - 1;
  const int32_t plane = n * BITS / 8;
#pragma GCC unroll 8
  for (int k = 0; k < 8 / BITS; ++k) {
    uint8_t* __restrict to = code + k * plane;
    if (plane % 32 == 0) {
#pragma omp simd
      for (int32_t j = 0; j < plane; ++j) to[j] = (uint8_t)(packed[j] >> (k * BITS)) & kMask;
    } else {
#pragma omp simd simdlen(16)
      for (int32_t j = 0; j < plane; ++j) to[j] = (uint8_t)(packed[j] >> (k * BITS)) & kMask;
    }
  }
}
// code: room for 2 n bytes.
LOSSY_INLINE void unpack_group(const uint8_t* __restrict packed, uint8_t* __restrict code, int32_t n, int bits) {
  if (bits == 1) return unpack_planes<1>(packed, code, n);
  if (bits == 2) return unpack_planes<2>(packed, code, n);
  if (bits == 4) return unpack_planes<4>(packed, code, n);
  uint8_t* __restrict high = code + n;
  unpack_planes<2>(packed, code, n);
  unpack_planes<1>(packed + n / 4, high, n);
#pragma omp simd
  for (int32_t j = 0; j < n; ++j) code[j] |= (uint8_t)(high[j] << 2);
}
}  // namespace lossy
