// Arithmetic of one quantisation group, bit for bit what graphlossy/core/_reference.py defines: the single source of
// the CPU kernels (g++, clang++), of the CUDA kernels (NVRTC) and of their tests.
#pragma once
#if defined(__CUDACC_RTC__)
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#else
#include <cstdint>
#include <cstring>
#endif

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define LOSSY_FN __device__ __forceinline__
#else
#define LOSSY_FN inline __attribute__((always_inline))
#endif

namespace lossy {

// One IEEE rounding per operation on every target: no fused multiply-add (on the host: -ffp-contract=off).
LOSSY_FN float mul_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
LOSSY_FN float add_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
LOSSY_FN float div_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
LOSSY_FN uint32_t bits_of(float v) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(v);
#else
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return u;
#endif
}
LOSSY_FN uint64_t bits_of(double v) {
#if defined(__CUDA_ARCH__)
  return (uint64_t)__double_as_longlong(v);
#else
  uint64_t u;
  std::memcpy(&u, &v, 8);
  return u;
#endif
}
LOSSY_FN double double_of(uint64_t u) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double((long long)u);
#else
  double v;
  std::memcpy(&v, &u, 8);
  return v;
#endif
}
LOSSY_FN float float_of(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float v;
  std::memcpy(&v, &u, 4);
  return v;
#endif
}

constexpr uint32_t kInfinity = 0x7f800000u;
constexpr uint32_t kCanonicalNan = 0x7fc00000u;
constexpr uint32_t kSmallestNormal = 0x00800000u;   // 2^-126: below it 1 / scale would overflow
constexpr uint32_t kLargestBfloat16 = 0x7f7f0000u;

// 32-bit hash with low bias; counter based, so every element has its noise in any order and on any number of threads.
LOSSY_FN uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x ^= x >> 15;
  x *= 0x735a2d97u;
  x ^= x >> 15;
  return x;
}
LOSSY_FN uint32_t seed_hash(uint64_t seed) {
  return mix32((uint32_t)seed ^ mix32((uint32_t)(seed >> 32) + 0x9e3779b9u));
}
LOSSY_FN uint32_t group_key(uint32_t seed_hash, uint64_t group) {
  const uint32_t h = mix32(seed_hash ^ (uint32_t)group);
  return mix32(h ^ (uint32_t)(group >> 32) ^ 0x85ebca6bu);
}
LOSSY_FN float unit16(uint32_t h16) {  // 16 random bits -> [0, 1)
  return mul_rn((float)(int)h16, 1.0f / 65536.0f);
}

// first where `choose`, else second, without a branch: compilers would otherwise move the floating-point additions below
// into one, which keeps loops scalar.
LOSSY_FN uint32_t blend(bool choose, uint32_t first, uint32_t second) {
  return second ^ ((first ^ second) & (0u - (uint32_t)choose));
}

// bfloat16 precision, towards zero or away from it, as a float32 pattern.
LOSSY_FN uint32_t bfloat16_cut(uint32_t u, bool away) {
  const uint32_t cut = u & 0xffff0000u;
  return cut + blend(away & (u != cut), 0x10000u, 0u);
}

// Metadata of a group from its least and greatest value and its largest pattern with the sign bit cleared: what is stored
// (as float32) and 1 / scale. The scale of a poisoned group is NaN.
LOSSY_FN void describe_group(float lo, float hi, uint32_t largest, int levels, float& scale, float& offset, float& inv) {
  lo = add_rn(lo, 0.0f);  // -0 becomes +0
  hi = add_rn(hi, 0.0f);
  const float low = float_of(bfloat16_cut(bits_of(lo), lo < 0.0f));
  const float step = div_rn(add_rn(hi, -low), (float)levels);
  uint32_t u = bfloat16_cut(bits_of(step), step > 0.0f);
  u = blend((u > 0u) & (u < kSmallestNormal), kSmallestNormal, u);
  const float top = add_rn(mul_rn(float_of(u), (float)levels), low);
  const bool sound = (largest < kInfinity) & (top <= float_of(kLargestBfloat16));  // false for a NaN or infinite top
  const uint32_t reciprocal = bits_of(div_rn(1.0f, float_of(u)));
  scale = float_of(blend(sound, u, kCanonicalNan));
  offset = float_of(blend(sound, bits_of(low), 0u));
  inv = float_of(blend(sound & (u != 0u), reciprocal, 0u));
}
LOSSY_FN bool is_poisoned(float scale) { return scale != scale; }
// Code of one element of a sound group; u = 1/2 or 16 random bits.
LOSSY_FN int encode(float x, float offset, float inv, int levels, float u) {
  const int code = (int)add_rn(mul_rn(add_rn(x, -offset), inv), u);  // not negative, so truncation is floor
  return code < levels ? code : levels;
}
LOSSY_FN float decode(int code, float scale, float offset) { return add_rn(mul_rn((float)code, scale), offset); }

// Half and bfloat16 as bit patterns: no header, no hardware type, the same result everywhere; NaN becomes canonical.
LOSSY_FN float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = (uint32_t)(h & 0x7fffu) << 13;
  const uint32_t normal = magnitude + blend(magnitude >= 0x0f800000u, 0x70000000u, 0x38000000u);
  const uint32_t small = bits_of(add_rn(float_of(magnitude + 0x38800000u), -float_of(0x38800000u)));
  return float_of(blend(magnitude < 0x00800000u, small, normal) | sign);
}
LOSSY_FN uint16_t float_to_half(float v) {
  const uint32_t u = bits_of(v), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  const uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;
  const uint32_t small = bits_of(add_rn(float_of(a), 0.5f)) - 0x3f000000u;  // below 2^-14: rounded by the addition
  const uint32_t h = blend(a >= 0x477ff000u, 0x7c00u, blend(a < 0x38800000u, small, normal)) | sign;
  return (uint16_t)blend(a > kInfinity, 0x7e00u, h);
}
LOSSY_FN float bfloat16_to_float(uint16_t h) { return float_of((uint32_t)h << 16); }
LOSSY_FN uint16_t float_to_bfloat16(float v) {
  const uint32_t u = bits_of(v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (uint16_t)blend((u & 0x7fffffffu) > kInfinity, 0x7fc0u, rounded);
}

struct half_bits {
  uint16_t u;
};
struct bfloat16_bits {
  uint16_t u;
};

LOSSY_FN float to_float(float v) { return v; }
LOSSY_FN float to_float(double v) { return (float)v; }
LOSSY_FN float to_float(half_bits v) { return half_to_float(v.u); }
LOSSY_FN float to_float(bfloat16_bits v) { return bfloat16_to_float(v.u); }

LOSSY_FN float canonical(float v) { return float_of(blend(v != v, kCanonicalNan, bits_of(v))); }

// A decoded value in the output type: finite stays finite, NaN becomes the canonical one.
LOSSY_FN void store_decoded(float v, float* out) { *out = canonical(v); }
LOSSY_FN void store_decoded(float v, double* out) { *out = (double)canonical(v); }
LOSSY_FN void store_decoded(float v, bfloat16_bits* out) { out->u = float_to_bfloat16(v); }
LOSSY_FN void store_decoded(float v, half_bits* out) {
  const uint32_t u = bits_of(v), a = u & 0x7fffffffu;
  const uint32_t bounded = blend((a > 0x477fe000u) & (a < kInfinity), 0x477fe000u, a);  // 65504
  out->u = float_to_half(float_of(bounded | (u & 0x80000000u)));
}

// One element of mask_apply: value * scale if `keep`, else 0, in float32 arithmetic (float64 for float64).
LOSSY_FN void store_masked(float v, bool keep, double scale, float* out) {
  *out = float_of(blend(keep, bits_of(canonical(mul_rn(v, (float)scale))), 0u));
}
LOSSY_FN void store_masked(double v, bool keep, double scale, double* out) {
  const double p = v * scale;
  const uint64_t u = bits_of(p), nan = 0u - (uint64_t)(p != p), kept = 0u - (uint64_t)keep;
  *out = double_of((u ^ ((u ^ 0x7ff8000000000000u) & nan)) & kept);
}
LOSSY_FN void store_masked(half_bits v, bool keep, double scale, half_bits* out) {
  out->u = (uint16_t)blend(keep, float_to_half(mul_rn(half_to_float(v.u), (float)scale)), 0u);
}
LOSSY_FN void store_masked(bfloat16_bits v, bool keep, double scale, bfloat16_bits* out) {
  out->u = (uint16_t)blend(keep, float_to_bfloat16(mul_rn(bfloat16_to_float(v.u), (float)scale)), 0u);
}

// Whether an element of a mask counts as set: not zero of either sign, so NaN does.
LOSSY_FN bool is_set(uint8_t v) { return v != 0; }
LOSSY_FN bool is_set(uint16_t v) { return v != 0; }
LOSSY_FN bool is_set(uint32_t v) { return v != 0; }
LOSSY_FN bool is_set(uint64_t v) { return v != 0; }
LOSSY_FN bool is_set(float v) { return v != 0.0f; }
LOSSY_FN bool is_set(double v) { return v != 0.0; }
LOSSY_FN bool is_set(half_bits v) { return (v.u & 0x7fffu) != 0; }
LOSSY_FN bool is_set(bfloat16_bits v) { return (v.u & 0x7fffu) != 0; }

// Elements of a group with its padding.
LOSSY_FN int64_t padded(int64_t length) { return (length + 7) / 8 * 8; }

// Where group `g` of a row of `width` elements begins and how many elements it has.
LOSSY_FN int64_t group_length(int64_t width, int64_t group_size, int64_t g) {
  const int64_t rest = width - g * group_size;
  return rest < group_size ? rest : group_size;
}
}  // namespace lossy
