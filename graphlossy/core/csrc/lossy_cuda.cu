// Entry points of the CUDA kernels: one name for every type and width. NVRTC compiles them one by one, each at its
// first call, with LOSSY_KERNELS defining that one; without it, all of them.
#include "masks.cuh"
#include "quantize.cuh"

using lossy::bfloat16_bits;
using lossy::half_bits;

#define LOSSY_ENTRY extern "C" __global__ void __launch_bounds__(lossy::kThreads)
#define LOSSY_QUANTIZE(T, NAME, BITS, BLOCK)                                                                           \
  LOSSY_ENTRY NAME(const T* x, uint8_t* packed, uint16_t* scale, uint16_t* offset, int64_t groups, int64_t per_row,    \
                   int64_t width, int64_t group_size, int log_lanes, int stochastic, uint64_t seed) {                  \
    lossy::quantize<T, BITS, BLOCK>(x, packed, scale, offset, groups, per_row, width, group_size, log_lanes,           \
                                    stochastic, seed);                                                                 \
  }
#define LOSSY_DEQUANTIZE(T, NAME, BITS)                                                                                \
  LOSSY_ENTRY NAME(const uint8_t* packed, const uint16_t* scale, const uint16_t* offset, T* out, int64_t groups,       \
                   int64_t per_row, int64_t width, int64_t group_size, int log_lanes, int64_t parts) {                 \
    lossy::dequantize<T, BITS>(packed, scale, offset, out, groups, per_row, width, group_size, log_lanes, parts);      \
  }
#define LOSSY_PACK_MASK(T, NAME)                                                                                       \
  LOSSY_ENTRY NAME(const T* mask, uint8_t* out, int64_t numel) { lossy::pack_mask<T>(mask, out, numel); }
#define LOSSY_UNPACK_MASK(T, NAME)                                                                                     \
  LOSSY_ENTRY NAME(const uint8_t* packed, T* out, int64_t numel, T low, T high) {                                      \
    lossy::unpack_mask<T>(packed, out, numel, low, high);                                                              \
  }
#define LOSSY_MASK_APPLY(T, NAME)                                                                                      \
  LOSSY_ENTRY NAME(const T* grad, const uint8_t* packed, T* out, int64_t numel, double scale) {                        \
    lossy::mask_apply<T>(grad, packed, out, numel, scale);                                                             \
  }

#if !defined(LOSSY_KERNELS)
#define LOSSY_WIDTH(T, NAME, BITS)                                                                                     \
  LOSSY_QUANTIZE(T, quantize_##NAME##_##BITS, BITS, false)                                                             \
  LOSSY_QUANTIZE(T, quantize_##NAME##_##BITS##_block, BITS, true)                                                      \
  LOSSY_DEQUANTIZE(T, dequantize_##NAME##_##BITS, BITS)
#define LOSSY_FLOAT(T, NAME)                                                                                           \
  LOSSY_WIDTH(T, NAME, 1)                                                                                              \
  LOSSY_WIDTH(T, NAME, 2)                                                                                              \
  LOSSY_WIDTH(T, NAME, 3)                                                                                              \
  LOSSY_WIDTH(T, NAME, 4)                                                                                              \
  LOSSY_WIDTH(T, NAME, 8)                                                                                              \
  LOSSY_PACK_MASK(T, pack_mask_##NAME)                                                                                 \
  LOSSY_MASK_APPLY(T, mask_apply_##NAME)
#define LOSSY_INTEGER(T, NAME)                                                                                         \
  LOSSY_PACK_MASK(T, pack_mask_##NAME)                                                                                 \
  LOSSY_UNPACK_MASK(T, unpack_mask_##NAME)
#define LOSSY_KERNELS                                                                                                  \
  LOSSY_FLOAT(float, float32)                                                                                          \
  LOSSY_FLOAT(half_bits, float16)                                                                                      \
  LOSSY_FLOAT(bfloat16_bits, bfloat16)                                                                                 \
  LOSSY_FLOAT(double, float64)                                                                                         \
  LOSSY_INTEGER(uint8_t, int8)                                                                                         \
  LOSSY_INTEGER(uint16_t, int16)                                                                                       \
  LOSSY_INTEGER(uint32_t, int32)                                                                                       \
  LOSSY_INTEGER(uint64_t, int64)
#endif
LOSSY_KERNELS
