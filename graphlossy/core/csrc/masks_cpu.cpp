// graphlossy::pack_mask, unpack_mask and mask_apply on the CPU. Bit i of a mask is bit i & 7 of byte i >> 3.
#include <algorithm>
#include <cstring>

#include "cpu_dispatch.h"
#include "group_math.h"

namespace lossy {
namespace {

constexpr int64_t kTile = 1024;          // elements expanded to one byte each at a time
constexpr int64_t kBlock = 64 * kTile;   // elements of a block of work

struct PackArgs {
  const void* mask;
  uint8_t* out;
  int64_t numel;
};

// Eight bytes that are 0 or 1 -> one byte, by one multiplication that moves bit 8i to bit 56 + i.
LOSSY_INLINE uint8_t gather_bits(const uint8_t* bytes) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  uint64_t v;
  std::memcpy(&v, bytes, 8);
  return (uint8_t)((v * 0x0102040810204080ull) >> 56);
#else
  uint8_t out = 0;
  for (int k = 0; k < 8; ++k) out |= (uint8_t)(bytes[k] << k);
  return out;
#endif
}
// One byte -> eight bytes that are 0 or 1.
LOSSY_INLINE void spread_bits(uint8_t byte, uint8_t* bytes) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  // A copy in every byte, bit k of byte k kept, then moved to the bottom: 0x80 - bit carries into bit 7 unless it is 0.
  const uint64_t kept = (byte * 0x0101010101010101ull) & 0x8040201008040201ull;
  const uint64_t v = ((kept + 0x00406070787c7e7full) >> 7) & 0x0101010101010101ull;
  std::memcpy(bytes, &v, 8);
#else
  for (int k = 0; k < 8; ++k) bytes[k] = (byte >> k) & 1;
#endif
}

template <class T>
struct PackBody {
  static LOSSY_INLINE void run(const PackArgs& a, int64_t first, int64_t last) {
    uint8_t set[kTile];
    for (int64_t start = first; start < last; start += kTile) {
      const int64_t n = std::min(kTile, last - start);
      const T* __restrict x = static_cast<const T*>(a.mask) + start;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) set[i] = is_set(x[i]);
      for (int64_t i = n; i < padded(n); ++i) set[i] = 0;
      uint8_t* out = a.out + start / 8;
      for (int64_t j = 0; j < padded(n) / 8; ++j) out[j] = gather_bits(set + 8 * j);
    }
  }
};

struct UnpackArgs {
  const uint8_t* packed;
  void* out;
  const void* values;
  StreamCopy stream;
};

// T: an unsigned integer as wide as the elements, which are copied as they are.
template <class T>
struct UnpackBody {
  static LOSSY_INLINE void run(const UnpackArgs& a, int64_t first, int64_t last) {
    uint8_t set[kTile];
    T tile[kTile];
    const T low = static_cast<const T*>(a.values)[0], high = static_cast<const T*>(a.values)[1];
    for (int64_t start = first; start < last; start += kTile) {
      const int64_t n = std::min(kTile, last - start);
      for (int64_t j = 0; j < padded(n) / 8; ++j) spread_bits(a.packed[start / 8 + j], set + 8 * j);
      T* __restrict out = a.stream ? tile : static_cast<T*>(a.out) + start;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = set[i] != 0 ? high : low;
      if (a.stream) a.stream(static_cast<T*>(a.out) + start, tile, n * sizeof(T));
    }
    if (a.stream) stream_end();
  }
};

struct ApplyArgs {
  const void* grad;
  const uint8_t* packed;
  void* out;
  double scale;
  StreamCopy stream;
};

template <class T>
struct ApplyBody {
  static LOSSY_INLINE void run(const ApplyArgs& a, int64_t first, int64_t last) {
    uint8_t set[kTile];
    T tile[kTile];
    const double scale = a.scale;
    for (int64_t start = first; start < last; start += kTile) {
      const int64_t n = std::min(kTile, last - start);
      for (int64_t j = 0; j < padded(n) / 8; ++j) spread_bits(a.packed[start / 8 + j], set + 8 * j);
      const T* __restrict grad = static_cast<const T*>(a.grad) + start;
      T* __restrict out = a.stream ? tile : static_cast<T*>(a.out) + start;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) store_masked(grad[i], set[i] != 0, scale, out + i);
      if (a.stream) a.stream(static_cast<T*>(a.out) + start, tile, n * sizeof(T));
    }
    if (a.stream) stream_end();
  }
};
}  // namespace
}  // namespace lossy

extern "C" {

// kind: 0 float32, 1 float16, 2 bfloat16, 3 float64, 4 to 7 integers of 1, 2, 4, 8 bytes. -1 for an unknown kind.
int lossy_pack_mask(const void* mask, int kind, uint8_t* out, int64_t numel, int threads, int level) {
  using namespace lossy;
  const PackArgs a{mask, out, numel};
  switch (kind) {
    case 0: run_parallel<PackBody<float>>(a, numel, kBlock, threads, level); return 0;
    case 1: run_parallel<PackBody<half_bits>>(a, numel, kBlock, threads, level); return 0;
    case 2: run_parallel<PackBody<bfloat16_bits>>(a, numel, kBlock, threads, level); return 0;
    case 3: run_parallel<PackBody<double>>(a, numel, kBlock, threads, level); return 0;
    case 4: run_parallel<PackBody<uint8_t>>(a, numel, kBlock, threads, level); return 0;
    case 5: run_parallel<PackBody<uint16_t>>(a, numel, kBlock, threads, level); return 0;
    case 6: run_parallel<PackBody<uint32_t>>(a, numel, kBlock, threads, level); return 0;
    case 7: run_parallel<PackBody<uint64_t>>(a, numel, kBlock, threads, level); return 0;
    default: return -1;
  }
}
// size: bytes of an element, 1, 2, 4 or 8; values: those of a bit that is not set and of one that is. -1 for another size.
int lossy_unpack_mask(const uint8_t* packed, void* out, int64_t numel, int size, const void* values, int threads,
                      int level) {
  using namespace lossy;
  const UnpackArgs a{packed, out, values, prepare_result(out, numel * size, level)};
  switch (size) {
    case 1: run_parallel<UnpackBody<uint8_t>>(a, numel, kBlock, threads, level); return 0;
    case 2: run_parallel<UnpackBody<uint16_t>>(a, numel, kBlock, threads, level); return 0;
    case 4: run_parallel<UnpackBody<uint32_t>>(a, numel, kBlock, threads, level); return 0;
    case 8: run_parallel<UnpackBody<uint64_t>>(a, numel, kBlock, threads, level); return 0;
    default: return -1;
  }
}
// dtype: 0 float32, 1 float16, 2 bfloat16, 3 float64. Returns 0, or -1 for an unknown type.
int lossy_mask_apply(const void* grad, int dtype, const uint8_t* packed, void* out, int64_t numel, double scale,
                     int threads, int level) {
  using namespace lossy;
  const int64_t element = dtype == 0 ? 4 : dtype == 3 ? 8 : 2;
  const ApplyArgs a{grad, packed, out, scale, prepare_result(out, numel * element, level)};
  switch (dtype) {
    case 0: run_parallel<ApplyBody<float>>(a, numel, kBlock, threads, level); return 0;
    case 1: run_parallel<ApplyBody<half_bits>>(a, numel, kBlock, threads, level); return 0;
    case 2: run_parallel<ApplyBody<bfloat16_bits>>(a, numel, kBlock, threads, level); return 0;
    case 3: run_parallel<ApplyBody<double>>(a, numel, kBlock, threads, level); return 0;
    default: return -1;
  }
}
}
