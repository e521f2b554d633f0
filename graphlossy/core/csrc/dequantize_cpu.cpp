// graphlossy::dequantize on the CPU: codes of a group to one byte each, then straight to the output type.
#include <algorithm>
#include <memory>
#include <type_traits>

#include "cpu_dispatch.h"
#include "group_math.h"
#include "unpack.h"

namespace lossy {
namespace {

struct DequantizeArgs {
  const uint8_t* packed;
  const uint16_t* scale;
  const uint16_t* offset;
  void* out;
  int64_t width, group_size;
  int bits;
  StreamCopy stream;
};

constexpr int32_t kTile = 1024;  // decoded in the cache before they are streamed out

template <class T>
struct DequantizeBody {
  static LOSSY_INLINE void run(const DequantizeArgs& a, int64_t first, int64_t last) {
    const int64_t per_row = (a.width + a.group_size - 1) / a.group_size, row_bytes = padded(a.width) / 8 * a.bits;
    const int64_t longest = padded(std::min(a.width, a.group_size));
    T tile[kTile];
    uint8_t kept_codes[2048];
    std::unique_ptr<uint8_t[]> more_codes(longest > 1024 ? new uint8_t[2 * longest] : nullptr);
    uint8_t* codes = longest > 1024 ? more_codes.get() : kept_codes;
    int64_t row = first / per_row, g = first % per_row;
    for (int64_t index = first; index < last; ++index) {
      const int32_t length = (int32_t)group_length(a.width, a.group_size, g), n = (int32_t)padded(length);
      const uint8_t* packed = a.packed + row * row_bytes + g * (a.group_size / 8 * a.bits);
      if (a.bits != 8) unpack_group(packed, codes, n, a.bits);
      const uint8_t* __restrict code = a.bits == 8 ? packed : codes;
      T* __restrict out = static_cast<T*>(a.out) + row * a.width + g * a.group_size;
      const float scale = bfloat16_to_float(a.scale[index]), offset = bfloat16_to_float(a.offset[index]);
      if (!a.stream) {
        decode_codes(code, out, length, scale, offset);
      } else {
        for (int32_t i = 0; i < length; i += kTile) {
          const int32_t count = std::min(kTile, length - i);
          decode_codes(code + i, tile, count, scale, offset);
          a.stream(out + i, tile, count * sizeof(T));
        }
      }
      if (++g == per_row) {
        g = 0;
        ++row;
      }
    }
    if (a.stream) stream_end();
  }

 private:
  static LOSSY_INLINE void decode_codes(const uint8_t* __restrict code, T* __restrict out, int32_t n, float scale,
                                        float offset) {
    if constexpr (std::is_floating_point<T>::value) {
      if (is_finite(scale) & is_finite(offset)) {  // then there is no NaN to make canonical
#pragma omp simd
        for (int32_t i = 0; i < n; ++i) out[i] = (T)decode(code[i], scale, offset);
        return;
      }
    }
#pragma omp simd
    for (int32_t i = 0; i < n; ++i) store_decoded(decode(code[i], scale, offset), out + i);
  }
  static LOSSY_INLINE bool is_finite(float v) { return (bits_of(v) & 0x7fffffffu) < kInfinity; }
};
}  // namespace
}  // namespace lossy

// dtype of `out`: 0 float32, 1 float16, 2 bfloat16, 3 float64. Returns 0, or -1 for an unknown type.
extern "C" int lossy_dequantize(const uint8_t* packed, const uint16_t* scale, const uint16_t* offset, void* out,
                                int dtype, int64_t rows, int64_t width, int64_t group_size, int bits, int threads,
                                int level) {
  using namespace lossy;
  if (rows == 0 || width == 0) return 0;
  const int64_t element = dtype == 0 ? 4 : dtype == 3 ? 8 : 2;
  const DequantizeArgs a{packed, scale, offset, out, width, group_size, bits,
                         prepare_result(out, rows * width * element, level)};
  const int64_t count = rows * ((width + group_size - 1) / group_size);
  const int64_t block = std::max<int64_t>(1, 32768 / std::min(width, group_size));
  switch (dtype) {
    case 0: run_parallel<DequantizeBody<float>>(a, count, block, threads, level); return 0;
    case 1: run_parallel<DequantizeBody<half_bits>>(a, count, block, threads, level); return 0;
    case 2: run_parallel<DequantizeBody<bfloat16_bits>>(a, count, block, threads, level); return 0;
    case 3: run_parallel<DequantizeBody<double>>(a, count, block, threads, level); return 0;
    default: return -1;
  }
}
