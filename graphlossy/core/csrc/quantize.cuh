// graphlossy::quantize and dequantize on CUDA. The arithmetic is group_math.h's, so the results are those of the CPU
// kernels and of the reference bit for bit; here is only who does what.
//
// A team of threads takes a group: up to a warp, for groups beyond a warp's registers a whole block. Packing is planar
// (byte j of a group holds elements j, j + P, j + 2P, ...), so the group is seen as kPlanes rows of `stride` elements,
// where kPlanes is a power of two that makes each position of a row fill whole bytes: a thread that owns position j of
// every row owns whole bytes, and both elements that share a hash. A unit is four positions: 16-byte loads of float32
// and four-byte stores of codes where the addresses allow it.
#pragma once
#include "group_math.h"

namespace lossy {

constexpr int kLogThreads = 8, kThreads = 1 << kLogThreads;  // of a block
constexpr int kLogWarp = 5;
constexpr int kWidth = 4;            // positions of a unit
constexpr int kThreadElements = 32;  // elements that a thread of quantize keeps in registers
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr uint32_t kHalves = 0x80008000u;  // "noise" of 1/2 in both halves of a hash: rounding to nearest

template <int BITS>
struct Layout {
  static constexpr int kPlanes = BITS == 2 ? 4 : BITS == 4 || BITS == 8 ? 2 : 8;
  static constexpr int kBytes = kPlanes * BITS / 8;  // bytes of a position
  static constexpr int kUnits = kThreadElements / (kPlanes * kWidth);
};

template <class T>
struct alignas(sizeof(T) < 4 ? kWidth * sizeof(T) : 16) Four {
  T at[kWidth];
};

LOSSY_FN bool aligned(const void* address, int bytes) {
  return (reinterpret_cast<uint64_t>(address) & (uint64_t)(bytes - 1)) == 0;
}

// Where a group lies. Indices over the tensor have 64 bits, those within a group 32 (LARGEST_GROUP in _schemas.py).
struct Group {
  int64_t element, byte;  // first one
  int32_t length, padding, stride, units;
};
template <int BITS>
LOSSY_FN Group find_group(int64_t index, int64_t per_row, int64_t width, int64_t group_size) {
  Group group;
  // Groups of one row, or one group a row, are the common cases; a division takes longer than the rest.
  const int64_t row = per_row == 1 ? index : index < per_row ? 0 : index / per_row, g = index - row * per_row;
  group.element = row * width + g * group_size;
  group.byte = row * (padded(width) / 8 * BITS) + g * (group_size / 8 * BITS);
  group.length = (int32_t)group_length(width, group_size, g);
  const int32_t whole = (int32_t)padded(group.length);
  group.padding = whole - group.length;
  group.stride = whole / Layout<BITS>::kPlanes;
  group.units = (group.stride + kWidth - 1) / kWidth;
  return group;
}
// Whether a unit's elements, or its bytes of codes, can be moved together.
template <class T>
LOSSY_FN bool wide_elements(const Group& group, const T* from) {
  return group.padding == 0 && group.stride % kWidth == 0 && aligned(from, alignof(Four<T>));
}
LOSSY_FN bool wide_bytes(const Group& group, const uint8_t* codes) {
  return group.stride % kWidth == 0 && aligned(codes, kWidth);
}

// h / 65536 for the low or the high half h of a hash, exactly, without a conversion: the mantissa of [1, 2), less 1.
LOSSY_FN float low_noise(uint32_t hash) { return add_rn(float_of(0x3f800000u | ((hash & 0xffffu) << 7)), -1.0f); }
LOSSY_FN float high_noise(uint32_t hash) { return add_rn(float_of(0x3f800000u | ((hash >> 16) << 7)), -1.0f); }

template <class T, int BITS>
LOSSY_FN void load_unit(const Group& group, const T* from, bool wide, int32_t unit,
                        float (&v)[Layout<BITS>::kPlanes][kWidth]) {
  const int32_t j = unit * kWidth;
  if (wide) {
#pragma unroll
    for (int k = 0; k < Layout<BITS>::kPlanes; ++k) {
      const Four<T> four = *reinterpret_cast<const Four<T>*>(from + j + k * group.stride);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[k][i] = to_float(four.at[i]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < Layout<BITS>::kPlanes; ++k) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {  // past the end: an element that the group has anyway
        const int32_t element = j + i + k * group.stride;
        v[k][i] = to_float(from[element < group.length ? element : 0]);
      }
    }
  }
}

// Least and greatest value of a group. fminf and fmaxf pass over a NaN; a group with one gets an infinite range, which
// poisons it just as well.
struct Range {
  float lo, hi;
};
LOSSY_FN Range unite(Range a, Range b) { return {fminf(a.lo, b.lo), fmaxf(a.hi, b.hi)}; }

template <int BITS>
LOSSY_FN void scan_unit(const float (&v)[Layout<BITS>::kPlanes][kWidth], Range& range, float& finite) {
#pragma unroll
  for (int k = 0; k < Layout<BITS>::kPlanes; ++k) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      range = unite(range, Range{v[k][i], v[k][i]});
      finite = add_rn(finite, mul_rn(v[k][i], 0.0f));  // stays a zero unless the value is NaN or infinite
    }
  }
}
LOSSY_FN Range over_lanes(Range range, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    range = unite(range, Range{__shfl_xor_sync(kAllLanes, range.lo, step), __shfl_xor_sync(kAllLanes, range.hi, step)});
  }
  return range;
}
LOSSY_FN Range over_block(Range range) {
  __shared__ Range warps[kThreads >> kLogWarp];
  range = over_lanes(range, 1 << kLogWarp);
  __syncthreads();  // the previous group's ranges have been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x >> kLogWarp] = range;
  __syncthreads();
  range = warps[0];
  for (int w = 1; w < kThreads >> kLogWarp; ++w) range = unite(range, warps[w]);
  return range;
}

struct Encoder {
  float scale, offset, inv;
  uint32_t key;
  bool stochastic;
};

template <int BITS>
LOSSY_FN void store_unit(const Group& group, const Encoder& encoder, uint8_t* codes, bool wide, int32_t unit,
                         float (&v)[Layout<BITS>::kPlanes][kWidth]) {
  constexpr int kPlanes = Layout<BITS>::kPlanes, kHalf = kPlanes / 2, kLevels = (1 << BITS) - 1;
  const int32_t j = unit * kWidth;
  if (is_poisoned(encoder.scale) || group.padding != 0) {  // the code of the offset is 0
#pragma unroll
    for (int k = 0; k < kPlanes; ++k) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const bool real = j + i + k * group.stride < group.length;
        v[k][i] = real && !is_poisoned(encoder.scale) ? v[k][i] : encoder.offset;
      }
    }
  }
  uint32_t words[Layout<BITS>::kBytes] = {};
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    uint32_t code[kPlanes];
#pragma unroll
    for (int k = 0; k < kHalf; ++k) {
      const uint32_t position = (uint32_t)(j + i + k * group.stride);
      const uint32_t hash = encoder.stochastic ? mix32(encoder.key + position) : kHalves;
      code[k] = (uint32_t)encode(v[k][i], encoder.offset, encoder.inv, kLevels, low_noise(hash));
      code[k + kHalf] = (uint32_t)encode(v[k + kHalf][i], encoder.offset, encoder.inv, kLevels, high_noise(hash));
    }
#pragma unroll
    for (int k = 0; k < kPlanes; ++k) {
      if (BITS == 8) {
        words[k % Layout<BITS>::kBytes] |= code[k] << (8 * i);
      } else if (BITS == 3) {  // two bytes of low pairs of bits, one byte of high bits
        words[k % 2] |= (code[k] & 3u) << (8 * i + k / 2 * 2);
        words[Layout<BITS>::kBytes - 1] |= (code[k] >> 2) << (8 * i + k);
      } else {
        words[0] |= code[k] << (8 * i + k * BITS);
      }
    }
  }
#pragma unroll
  for (int s = 0; s < Layout<BITS>::kBytes; ++s) {
    uint8_t* to = codes + j + s * group.stride;
    if (wide) {
      *reinterpret_cast<uint32_t*>(to) = words[s];
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (j + i < group.stride) to[i] = (uint8_t)(words[s] >> (8 * i));
      }
    }
  }
}

// 2^log_lanes threads to a group: up to a warp, whose registers hold the group, or (BLOCK) all of a block, which read a
// group beyond their registers a second time.
template <class T, int BITS, bool BLOCK>
LOSSY_FN void quantize(const T* __restrict__ x, uint8_t* __restrict__ packed, uint16_t* __restrict__ scale,
                       uint16_t* __restrict__ offset, int64_t groups, int64_t per_row, int64_t width,
                       int64_t group_size, int log_lanes, int stochastic, uint64_t seed) {
  constexpr int kUnits = BLOCK ? 1 : Layout<BITS>::kUnits;
  const int log_threads = BLOCK ? kLogThreads : log_lanes, threads = 1 << log_threads, teams = kThreads >> log_threads;
  const int team = (int)threadIdx.x >> log_threads, member = (int)threadIdx.x & (threads - 1);
  const uint32_t hash = seed_hash(seed);
  // All of a block take every turn, so that whole warps meet in the shuffles: a team beyond the last group repeats the
  // last one's work and keeps the result to itself.
  for (int64_t first = (int64_t)blockIdx.x * teams; first < groups; first += (int64_t)gridDim.x * teams) {
    const bool surplus = first + team >= groups;
    const int64_t index = surplus ? groups - 1 : first + team;
    const Group group = find_group<BITS>(index, per_row, width, group_size);
    const T* from = x + group.element;
    const bool wide = wide_elements(group, from);
    const int32_t tile = threads * kUnits;
    float v[kUnits][Layout<BITS>::kPlanes][kWidth];
    Range range{float_of(kInfinity), -float_of(kInfinity)};
    float finite = 0.0f;
    for (int32_t start = 0; start < group.units; start += tile) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int32_t unit = start + member + u * threads;
        if (unit < group.units) load_unit<T, BITS>(group, from, wide, unit, v[u]);
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (start + member + u * threads < group.units) scan_unit<BITS>(v[u], range, finite);
      }
      if (!BLOCK) break;
    }
    if (finite != finite) range = Range{-float_of(kInfinity), float_of(kInfinity)};
    range = BLOCK ? over_block(range) : over_lanes(range, threads);
    const uint32_t low = bits_of(range.lo) & 0x7fffffffu, high = bits_of(range.hi) & 0x7fffffffu;
    Encoder encoder;
    describe_group(range.lo, range.hi, low > high ? low : high, (1 << BITS) - 1, encoder.scale, encoder.offset,
                   encoder.inv);
    if (surplus) continue;
    encoder.key = group_key(hash, (uint64_t)index);
    encoder.stochastic = stochastic != 0;
    if (member == 0) {
      scale[index] = (uint16_t)(bits_of(encoder.scale) >> 16);
      offset[index] = (uint16_t)(bits_of(encoder.offset) >> 16);
    }
    uint8_t* codes = packed + group.byte;
    const bool wide_codes = wide_bytes(group, codes);
    const bool again = BLOCK && group.units > tile;
    for (int32_t start = 0; start < group.units; start += tile) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int32_t unit = start + member + u * threads;
        if (again && unit < group.units) load_unit<T, BITS>(group, from, wide, unit, v[u]);
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int32_t unit = start + member + u * threads;
        if (unit < group.units) store_unit<BITS>(group, encoder, codes, wide_codes, unit, v[u]);
      }
      if (!BLOCK) break;
    }
  }
}

// A thread to a unit; 2^log_lanes consecutive ones, up to a warp, share one of the `parts` of a group.
template <class T, int BITS>
LOSSY_FN void dequantize(const uint8_t* __restrict__ packed, const uint16_t* __restrict__ scale,
                         const uint16_t* __restrict__ offset, T* __restrict__ out, int64_t groups, int64_t per_row,
                         int64_t width, int64_t group_size, int log_lanes, int64_t parts) {
  constexpr int kPlanes = Layout<BITS>::kPlanes, kMask = (1 << (BITS == 3 ? 2 : BITS)) - 1;
  const int lanes = 1 << log_lanes, teams = kThreads >> log_lanes;
  const int team = (int)threadIdx.x >> log_lanes, member = (int)threadIdx.x & (lanes - 1);
  for (int64_t first = (int64_t)blockIdx.x * teams; first < groups * parts; first += (int64_t)gridDim.x * teams) {
    if (first + team >= groups * parts) continue;
    const int64_t index = parts == 1 ? first + team : (first + team) / parts;
    const Group group = find_group<BITS>(index, per_row, width, group_size);
    const int32_t unit = (int32_t)(first + team - index * parts) * lanes + member, j = unit * kWidth;
    if (unit >= group.units) continue;
    const uint8_t* codes = packed + group.byte;
    uint32_t words[Layout<BITS>::kBytes];
    const bool wide_codes = wide_bytes(group, codes);
#pragma unroll
    for (int s = 0; s < Layout<BITS>::kBytes; ++s) {
      const uint8_t* at = codes + j + s * group.stride;
      if (wide_codes) {
        words[s] = *reinterpret_cast<const uint32_t*>(at);
      } else {
        words[s] = 0;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) words[s] |= j + i < group.stride ? (uint32_t)at[i] << (8 * i) : 0u;
      }
    }
    const float step = bfloat16_to_float(scale[index]), low = bfloat16_to_float(offset[index]);
    T* to = out + group.element;
    const bool wide = wide_elements(group, to);
#pragma unroll
    for (int k = 0; k < kPlanes; ++k) {
      Four<T> four;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        uint32_t code;
        if (BITS == 8) {
          code = words[k % Layout<BITS>::kBytes] >> (8 * i);
        } else if (BITS == 3) {
          code = words[k % 2] >> (8 * i + k / 2 * 2);
        } else {
          code = words[0] >> (8 * i + k * BITS);
        }
        code &= kMask;
        if (BITS == 3) code |= ((words[Layout<BITS>::kBytes - 1] >> (8 * i + k)) & 1u) << 2;
        store_decoded(decode((int)code, step, low), &four.at[i]);
      }
      const int32_t element = j + k * group.stride;
      if (wide) {
        *reinterpret_cast<Four<T>*>(to + element) = four;
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          if (j + i < group.stride && element + i < group.length) to[element + i] = four.at[i];
        }
      }
    }
  }
}
}  // namespace lossy
