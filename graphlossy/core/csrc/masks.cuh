// graphlossy::pack_mask, unpack_mask and mask_apply on CUDA. Bit i & 7 of byte i >> 3 of a mask is element i: a thread
// takes whole bytes, so that none needs another's, and moves 16 bytes at once where the addresses allow it.
#pragma once
#include "quantize.cuh"

namespace lossy {

// Four 32-bit words: what a thread moves at once.
struct alignas(16) Words {
  uint32_t at[4];
};
// The elements of N bytes of mask.
template <class T, int BYTES>
union Elements {
  static constexpr int kWords = BYTES * 8 * (int)sizeof(T) / 16;
  T at[BYTES * 8];
  Words words[kWords];
};
template <class T, int BYTES>
LOSSY_FN void load(Elements<T, BYTES>& elements, const T* from) {
#pragma unroll
  for (int w = 0; w < Elements<T, BYTES>::kWords; ++w) elements.words[w] = reinterpret_cast<const Words*>(from)[w];
}
template <class T, int BYTES>
LOSSY_FN void store(const Elements<T, BYTES>& elements, T* to) {
#pragma unroll
  for (int w = 0; w < Elements<T, BYTES>::kWords; ++w) reinterpret_cast<Words*>(to)[w] = elements.words[w];
}
LOSSY_FN int64_t first_thread() { return (int64_t)blockIdx.x * kThreads + threadIdx.x; }
LOSSY_FN int64_t all_threads() { return (int64_t)gridDim.x * kThreads; }

// Bytes of mask of a thread: two for elements of one byte, so that 16 bytes are read, else one.
template <class T>
LOSSY_FN void pack_mask(const T* __restrict__ mask, uint8_t* __restrict__ out, int64_t numel) {
  constexpr int kBytes = sizeof(T) == 1 ? 2 : 1, kElements = 8 * kBytes;
  const bool wide = aligned(mask, alignof(Words));
  for (int64_t turn = first_thread(); turn * kElements < numel; turn += all_threads()) {
    const int64_t start = turn * kElements;
    const int count = numel - start < kElements ? (int)(numel - start) : kElements;
    uint32_t bits = 0;
    if (wide && count == kElements) {
      Elements<T, kBytes> elements;
      load(elements, mask + start);
#pragma unroll
      for (int i = 0; i < kElements; ++i) bits |= (uint32_t)is_set(elements.at[i]) << i;
    } else {
      for (int i = 0; i < count; ++i) bits |= (uint32_t)is_set(mask[start + i]) << i;
    }
    uint8_t* to = out + turn * kBytes;
    to[0] = (uint8_t)bits;
    if (kBytes == 2 && count > 8) to[1] = (uint8_t)(bits >> 8);
  }
}

// T: an unsigned integer as wide as the elements, which are copied as they are.
template <class T>
LOSSY_FN void unpack_mask(const uint8_t* __restrict__ packed, T* __restrict__ out, int64_t numel, T low, T high) {
  constexpr int kBytes = sizeof(T) == 1 ? 2 : 1, kElements = 8 * kBytes;
  const bool wide = aligned(out, alignof(Words));
  for (int64_t turn = first_thread(); turn * kElements < numel; turn += all_threads()) {
    const int64_t begin = turn * kElements;
    const int count = numel - begin < kElements ? (int)(numel - begin) : kElements;
    uint32_t bits = packed[turn * kBytes];
    if (kBytes == 2 && count > 8) bits |= (uint32_t)packed[turn * kBytes + 1] << 8;
    if (wide && count == kElements) {
      Elements<T, kBytes> elements;
#pragma unroll
      for (int i = 0; i < kElements; ++i) elements.at[i] = ((bits >> i) & 1u) != 0 ? high : low;
      store(elements, out + begin);
    } else {
      for (int i = 0; i < count; ++i) out[begin + i] = ((bits >> i) & 1u) != 0 ? high : low;
    }
  }
}

template <class T>
LOSSY_FN void mask_apply(const T* __restrict__ grad, const uint8_t* __restrict__ packed, T* __restrict__ out,
                         int64_t numel, double scale) {
  const bool wide = aligned(grad, alignof(Words)) && aligned(out, alignof(Words));
  for (int64_t turn = first_thread(); turn * 8 < numel; turn += all_threads()) {
    const int64_t start = turn * 8;
    const int count = numel - start < 8 ? (int)(numel - start) : 8;
    const uint32_t bits = packed[turn];
    if (wide && count == 8) {
      Elements<T, 1> elements;
      load(elements, grad + start);
#pragma unroll
      for (int i = 0; i < 8; ++i) store_masked(elements.at[i], ((bits >> i) & 1u) != 0, scale, &elements.at[i]);
      store(elements, out + start);
    } else {
      for (int i = 0; i < count; ++i) store_masked(grad[start + i], ((bits >> i) & 1u) != 0, scale, out + start + i);
    }
  }
}
}  // namespace lossy
