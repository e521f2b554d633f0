// The five operators on CUDA, compiled by NVRTC at first use. The arithmetic is group_math.h's, so the results are those
// of the CPU kernels and of the reference bit for bit; here is only who does what: a warp takes a group.
#include "group_math.h"

namespace lossy {

constexpr int kLanes = 32, kThreads = 256, kWarps = kThreads / kLanes;
constexpr unsigned kEveryLane = 0xffffffffu;
// A group of this many elements, the default, stays in registers: 8 elements a lane, element lane + 32 t in slot t.
constexpr int kSlots = 8, kRegisterGroup = kLanes * kSlots;

LOSSY_FN int lane_index() { return (int)(threadIdx.x % kLanes); }
LOSSY_FN int64_t warp_index() { return (int64_t)blockIdx.x * kWarps + threadIdx.x / kLanes; }
LOSSY_FN int64_t warp_count() { return (int64_t)gridDim.x * kWarps; }
LOSSY_FN int64_t thread_index() { return (int64_t)blockIdx.x * kThreads + threadIdx.x; }
LOSSY_FN int64_t thread_count() { return (int64_t)gridDim.x * kThreads; }

// Where a group lies, counted over all rows.
struct Place {
  int64_t x, packed, length;
};
LOSSY_FN Place locate(int64_t group, int64_t width, int64_t group_size, int bits) {
  const int64_t per_row = (width + group_size - 1) / group_size;
  const int64_t row = group / per_row, g = group - row * per_row;
  return {row * width + g * group_size, row * (padded(width) / 8 * bits) + g * (group_size / 8 * bits),
          group_length(width, group_size, g)};
}

struct Range {
  float lo, hi;
  uint32_t largest;  // pattern without its sign
};
LOSSY_FN void widen(Range& r, float v) {
  const uint32_t pattern = bits_of(v) & 0x7fffffffu;
  r.lo = v < r.lo ? v : r.lo;
  r.hi = v > r.hi ? v : r.hi;
  r.largest = pattern > r.largest ? pattern : r.largest;
}
LOSSY_FN Range over_warp(Range r) {
#pragma unroll
  for (int m = kLanes / 2; m > 0; m /= 2) {
    const float lo = __shfl_xor_sync(kEveryLane, r.lo, m), hi = __shfl_xor_sync(kEveryLane, r.hi, m);
    const uint32_t largest = __shfl_xor_sync(kEveryLane, r.largest, m);
    r.lo = lo < r.lo ? lo : r.lo;
    r.hi = hi > r.hi ? hi : r.hi;
    r.largest = largest > r.largest ? largest : r.largest;
  }
  return r;
}

// What encodes one group; the same in every lane.
struct Encoder {
  float scale, offset, inv;
  int levels;
  uint32_t key;
  bool stochastic;

  LOSSY_FN Encoder(Range r, int levels, uint32_t key, bool stochastic)
      : levels(levels), key(key), stochastic(stochastic) {
    describe_group(r.lo, r.hi, r.largest, levels, scale, offset, inv);
  }
  LOSSY_FN void store(uint16_t* to_scale, uint16_t* to_offset) const {
    *to_scale = (uint16_t)(bits_of(scale) >> 16);
    *to_offset = (uint16_t)(bits_of(offset) >> 16);
  }
  LOSSY_FN uint32_t hash(int64_t i) const { return stochastic ? mix32(key + (uint32_t)i) : 0x80008000u; }
  LOSSY_FN int code(float v, uint32_t h16) const {
    return is_poisoned(scale) ? 0 : encode(v, offset, inv, levels, unit16(h16));
  }
};

// -- groups in registers ------------------------------------------------------------------------------------------------

// Planar packing: byte j holds elements j, j + P, j + 2P, ... with P = 32 BITS bytes, so a lane owns BITS whole bytes.
template <int BITS>
LOSSY_FN void store_planes(uint8_t* packed, const int* code, int shift, int lane) {
  constexpr int kMask = (1 << BITS) - 1;
#pragma unroll
  for (int b = 0; b < BITS; ++b) {
    int byte = 0;
#pragma unroll
    for (int k = 0; k < 8 / BITS; ++k) byte |= ((code[b + k * BITS] >> shift) & kMask) << (k * BITS);
    packed[lane + kLanes * b] = (uint8_t)byte;
  }
}
template <int BITS>
LOSSY_FN void load_planes(const uint8_t* packed, int* code, int shift, int lane) {
  constexpr int kMask = (1 << BITS) - 1;
#pragma unroll
  for (int b = 0; b < BITS; ++b) {
    const int byte = packed[lane + kLanes * b];
#pragma unroll
    for (int k = 0; k < 8 / BITS; ++k) code[b + k * BITS] |= ((byte >> (k * BITS)) & kMask) << shift;
  }
}

template <class T, int BITS>
LOSSY_FN void quantize_in_registers(const T* x, uint8_t* packed, uint16_t* scale, uint16_t* offset, uint32_t key,
                                    bool stochastic, int lane) {
  float v[kSlots];
#pragma unroll
  for (int t = 0; t < kSlots; ++t) v[t] = to_float(x[lane + kLanes * t]);
  Range range{v[0], v[0], 0};
#pragma unroll
  for (int t = 0; t < kSlots; ++t) widen(range, v[t]);
  const Encoder encoder(over_warp(range), (1 << BITS) - 1, key, stochastic);
  if (lane == 0) encoder.store(scale, offset);
  int code[kSlots];
#pragma unroll
  for (int t = 0; t < kSlots / 2; ++t) {  // one hash serves an element of each half
    const uint32_t h = encoder.hash(lane + kLanes * t);
    code[t] = encoder.code(v[t], h & 0xffffu);
    code[t + kSlots / 2] = encoder.code(v[t + kSlots / 2], h >> 16);
  }
  if constexpr (BITS == 3) {
    store_planes<2>(packed, code, 0, lane);
    store_planes<1>(packed + kRegisterGroup / 4, code, 2, lane);
  } else {
    store_planes<BITS>(packed, code, 0, lane);
  }
}

template <class T, int BITS>
LOSSY_FN void dequantize_in_registers(const uint8_t* packed, float scale, float offset, T* out, int lane) {
  int code[kSlots] = {0, 0, 0, 0, 0, 0, 0, 0};
  if constexpr (BITS == 3) {
    load_planes<2>(packed, code, 0, lane);
    load_planes<1>(packed + kRegisterGroup / 4, code, 2, lane);
  } else {
    load_planes<BITS>(packed, code, 0, lane);
  }
#pragma unroll
  for (int t = 0; t < kSlots; ++t) store_decoded(decode(code[t], scale, offset), out + lane + kLanes * t);
}

// -- groups of any other length: read twice, the second time from a cache -------------------------------------------------

template <class T>
struct Codes {
  const T* x;
  int64_t length, half;
  Encoder encoder;

  LOSSY_FN int operator()(int64_t i) const {
    if (i >= length) return 0;  // padding
    const uint32_t h = encoder.hash(i < half ? i : i - half);
    return encoder.code(to_float(x[i]), i < half ? h & 0xffffu : h >> 16);
  }
};
template <int BITS, class T>
LOSSY_FN void store_planes(uint8_t* packed, const Codes<T>& codes, int shift, int lane) {
  constexpr int kMask = (1 << BITS) - 1;
  const int64_t plane = codes.half / 4 * BITS;
  for (int64_t j = lane; j < plane; j += kLanes) {
    int byte = 0;
#pragma unroll
    for (int k = 0; k < 8 / BITS; ++k) byte |= ((codes(j + k * plane) >> shift) & kMask) << (k * BITS);
    packed[j] = (uint8_t)byte;
  }
}
template <int BITS>
LOSSY_FN int code_at(const uint8_t* packed, int64_t n, int64_t i) {
  const int64_t plane = n / 8 * BITS;
  int k = 0;
  for (; i >= plane; i -= plane) ++k;
  return (packed[i] >> (k * BITS)) & ((1 << BITS) - 1);
}

template <class T, int BITS>
LOSSY_FN void quantize_any(const T* x, uint8_t* packed, uint16_t* scale, uint16_t* offset, int64_t length, uint32_t key,
                           bool stochastic, int lane) {
  const float first = to_float(x[0]);
  Range range{first, first, 0};
  for (int64_t i = lane; i < length; i += kLanes) widen(range, to_float(x[i]));
  const Encoder encoder(over_warp(range), (1 << BITS) - 1, key, stochastic);
  if (lane == 0) encoder.store(scale, offset);
  const Codes<T> codes{x, length, padded(length) / 2, encoder};
  if constexpr (BITS == 3) {
    store_planes<2>(packed, codes, 0, lane);
    store_planes<1>(packed + padded(length) / 4, codes, 2, lane);
  } else {
    store_planes<BITS>(packed, codes, 0, lane);
  }
}

template <class T, int BITS>
LOSSY_FN void dequantize_any(const uint8_t* packed, float scale, float offset, T* out, int64_t length, int lane) {
  const int64_t n = padded(length);
  for (int64_t i = lane; i < length; i += kLanes) {
    int code;
    if constexpr (BITS == 3) {
      code = code_at<2>(packed, n, i) | code_at<1>(packed + n / 4, n, i) << 2;
    } else {
      code = code_at<BITS>(packed, n, i);
    }
    store_decoded(decode(code, scale, offset), out + i);
  }
}

// -- kernels: blocks of kThreads, any number of blocks ----------------------------------------------------------------------

template <class T, int BITS>
LOSSY_FN void quantize(const T* x, uint8_t* packed, uint16_t* scale, uint16_t* offset, int64_t groups, int64_t width,
                       int64_t group_size, int stochastic, uint64_t seed) {
  const uint32_t hash = seed_hash(seed);
  for (int64_t g = warp_index(); g < groups; g += warp_count()) {
    const Place at = locate(g, width, group_size, BITS);
    const uint32_t key = group_key(hash, (uint64_t)g);
    if (at.length == kRegisterGroup) {
      quantize_in_registers<T, BITS>(x + at.x, packed + at.packed, scale + g, offset + g, key, stochastic != 0,
                                     lane_index());
    } else {
      quantize_any<T, BITS>(x + at.x, packed + at.packed, scale + g, offset + g, at.length, key, stochastic != 0,
                            lane_index());
    }
  }
}
template <class T, int BITS>
LOSSY_FN void dequantize(const uint8_t* packed, const uint16_t* scale, const uint16_t* offset, T* out, int64_t groups,
                         int64_t width, int64_t group_size) {
  for (int64_t g = warp_index(); g < groups; g += warp_count()) {
    const Place at = locate(g, width, group_size, BITS);
    const float s = bfloat16_to_float(scale[g]), o = bfloat16_to_float(offset[g]);
    if (at.length == kRegisterGroup) {
      dequantize_in_registers<T, BITS>(packed + at.packed, s, o, out + at.x, lane_index());
    } else {
      dequantize_any<T, BITS>(packed + at.packed, s, o, out + at.x, at.length, lane_index());
    }
  }
}

// A warp packs 32 words of 32 elements: bit i of a ballot is lane i's element, as the format wants it.
template <class T>
LOSSY_FN void pack_mask(const T* mask, uint8_t* out, int64_t numel) {
  constexpr int64_t kTile = kLanes * kLanes;
  const int lane = lane_index();
  for (int64_t start = warp_index() * kTile; start < numel; start += warp_count() * kTile) {
    uint32_t word = 0;
    for (int t = 0; t < kLanes; ++t) {
      const int64_t i = start + t * kLanes + lane;
      const uint32_t bits = __ballot_sync(kEveryLane, i < numel && is_set(mask[i]));
      if (t == lane) word = bits;
    }
    for (int k = 0; k < 4; ++k) {
      const int64_t byte = start / 8 + lane * 4 + k;
      if (byte < (numel + 7) / 8) out[byte] = (uint8_t)(word >> (8 * k));
    }
  }
}
LOSSY_FN void unpack_mask(const uint8_t* packed, uint8_t* out, int64_t numel) {
  for (int64_t i = thread_index(); i < numel; i += thread_count()) out[i] = (packed[i / 8] >> (i % 8)) & 1;
}
template <class T>
LOSSY_FN void mask_apply(const T* grad, const uint8_t* packed, T* out, int64_t numel, double scale) {
  for (int64_t i = thread_index(); i < numel; i += thread_count()) {
    store_masked(grad[i], ((packed[i / 8] >> (i % 8)) & 1) != 0, scale, out + i);
  }
}
}  // namespace lossy

// -- entry points: one name for every type and width --------------------------------------------------------------------------

#define LOSSY_KERNEL extern "C" __global__ void __launch_bounds__(256)
#define LOSSY_GROUP_KERNELS(T, NAME, BITS)                                                                             \
  LOSSY_KERNEL quantize_##NAME##_##BITS(const T* x, uint8_t* packed, uint16_t* scale, uint16_t* offset,                \
                                        int64_t groups, int64_t width, int64_t group_size, int stochastic,             \
                                        uint64_t seed) {                                                               \
    lossy::quantize<T, BITS>(x, packed, scale, offset, groups, width, group_size, stochastic, seed);                   \
  }                                                                                                                    \
  LOSSY_KERNEL dequantize_##NAME##_##BITS(const uint8_t* packed, const uint16_t* scale, const uint16_t* offset,        \
                                          T* out, int64_t groups, int64_t width, int64_t group_size) {                 \
    lossy::dequantize<T, BITS>(packed, scale, offset, out, groups, width, group_size);                                 \
  }
#define LOSSY_PACK_KERNEL(T, NAME)                                                                                     \
  LOSSY_KERNEL pack_mask_##NAME(const T* mask, uint8_t* out, int64_t numel) { lossy::pack_mask<T>(mask, out, numel); }
#define LOSSY_FLOAT_KERNELS(T, NAME)                                                                                   \
  LOSSY_GROUP_KERNELS(T, NAME, 1)                                                                                      \
  LOSSY_GROUP_KERNELS(T, NAME, 2)                                                                                      \
  LOSSY_GROUP_KERNELS(T, NAME, 3)                                                                                      \
  LOSSY_GROUP_KERNELS(T, NAME, 4)                                                                                      \
  LOSSY_GROUP_KERNELS(T, NAME, 8)                                                                                      \
  LOSSY_PACK_KERNEL(T, NAME)                                                                                           \
  LOSSY_KERNEL mask_apply_##NAME(const T* grad, const uint8_t* packed, T* out, int64_t numel, double scale) {          \
    lossy::mask_apply<T>(grad, packed, out, numel, scale);                                                             \
  }

LOSSY_FLOAT_KERNELS(float, float32)
LOSSY_FLOAT_KERNELS(lossy::half_bits, float16)
LOSSY_FLOAT_KERNELS(lossy::bfloat16_bits, bfloat16)
LOSSY_FLOAT_KERNELS(double, float64)
LOSSY_PACK_KERNEL(uint8_t, int8)
LOSSY_PACK_KERNEL(uint16_t, int16)
LOSSY_PACK_KERNEL(uint32_t, int32)
LOSSY_PACK_KERNEL(uint64_t, int64)
LOSSY_KERNEL unpack_mask(const uint8_t* packed, uint8_t* out, int64_t numel) { lossy::unpack_mask(packed, out, numel); }
