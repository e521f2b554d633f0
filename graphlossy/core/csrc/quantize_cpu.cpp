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
LOSSY_INLINE void encode_stochastic(const float* __restrict v, uint8_t* __restrict code, int64_t n, Affine a,
                                    float levels, uint32_t key) {
  const int64_t half = n / 2;
  const float offset = a.offset, inv = a.inv;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const uint32_t h = mix32(key + (uint32_t)i);
    code[i] = (uint8_t)encode(v[i], offset, inv, levels, unit16(h & 0xffffu));
    code[i + half] = (uint8_t)encode(v[i + half], offset, inv, levels, unit16(h >> 16));
  }
}
LOSSY_INLINE void encode_nearest(const float* __restrict v, uint8_t* __restrict code, int64_t n, Affine a, float levels) {
  const float offset = a.offset, inv = a.inv;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) code[i] = (uint8_t)encode(v[i], offset, inv, levels, 0.5f);
}

// Planar packing: byte j holds elements j, j + P, j + 2P, ...
template <int BITS>
LOSSY_INLINE void pack_planes(const uint8_t* __restrict code, uint8_t* __restrict out, int64_t n) {
  constexpr int kPer = 8 / BITS;
  const int64_t plane = n / kPer;
#pragma omp simd
  for (int64_t j = 0; j < plane; ++j) {
    uint32_t byte = code[j];
#pragma GCC unroll 8
    for (int k = 1; k < kPer; ++k) byte |= (uint32_t)code[j + k * plane] << (k * BITS);
    out[j] = (uint8_t)byte;
  }
}
LOSSY_INLINE void pack_group(uint8_t* __restrict code, uint8_t* __restrict out, int64_t n, int bits) {
  if (bits == 1) return pack_planes<1>(code, out, n);
  if (bits == 2) return pack_planes<2>(code, out, n);
  if (bits == 4) return pack_planes<4>(code, out, n);
  uint8_t* __restrict high = code + n;  // 3 bits: the low two, then the high one
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    high[j] = code[j] >> 2;
    code[j] &= 3;
  }
  pack_planes<2>(code, out, n);
  pack_planes<1>(high, out + n / 4, n);
}

template <class T>
struct QuantizeBody {
  static LOSSY_INLINE void run(const QuantizeArgs& a, int64_t first, int64_t last) {
    const int64_t per_row = (a.width + a.group_size - 1) / a.group_size, row_bytes = padded(a.width) / 8 * a.bits;
    const int64_t longest = padded(std::min(a.width, a.group_size));
    const int levels = (1 << a.bits) - 1;
    float kept_values[1024];
    uint8_t kept_codes[2048];
    std::unique_ptr<float[]> more_values(longest > 1024 ? new float[longest] : nullptr);
    std::unique_ptr<uint8_t[]> more_codes(longest > 1024 ? new uint8_t[2 * longest] : nullptr);
    float* __restrict values = longest > 1024 ? more_values.get() : kept_values;
    uint8_t* codes = longest > 1024 ? more_codes.get() : kept_codes;
    int64_t row = first / per_row, g = first % per_row;
    for (int64_t index = first; index < last; ++index) {
      const int64_t length = group_length(a.width, a.group_size, g), n = padded(length);
      const T* __restrict x = static_cast<const T*>(a.x) + row * a.width + g * a.group_size;
      const bool direct = std::is_same<T, float>::value && n == length;
      float lo = to_float(x[0]), hi = lo;
      uint32_t largest = 0;  // of the patterns without sign: infinity or more if there is an infinity or a NaN
      if (direct) {
        scan<false>(x, values, length, lo, hi, largest);
      } else {
        scan<true>(x, values, length, lo, hi, largest);
      }
      const Affine affine = affine_of(lo, hi, largest < kInfinity, levels);
      a.scale[index] = (uint16_t)(bits_of(affine.scale) >> 16);
      a.offset[index] = (uint16_t)(bits_of(affine.offset) >> 16);
      uint8_t* out = a.packed + row * row_bytes + g * (a.group_size / 8 * a.bits);
      if (affine.poisoned) {
        std::memset(out, 0, n / 8 * a.bits);
      } else {
        for (int64_t i = length; i < n; ++i) values[i] = affine.offset;  // padding has code 0
        const float* v = direct ? reinterpret_cast<const float*>(x) : values;
        uint8_t* code = a.bits == 8 ? out : codes;
        if (a.stochastic) {
          encode_stochastic(v, code, n, affine, (float)levels, group_key(a.seed, (uint64_t)index));
        } else {
          encode_nearest(v, code, n, affine, (float)levels);
        }
        if (a.bits != 8) pack_group(codes, out, n, a.bits);
      }
      if (++g == per_row) {
        g = 0;
        ++row;
      }
    }
  }

  template <bool KEEP>
  static LOSSY_INLINE void scan(const T* __restrict x, float* __restrict values, int64_t length, float& lo, float& hi,
                                uint32_t& largest) {
    float low = lo, high = hi;
    int32_t top = 0;
#pragma omp simd reduction(min : low) reduction(max : high, top)
    for (int64_t i = 0; i < length; ++i) {
      const float v = to_float(x[i]);
      const int32_t pattern = (int32_t)(bits_of(v) & 0x7fffffffu);
      low = v < low ? v : low;
      high = v > high ? v : high;
      top = pattern > top ? pattern : top;
      if (KEEP) values[i] = v;
    }
    lo = low, hi = high, largest = (uint32_t)top;
  }
};
}  // namespace
}  // namespace lossy

extern "C" {

// Changes whenever a signature or the meaning of an argument does.
int lossy_abi() { return 1; }
// Highest instruction-set level of this processor (see level_of).
int lossy_level() { return lossy::level_of(-1); }

// dtype: 0 float32, 1 float16, 2 bfloat16, 3 float64. Returns 0, or -1 for an unknown type.
int lossy_quantize(const void* x, int dtype, uint8_t* packed, uint16_t* scale, uint16_t* offset, int64_t rows,
                   int64_t width, int64_t group_size, int bits, int stochastic, uint64_t seed, int threads, int level) {
  using namespace lossy;
  if (rows == 0 || width == 0) return 0;
  const QuantizeArgs a{x, packed, scale, offset, width, group_size, bits, stochastic != 0, seed_hash(seed)};
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
