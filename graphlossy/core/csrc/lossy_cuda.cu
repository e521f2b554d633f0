// Entry points of the CUDA kernels: one name for every type and width. NVRTC compiles them one by one, each at its
// first call, with LOSSY_KERNELS defining that one; without it, all of them.
#include "masks.cuh"
#include "multi_size.cuh"
#include "packed_attention.cuh"
#include "quantize.cuh"

using lossy::AttentionSizes;
using lossy::bfloat16_bits;
using lossy::Bucket;
using lossy::Codes;
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
#define LOSSY_RANK_LOOKUP(T, NAME)                                                                                     \
  LOSSY_ENTRY NAME(const T* ids, int64_t count, const uint64_t* planes, const void* counts, int64_t words,             \
                   int64_t tokens, int bits, int codes, int wide, uint8_t* bucket, int64_t* row,                       \
                   unsigned long long* wrong) {                                                                        \
    lossy::rank_lookup<T>(ids, count, {planes, counts, words, tokens, bits, codes, wide}, bucket, row, wrong);         \
  }
#define LOSSY_MULTI_SIZE_FORWARD(T, OUT, NAME)                                                                         \
  LOSSY_ENTRY NAME(const Bucket* buckets, int codes, int bits, const uint8_t* bucket, const int64_t* row,              \
                   const int64_t* ends, const float* weights, OUT* out, int64_t outputs, int64_t dim, int mean,        \
                   int log_lanes) {                                                                                    \
    lossy::multi_size_forward<T, OUT>(buckets, codes, bits, bucket, row, ends, weights, out, outputs, dim, mean,       \
                                      log_lanes);                                                                      \
  }
#define LOSSY_MULTI_SIZE_VALUES(T, NAME)                                                                               \
  LOSSY_ENTRY NAME(const Bucket* buckets, const T* grad, const int64_t* bag, const float* weights,                     \
                   const int64_t* order, const uint8_t* bucket, const int64_t* starts, const int64_t* at,              \
                   float* values, int64_t count, int64_t dim) {                                                        \
    lossy::multi_size_values<T>(buckets, grad, bag, weights, order, bucket, starts, at, values, count, dim);           \
  }
#define LOSSY_MULTI_SIZE_SCORES(T, NAME)                                                                               \
  LOSSY_ENTRY NAME(const uint64_t* planes, const void* counts, int64_t words, int64_t tokens, int map_bits, int codes, \
                   int wide, const Bucket* buckets, int bits, const float* queries, const int64_t* begins, float* out, \
                   int64_t batch) {                                                                                    \
    lossy::multi_size_scores<T>({planes, counts, words, tokens, map_bits, codes, wide}, buckets, bits, queries, begins,\
                                out, batch);                                                                           \
  }
#define LOSSY_PACKED_ATTENTION(NAME, KEY_BITS, VALUE_BITS)                                                             \
  LOSSY_ENTRY NAME(AttentionSizes sizes, const float* query, const uint8_t* keys, const uint16_t* key_scale,           \
                   const uint16_t* key_offset, const uint8_t* values, const uint16_t* value_scale,                     \
                   const uint16_t* value_offset, const int32_t* rows, const uint8_t* mask, float* weights,             \
                   float* partial, int64_t items) {                                                                    \
    lossy::attend_packed<KEY_BITS, VALUE_BITS>(sizes, query, keys, key_scale, key_offset, values, value_scale,         \
                                               value_offset, rows, mask, weights, partial, items);                     \
  }
#define LOSSY_FULL_ATTENTION(T, NAME)                                                                                  \
  LOSSY_ENTRY NAME(AttentionSizes sizes, const float* query, const T* sink_keys, const T* sink_values,                 \
                   const T* window_keys, const T* window_values, const int32_t* rows, const uint8_t* mask,             \
                   float* weights, float* partial, int64_t items) {                                                    \
    lossy::attend_full<T>(sizes, query, sink_keys, sink_values, window_keys, window_values, rows, mask, weights,       \
                          partial, items);                                                                             \
  }
#define LOSSY_MERGE_ATTENTION(NAME)                                                                                    \
  LOSSY_ENTRY NAME(AttentionSizes sizes, const float* partial, float* packed, float* full, float* norms,               \
                   int64_t elements) {                                                                                 \
    lossy::merge_splits(sizes, partial, packed, full, norms, elements);                                                \
  }
#define LOSSY_SUM_ATTENTION(NAME)                                                                                      \
  LOSSY_ENTRY NAME(AttentionSizes sizes, const float* partial, const float* weights, const float* norms,               \
                   const int32_t* rows, float* sums, int64_t elements) {                                               \
    lossy::sum_weights(sizes, partial, weights, norms, rows, sums, elements);                                          \
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
  LOSSY_MASK_APPLY(T, mask_apply_##NAME)                                                                               \
  LOSSY_FULL_ATTENTION(T, full_attention_##NAME)
#define LOSSY_INTEGER(T, NAME)                                                                                         \
  LOSSY_PACK_MASK(T, pack_mask_##NAME)                                                                                 \
  LOSSY_UNPACK_MASK(T, unpack_mask_##NAME)
#define LOSSY_ROWS(T, NAME)                                                                                            \
  LOSSY_MULTI_SIZE_FORWARD(T, float, multi_size_forward_##NAME##_float32)                                              \
  LOSSY_MULTI_SIZE_FORWARD(T, half_bits, multi_size_forward_##NAME##_float16)                                          \
  LOSSY_MULTI_SIZE_FORWARD(T, bfloat16_bits, multi_size_forward_##NAME##_bfloat16)                                     \
  LOSSY_MULTI_SIZE_SCORES(T, multi_size_scores_##NAME)
#define LOSSY_KEYS(BITS)                                                                                               \
  LOSSY_PACKED_ATTENTION(packed_attention_##BITS##_1, BITS, 1)                                                         \
  LOSSY_PACKED_ATTENTION(packed_attention_##BITS##_2, BITS, 2)                                                         \
  LOSSY_PACKED_ATTENTION(packed_attention_##BITS##_3, BITS, 3)                                                         \
  LOSSY_PACKED_ATTENTION(packed_attention_##BITS##_4, BITS, 4)                                                         \
  LOSSY_PACKED_ATTENTION(packed_attention_##BITS##_8, BITS, 8)
#define LOSSY_KERNELS                                                                                                  \
  LOSSY_KEYS(1)                                                                                                        \
  LOSSY_KEYS(2)                                                                                                        \
  LOSSY_KEYS(3)                                                                                                        \
  LOSSY_KEYS(4)                                                                                                        \
  LOSSY_KEYS(8)                                                                                                        \
  LOSSY_MERGE_ATTENTION(merge_attention)                                                                               \
  LOSSY_SUM_ATTENTION(sum_attention)                                                                                   \
  LOSSY_FLOAT(float, float32)                                                                                          \
  LOSSY_FLOAT(half_bits, float16)                                                                                      \
  LOSSY_FLOAT(bfloat16_bits, bfloat16)                                                                                 \
  LOSSY_FLOAT(double, float64)                                                                                         \
  LOSSY_INTEGER(uint8_t, int8)                                                                                         \
  LOSSY_INTEGER(uint16_t, int16)                                                                                       \
  LOSSY_INTEGER(uint32_t, int32)                                                                                       \
  LOSSY_INTEGER(uint64_t, int64)                                                                                       \
  LOSSY_RANK_LOOKUP(int32_t, rank_lookup_int32)                                                                        \
  LOSSY_RANK_LOOKUP(int64_t, rank_lookup_int64)                                                                        \
  LOSSY_MULTI_SIZE_VALUES(float, multi_size_values_float32)                                                            \
  LOSSY_MULTI_SIZE_VALUES(half_bits, multi_size_values_float16)                                                        \
  LOSSY_MULTI_SIZE_VALUES(bfloat16_bits, multi_size_values_bfloat16)                                                   \
  LOSSY_ROWS(float, float32)                                                                                           \
  LOSSY_ROWS(half_bits, float16)                                                                                       \
  LOSSY_ROWS(bfloat16_bits, bfloat16)                                                                                  \
  LOSSY_ROWS(Codes, codes)
#endif
LOSSY_KERNELS
