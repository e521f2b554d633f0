// graphlossy::quantize on the CPU: least and greatest value, metadata, codes, packing, one group at a time in cache.
#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "cpu_dispatch.h"
#include "group_math.h"

namespace lossy {
namespace {

struct QuantizeArgs {
  const void* x;
  uint8_t* packed;
  uint16_t* scale;
  uint16_t* offset;
  int64_t width, group_size;
  int bits;
  bool stochastic;
  uint32_t seed;  // seed_hash
};

// Codes of n elements; element i < n / 2 takes the low half of hash i, element i + n / 2 the high half.
LOSSY_INLINE void encode_stochastic(const float* __restrict v, uint8_t* __restrict code, int32_t n, float offset,
                                    float inv, int levels, uint32_t key) {
  const int32_t half = n / 2;
#pragma omp simd
  for (int32_t i = 0; i < half; ++i) {
    const uint32_t h = mix32(key + (uint32_t)i);
    code[i] = (uint8_t)encode(v[i], offset, inv, levels, unit16(h & 0xffffu));
    code[i + half] = (uint8_t)encode(v[i + half], offset, inv, levels, unit16(h >> 16));
  }
}
LOSSY_INLINE void encode_nearest(const float* __restrict v, uint8_t* __restrict code, int32_t n, float offset,
                                 float inv, int levels) {
#pragma omp simd
  for (int32_t i = 0; i < n; ++i) code[i] = (uint8_t)encode(v[i], offset, inv, levels, 0.5f);
}

// Planar packing: byte j holds elements j, j + P, j + 2P, ...
template <int BITS>
LOSSY_INLINE uint8_t packed_byte(const uint8_t* __restrict code, int32_t j, int32_t plane) {
  uint32_t byte = code[j];
#pragma GCC unroll 8
  for (int k = 1; k < 8 / BITS; ++k) byte |= (uint32_t)code[j + k * plane] << (k * BITS);
  return (uint8_t)byte;
}
template <int BITS>
LOSSY_INLINE void pack_planes(const uint8_t* __restrict code, uint8_t* __restrict out, int32_t n) {
  const int32_t plane = n * BITS / 8;
  if (plane % 32 == 0) {
#pragma omp simd
    for (int32_t j = 0; j < plane; ++j) out[j] = packed_byte<BITS>(code, j, plane);
  } else {
#pragma omp simd simdlen(16)
    for (int32_t j = 0; j < plane; ++j) out[j] = packed_byte<BITS>(code, j, plane);
  }
}
LOSSY_INLINE void pack_group(uint8_t* __restrict code, uint8_t* __restrict out, int32_t n, int bits) {
  if (bits == 1) return pack_planes<1>(code, out, n);
  if (bits == 2) return pack_planes<2>(code, out, n);
  if (bits == 4) return pack_planes<4>(code, out, n);
  uint8_t* __restrict high = code + n;  // 3 bits: the low two, then the high one
#pragma omp simd
  for (int32_t j = 0; j < n; ++j) {
    high[j] = code[j] >> 2;
    code[j] &= 3;
  }
  pack_planes<2>(code, out, n);
  pack_planes<1>(high, out + n / 4, n);
}

// Groups whose metadata is computed together, as vectors: as many as stay in the first-level cache.
constexpr int64_t kBatch = 32, kBatchElements = 4096;
struct Batch {
  float lo[kBatch], hi[kBatch], scale[kBatch], offset[kBatch], inv[kBatch];
  uint32_t largest[kBatch], key[kBatch];
};

template <class T>
struct QuantizeBody {
  static LOSSY_INLINE void run(const QuantizeArgs& a, int64_t first, int64_t last) {
    const int64_t per_row = (a.width + a.group_size - 1) / a.group_size, row_bytes = padded(a.width) / 8 * a.bits;
    const int64_t longest = padded(std::min(a.width, a.group_size));
    const int levels = (1 << a.bits) - 1;
    const int64_t batch = std::max<int64_t>(1, std::min(kBatch, kBatchElements / longest));
    const bool small = longest <= kBatchElements;
    float near_values[kBatchElements];
    uint8_t near_codes[2 * kBatchElements];
    std::unique_ptr<float[]> far_values(small ? nullptr : new float[longest]);
    std::unique_ptr<uint8_t[]> far_codes(small ? nullptr : new uint8_t[2 * longest]);
    float* const values = small ? near_values : far_values.get();
    uint8_t* const codes = small ? near_codes : far_codes.get();
    Batch b;
    for (int64_t start = first; start < last; start += batch) {
      const int count = (int)std::min(batch, last - start);
      const int64_t row = start / per_row, g = start % per_row;
      const T* from[kBatch];
      int32_t length[kBatch];
      Place place{row, g};
      for (int i = 0; i < count; ++i, place.step(per_row)) {
        from[i] = static_cast<const T*>(a.x) + place.row * a.width + place.g * a.group_size;
        length[i] = (int32_t)group_length(a.width, a.group_size, place.g);
        if (direct(length[i])) {
          scan<false>(from[i], nullptr, length[i], b.lo[i], b.hi[i], b.largest[i]);
        } else {
          scan<true>(from[i], values + i * longest, length[i], b.lo[i], b.hi[i], b.largest[i]);
        }
      }
      describe(a, b, start, count, levels);
      place = Place{row, g};
      for (int i = 0; i < count; ++i, place.step(per_row)) {
        const int32_t n = (int32_t)padded(length[i]);
        uint8_t* out = a.packed + place.row * row_bytes + place.g * (a.group_size / 8 * a.bits);
        if (is_poisoned(b.scale[i])) {
          std::memset(out, 0, n / 8 * a.bits);
          continue;
        }
        float* kept = values + i * longest;
        for (int32_t j = length[i]; j < n; ++j) kept[j] = b.offset[i];  // padding has code 0
        const float* v = direct(length[i]) ? reinterpret_cast<const float*>(from[i]) : kept;
        uint8_t* code = a.bits == 8 ? out : codes;
        if (a.stochastic) {
          encode_stochastic(v, code, n, b.offset[i], b.inv[i], levels, b.key[i]);
        } else {
          encode_nearest(v, code, n, b.offset[i], b.inv[i], levels);
        }
        if (a.bits != 8) pack_group(codes, out, n, a.bits);
      }
    }
  }

 private:
  struct Place {
    int64_t row, g;
    LOSSY_INLINE void step(int64_t per_row) {
      if (++g == per_row) g = 0, ++row;
    }
  };

  // Whether the values can be read where they are: float32 and no padding.
  static LOSSY_INLINE bool direct(int32_t length) { return std::is_same<T, float>::value && length % 8 == 0; }

  // Least and greatest value and largest pattern without sign; with KEEP also the values as float32.
  template <bool KEEP>
  static LOSSY_INLINE void scan(const T* __restrict x, float* __restrict values, int32_t length, float& lo, float& hi,
                                uint32_t& largest) {
    float low = to_float(x[0]), high = low;
    int32_t top = 0;
#pragma omp simd reduction(min : low) reduction(max : high, top)
    for (int32_t i = 0; i < length; ++i) {
      const float v = to_float(x[i]);
      const int32_t pattern = (int32_t)(bits_of(v) & 0x7fffffffu);
      low = v < low ? v : low;
      high = v > high ? v : high;
      top = pattern > top ? pattern : top;
      if (KEEP) values[i] = v;
    }
    lo = low, hi = high, largest = (uint32_t)top;
  }

  static LOSSY_INLINE void describe(const QuantizeArgs& a, Batch& b, int64_t start, int count, int levels) {
    // Only four-byte types, so that a batch fills vectors.
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      describe_group(b.lo[i], b.hi[i], b.largest[i], levels, b.scale[i], b.offset[i], b.inv[i]);
    }
#pragma omp simd
    for (int i = 0; i < count; ++i) b.key[i] = group_key(a.seed, (uint64_t)(start + i));
    for (int i = 0; i < count; ++i) {
      a.scale[start + i] = (uint16_t)(bits_of(b.scale[i]) >> 16);
      a.offset[start + i] = (uint16_t)(bits_of(b.offset[i]) >> 16);
    }
  }
};
}  // namespace
}  // namespace lossy

extern "C" {

// Changes whenever a signature or the meaning of an argument does.
int lossy_abi() { return 8; }
// Highest instruction-set level of this processor (see level_of).
int lossy_level() { return lossy::level_of(-1); }

// dtype: 0 float32, 1 float16, 2 bfloat16, 3 float64. Returns 0, or -1 for an unknown type.
int lossy_quantize(const void* x, int dtype, uint8_t* packed, uint16_t* scale, uint16_t* offset, int64_t rows,
                   int64_t width, int64_t group_size, int bits, int stochastic, uint64_t seed, int threads, int level) {
  using namespace lossy;
  if (rows == 0 || width == 0) return 0;
  const QuantizeArgs a{x, packed, scale, offset, width, group_size, bits, stochastic != 0, seed_hash(seed)};
  prepare_result(packed, rows * (padded(width) / 8 * bits), level);  // its short stores stay plain ones
  const int64_t count = rows * ((width + group_size - 1) / group_size);
  const int64_t block = std::max<int64_t>(1, 32768 / std::min(width, group_size));
  switch (dtype) {
    case 0: run_parallel<QuantizeBody<float>>(a, count, block, threads, level); return 0;
    case 1: run_parallel<QuantizeBody<half_bits>>(a, count, block, threads, level); return 0;
    case 2: run_parallel<QuantizeBody<bfloat16_bits>>(a, count, block, threads, level); return 0;
    case 3: run_parallel<QuantizeBody<double>>(a, count, block, threads, level); return 0;
    default: return -1;
  }
}
}
