// The CUDA source as a host library: KERNEL_SOURCE is its file, which the tests change to see that they notice.
#include "cuda_on_cpu.h"
#include KERNEL_SOURCE

#define EMULATE_WIDTH(NAME, BITS) EMULATED(quantize_##NAME##_##BITS) EMULATED(dequantize_##NAME##_##BITS)
#define EMULATE_FLOAT(NAME)                                                                                      \
  EMULATE_WIDTH(NAME, 1)                                                                                         \
  EMULATE_WIDTH(NAME, 2)                                                                                         \
  EMULATE_WIDTH(NAME, 3) EMULATE_WIDTH(NAME, 4) EMULATE_WIDTH(NAME, 8) EMULATED(pack_mask_##NAME) EMULATED(mask_apply_##NAME)
EMULATE_FLOAT(float32)
EMULATE_FLOAT(float16)
EMULATE_FLOAT(bfloat16)
EMULATE_FLOAT(float64)
EMULATED(pack_mask_int8)
EMULATED(pack_mask_int16)
EMULATED(pack_mask_int32)
EMULATED(pack_mask_int64)
EMULATED(unpack_mask)
