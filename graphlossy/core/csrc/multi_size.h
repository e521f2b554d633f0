// What the kernels of graphlossy::rank_lookup and the multi_size operators share: rows of several widths, each found by
// the rank of its token among those of its bucket and projected to one common width. The definition is
// graphlossy/core/_multi_size.py; all but the gradient of a projection agree with it bit for bit.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu_dispatch.h"
#include "group_math.h"

namespace lossy {

constexpr int kWord = 64, kWords = 8;        // tokens of a word; words between two entries of the directory
constexpr int kLanes = 16;                   // partial sums of a dot product; columns of a projection at a time
constexpr int64_t kChunk = 1024;             // positions whose gradients of projections are added up on their own
constexpr int64_t kBlock = 256, kAhead = 8;  // positions of a thread at a time, and how far ahead memory is asked for
enum Kind { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kLowBit = 3 };

// As in graphlossy/core/multi_size.py.
struct Bucket {
  const void* table;        // [rows, size], or the codes of graphlossy::quantize
  const uint16_t* scale;    // of low-bit rows, else null
  const uint16_t* offset;
  const float* projection;  // [size, dim]; null: the identity
  int64_t rows, group_size;
  int64_t size;
  int64_t flat;             // groups of codes run over the whole table rather than along each row
  int64_t group_shift;      // log2 of group_size, -1 if it is no power of two
};

// A block of 512 tokens has its planes one after another, each of as many words as the block has (8 but in the last).
struct Rank {
  const uint64_t* planes;  // [words * bits]
  const void* counts;      // [blocks, codes] int32 or int64
  int64_t words, tokens;
  int bits, codes, wide;

  LOSSY_INLINE int64_t count(int64_t block, int code) const {
    const int64_t at = block * codes + code;
    return wide ? static_cast<const int64_t*>(counts)[at] : static_cast<const int32_t*>(counts)[at];
  }
  LOSSY_INLINE const uint64_t* block_of(int64_t block) const { return planes + block * kWords * bits; }
  LOSSY_INLINE int stride(int64_t block) const { return (int)std::min<int64_t>(kWords, words - block * kWords); }
  // The bucket numbers of the 64 tokens of word `w` of a block.
  LOSSY_INLINE void codes_of(const uint64_t* plane, int stride, int w, uint8_t* __restrict code) const {
    for (int t = 0; t < kWord; ++t) code[t] = 0;
    for (int b = 0; b < bits; ++b) {
      const uint64_t word = plane[b * stride + w];
#pragma omp simd
      for (int t = 0; t < kWord; ++t) code[t] |= (uint8_t)((word >> t & 1) << b);
    }
  }
};

// A row as float32: in place, or decoded to `room`.
LOSSY_INLINE const float* fetch(const Bucket& b, int kind, int bits, int64_t row, float* room) {
  if (kind == kFloat32) return static_cast<const float*>(b.table) + row * b.size;
  if (kind != kLowBit) {
    const uint16_t* from = static_cast<const uint16_t*>(b.table) + row * b.size;
    if (kind == kFloat16) {
      for (int64_t i = 0; i < b.size; ++i) room[i] = half_to_float(from[i]);
    } else {
      for (int64_t i = 0; i < b.size; ++i) room[i] = bfloat16_to_float(from[i]);
    }
    return room;
  }
  // Codes of a group are planar (see _reference.py): position p is in byte p % plane, at bit (p / plane) * bits.
  const int64_t width = b.flat ? b.rows * b.size : b.size;
  const int64_t groups = (width + b.group_size - 1) / b.group_size;
  const uint8_t* codes = static_cast<const uint8_t*>(b.table) + (b.flat ? 0 : row * (padded(width) / 8 * bits));
  const int64_t first_group = b.flat ? 0 : row * groups, start = b.flat ? row * b.size : 0;
  int64_t g = b.group_shift >= 0 ? start >> b.group_shift : start / b.group_size, p = start - g * b.group_size, i = 0;
  if (b.group_shift >= 0 && p + b.size <= b.group_size && g + 1 < groups) {  // within one group, a whole one
    const int plane_shift = b.group_shift - 3 + (bits == 8 ? 3 : bits == 4 ? 2 : bits == 2 ? 1 : 0);
    const int64_t plane = int64_t{1} << plane_shift, k = p >> plane_shift, j = p & (plane - 1);
    if (j + b.size <= plane) {
      const uint8_t* __restrict from = codes + g * (b.group_size / 8 * bits) + j;
      const float scale = bfloat16_to_float(b.scale[first_group + g]);
      const float offset = bfloat16_to_float(b.offset[first_group + g]);
      const int shift = (int)(k * bits), mask = (1 << bits) - 1;
#pragma omp simd
      for (int64_t t = 0; t < b.size; ++t) room[t] = canonical(decode(from[t] >> shift & mask, scale, offset));
      return room;
    }
  }
  while (i < b.size) {
    const int64_t length = group_length(width, b.group_size, g), plane = padded(length) * bits / 8;
    const uint8_t* from = codes + g * (b.group_size / 8 * bits);
    const float scale = bfloat16_to_float(b.scale[first_group + g]);
    const float offset = bfloat16_to_float(b.offset[first_group + g]);
    const int64_t end = std::min(b.size, i + length - p);
    int64_t k = p / plane, j = p - k * plane;
    for (; i < end; ++i) {
      room[i] = canonical(decode(from[j] >> (k * bits) & ((1 << bits) - 1), scale, offset));
      if (++j == plane) {
        j = 0;
        ++k;
      }
    }
    ++g;
    p = 0;
  }
  return room;
}
LOSSY_INLINE void ask_for_row(const Bucket& b, int kind, int64_t row) {
  if (kind == kLowBit) return;  // a row's codes are few bytes; its address takes longer to find than to wait for
  const int64_t bytes = b.size * (kind == kFloat32 ? 4 : 2);
  const char* from = static_cast<const char*>(b.table) + row * bytes;
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
}

template <int N>
LOSSY_INLINE void project_columns(const float* v, const Bucket& b, int64_t dim, int64_t j, float* __restrict out) {
  float sum[N] = {};
  for (int64_t i = 0; i < b.size; ++i) {
    const float x = v[i];
    const float* __restrict p = b.projection + i * dim + j;
#pragma omp simd
    for (int t = 0; t < N; ++t) sum[t] = add_rn(sum[t], mul_rn(x, p[t]));
  }
#pragma omp simd
  for (int t = 0; t < N; ++t) out[j + t] = sum[t];
}
// out[j] = sum_i v[i] P[i, j], added in the order of i from zero on.
LOSSY_INLINE void project(const float* v, const Bucket& b, int64_t dim, float* __restrict out) {
  int64_t j = 0;
  if (!b.projection) {
#pragma omp simd
    for (j = 0; j < dim; ++j) out[j] = v[j];
    return;
  }
  for (; j + 2 * kLanes <= dim; j += 2 * kLanes) project_columns<2 * kLanes>(v, b, dim, j, out);
  for (; j + kLanes <= dim; j += kLanes) project_columns<kLanes>(v, b, dim, j, out);
  for (; j < dim; ++j) project_columns<1>(v, b, dim, j, out);
}

inline int64_t longest_row(const Bucket* buckets, int64_t codes) {
  int64_t longest = 1;
  for (int64_t k = 0; k < codes; ++k) longest = std::max(longest, buckets[k].size);
  return longest;
}
}  // namespace lossy
