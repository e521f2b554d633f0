// Weighted sums of low-bit rows that are decoded nowhere: with codes c, scales s and offsets o of the rows i,
// sum_i w_i (s_i c_ij + o_i) = sum_i (w_i s_i) c_ij + sum_i w_i o_i.
#pragma once
#include "group_math.h"
#include "unpack.h"

namespace lossy {

// Chunks in low bits, rows of `width` codes in groups: keys are rows of tokens, one for every channel; values are rows of
// channels, one for every token.
struct Packed {
  const uint8_t* codes;
  const uint16_t* scale;
  const uint16_t* offset;
  int64_t chunks, rows, width, group_size;  // chunks: of every head
  int bits;

  LOSSY_INLINE int64_t groups() const { return (width + group_size - 1) / group_size; }
  LOSSY_INLINE int64_t row_bytes() const { return padded(width) / 8 * bits; }
};

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint64_t Longs __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(64)));
constexpr int kWide = 32;  // elements of a group that is taken apart in registers

// The codes of 32 elements, 16 at a time, in their order.
template <int BITS>
LOSSY_INLINE void codes_of(const uint8_t* packed, Bytes& first, Bytes& second) {
  if constexpr (BITS == 8) {
    std::memcpy(&first, packed, 16);
    std::memcpy(&second, packed + 16, 16);
  } else if constexpr (BITS == 4) {
    Bytes both;
    std::memcpy(&both, packed, 16);
    first = both & 15;
    second = both >> 4;
  } else if constexpr (BITS == 2) {
    uint64_t plane;
    std::memcpy(&plane, packed, 8);
    const Longs low = {plane, plane >> 2}, high = {plane >> 4, plane >> 6};
    first = (Bytes)low & 3;
    second = (Bytes)high & 3;
  } else if constexpr (BITS == 1) {
    uint32_t plane;
    std::memcpy(&plane, packed, 4);
    const Words low = {plane, plane >> 1, plane >> 2, plane >> 3};
    const Words high = {plane >> 4, plane >> 5, plane >> 6, plane >> 7};
    first = (Bytes)low & 1;
    second = (Bytes)high & 1;
  } else {  // 3: planes of 2 bits, then planes of 1
    Bytes high_first, high_second;
    codes_of<2>(packed, first, second);
    codes_of<1>(packed + 8, high_first, high_second);
    first |= high_first << 2;
    second |= high_second << 2;
  }
}

// Codes of a group of 32 elements in each of `rows` rows as floats [rows, 32].
template <int BITS>
LOSSY_INLINE void unpack_wide(const uint8_t* codes, int64_t bytes, int64_t rows, uint8_t* __restrict room,
                              float* __restrict tile) {
  for (int64_t i = 0; i < rows; ++i) {
    Bytes first, second;
    codes_of<BITS>(codes + i * bytes, first, second);
    std::memcpy(room + i * kWide, &first, sizeof(first));
    std::memcpy(room + i * kWide + sizeof(first), &second, sizeof(second));
  }
#pragma omp simd
  for (int64_t i = 0; i < rows * kWide; ++i) tile[i] = (float)room[i];  // one long loop: compilers widen it well
}

// out[r, j] of RB queries = base[r] + sum_i factor[r, i] tile[i, j]; `add`: to what is there.
template <int RB>
LOSSY_INLINE void weigh_wide(const float* tile, int64_t rows, const float* factor, const float* base, bool add,
                             float* out, int64_t stride) {
  Floats sum[RB][2];
#pragma GCC unroll 4
  for (int r = 0; r < RB; ++r) sum[r][0] = sum[r][1] = Floats{} + base[r];
  for (int64_t i = 0; i < rows; ++i) {
    Floats x[2];
    std::memcpy(x, tile + i * kWide, sizeof(x));
#pragma GCC unroll 4
    for (int r = 0; r < RB; ++r) {
      const float f = factor[r * rows + i];
      sum[r][0] += f * x[0];
      sum[r][1] += f * x[1];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < RB; ++r) {
    if (add) {
      Floats before[2];
      std::memcpy(before, out + r * stride, sizeof(before));
      sum[r][0] += before[0];
      sum[r][1] += before[1];
    }
    std::memcpy(out + r * stride, sum[r], sizeof(sum[r]));
  }
}

// The same for any group; room: for its codes as bytes, twice.
LOSSY_INLINE void weigh_narrow(const uint8_t* codes, int64_t bytes, int64_t rows, const float* factor, float base,
                               bool add, float* __restrict out, int32_t length, int bits, uint8_t* room) {
  for (int32_t j = 0; j < length; ++j) out[j] = add ? out[j] + base : base;
  for (int64_t i = 0; i < rows; ++i) {
    if (bits != 8) unpack_group(codes + i * bytes, room, (int32_t)padded(length), bits);
    const uint8_t* __restrict code = bits == 8 ? codes + i * bytes : room;
    const float f = factor[i];
#pragma omp simd
    for (int32_t j = 0; j < length; ++j) out[j] += f * (float)code[j];
  }
}

// out[r, j] = sum_i weight[r, i] x[i, j] of a chunk x of I rows, which are decoded nowhere: scores if x are keys (rows are
// channels, weights the query), the result if they are values (rows are tokens, weights those of the softmax).
LOSSY_INLINE void weigh(const Packed& x, int64_t chunk, int64_t queries, const float* __restrict weight,
                        int64_t weight_stride, bool add, float* __restrict out, int64_t stride, float* __restrict factor,
                        float* tile, uint8_t* room) {
  const int64_t groups = x.groups(), bytes = x.row_bytes();
  float *__restrict base = factor + queries * x.rows, *__restrict scales = base + queries;
  float* __restrict offsets = scales + x.rows;
  for (int64_t g = 0; g < groups; ++g) {
    const uint16_t *scale = x.scale + chunk * x.rows * groups + g, *offset = x.offset + chunk * x.rows * groups + g;
    for (int64_t i = 0; i < x.rows; ++i) {
      scales[i] = bfloat16_to_float(scale[i * groups]);
      offsets[i] = bfloat16_to_float(offset[i * groups]);
    }
    for (int64_t r = 0; r < queries; ++r) {
      const float* __restrict w = weight + r * weight_stride;
      float* __restrict to = factor + r * x.rows;
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < x.rows; ++i) {
        to[i] = w[i] * scales[i];
        sum += w[i] * offsets[i];
      }
      base[r] = sum;
    }
    const int32_t length = (int32_t)group_length(x.width, x.group_size, g);
    const uint8_t* codes = x.codes + chunk * x.rows * bytes + g * (x.group_size / 8 * x.bits);
    float* to = out + g * x.group_size;
    if (length == kWide) {
      if (x.bits == 1) unpack_wide<1>(codes, bytes, x.rows, room, tile);
      if (x.bits == 2) unpack_wide<2>(codes, bytes, x.rows, room, tile);
      if (x.bits == 3) unpack_wide<3>(codes, bytes, x.rows, room, tile);
      if (x.bits == 4) unpack_wide<4>(codes, bytes, x.rows, room, tile);
      if (x.bits == 8) unpack_wide<8>(codes, bytes, x.rows, room, tile);
      for (int64_t r = 0; r < queries; r += 4) {
        const float *f = factor + r * x.rows, *b = base + r;
        if (queries - r >= 4) weigh_wide<4>(tile, x.rows, f, b, add, to + r * stride, stride);
        if (queries - r == 3) weigh_wide<3>(tile, x.rows, f, b, add, to + r * stride, stride);
        if (queries - r == 2) weigh_wide<2>(tile, x.rows, f, b, add, to + r * stride, stride);
        if (queries - r == 1) weigh_wide<1>(tile, x.rows, f, b, add, to + r * stride, stride);
      }
      continue;
    }
    for (int64_t r = 0; r < queries; ++r) {
      weigh_narrow(codes, bytes, x.rows, factor + r * x.rows, base[r], add, to + r * stride, length, x.bits, room);
    }
  }
}
}  // namespace lossy
