// graphlossy::packed_attention on the CPU: scales and offsets of low-bit keys and values are folded into the query and
// the softmax weights, so that codes are only ever unpacked to one register. Tokens are cut into splits of a fixed size,
// each with a softmax of its own, which are merged by their largest score: the result does not depend on the threads.
#include <algorithm>
#include <cmath>
#include <memory>

#include "cpu_dispatch.h"
#include "group_math.h"
#include "weigh_codes.h"

namespace lossy {
namespace {

constexpr int64_t kSplit = 512;  // tokens of a split

// Tokens in floating point of every head: sinks, or the window.
struct Full {
  const void* keys;
  const void* values;
  int64_t tokens;
};

struct AttentionArgs {
  const float* query;  // [B, H, R, D]
  Packed keys, values;
  Full sinks, window;
  const int32_t* rows;  // [B, 4]
  const uint8_t* mask;  // [B, Q, T], or null
  int64_t batch, heads, queries, width, out_width, positions, mask_tokens;
  float scaling, softcap;
  float* weights;  // [B, H, R, slots] of every split's own softmax, or null
  float* sums;     // [B, H, slots]
  float* partial;  // of every split: [R] largest score, [R] sum of weights, [R, E] weighted values
  float* packed_out;
  float* full_out;

  LOSSY_INLINE int64_t chunks_of_split() const { return std::max<int64_t>(1, kSplit / values.rows); }
  LOSSY_INLINE int64_t splits() const { return 1 + (keys.chunks + chunks_of_split() - 1) / chunks_of_split(); }
  LOSSY_INLINE int64_t partial_size() const { return queries * (2 + out_width); }
  LOSSY_INLINE int64_t packed_slots() const { return keys.chunks * values.rows; }
  LOSSY_INLINE int64_t slots() const { return sinks.tokens + packed_slots() + window.tokens; }
  LOSSY_INLINE float* partial_of(int64_t head, int64_t split) const {
    return partial + (head * splits() + split) * partial_size();
  }
};

// exp(x) of x <= 0 within 2 units of the last place (Cephes' polynomial); 0 below -87, NaN stays NaN.
LOSSY_INLINE float exp_of(float x) {
  const float low = x < -87.0f ? -87.0f : x;
  const float shifted = low * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum is rounded to a whole number
  const float n = shifted - 12582912.0f;
  const float r = (low - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = float_of((bits_of(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : p * power;
}

// A softmax over scores [R, n], and what is kept of it.
LOSSY_INLINE void softmax(const AttentionArgs& a, float* __restrict scores, int64_t stride, int64_t n,
                          float* __restrict largest, float* __restrict sums) {
  for (int64_t r = 0; r < a.queries; ++r) {
    float* __restrict s = scores + r * stride;
    float top = -float_of(kInfinity);
#pragma omp simd reduction(max : top)
    for (int64_t t = 0; t < n; ++t) top = s[t] > top ? s[t] : top;
    const float base = top == -float_of(kInfinity) ? 0.0f : top;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < n; ++t) {
      s[t] = exp_of(s[t] - base);
      sum += s[t];
    }
    largest[r] = top;
    sums[r] = sum;
  }
}

// Caps scores [R, n] of the tokens from `place` on, and hides those that a query does not see.
LOSSY_INLINE void cap_and_hide(const AttentionArgs& a, int64_t head, int64_t place, int64_t n, float* scores,
                               int64_t stride) {
  for (int64_t r = 0; r < a.queries; ++r) {
    float* s = scores + r * stride;
    if (a.softcap != 0.0f) {
      for (int64_t t = 0; t < n; ++t) s[t] = a.softcap * std::tanh(s[t] / a.softcap);
    }
    if (!a.mask) continue;
    const uint8_t* seen = a.mask + (head / a.heads * a.positions + r % a.positions) * a.mask_tokens + place;
    for (int64_t t = 0; t < n; ++t) {
      if (!seen[t]) s[t] = -float_of(kInfinity);
    }
  }
}

// Keeps the weights [R, n] of tokens whose first slot is `slot`.
LOSSY_INLINE void keep_weights(const AttentionArgs& a, int64_t head, int64_t slot, int64_t n, const float* weights,
                               int64_t stride) {
  if (!a.weights) return;
  for (int64_t r = 0; r < a.queries; ++r) {
    std::copy_n(weights + r * stride, n, a.weights + (head * a.queries + r) * a.slots() + slot);
  }
}

// Working memory of a thread.
struct Room {
  explicit Room(const AttentionArgs& a, int64_t tokens)
      : stride(tokens),
        scores(new float[a.queries * tokens]),
        query(new float[a.queries * a.width]),
        factor(new float[a.queries + (a.queries + 2) * std::max(a.keys.rows, a.values.rows)]),
        tile(new float[kWide * std::max(a.keys.rows, a.values.rows)]),
        code(new uint8_t[std::max(2 * padded(std::max(a.keys.width, a.values.width)),
                                  kWide * std::max(a.keys.rows, a.values.rows))]) {}
  LOSSY_INLINE void take_query(const AttentionArgs& a, int64_t head) {
    const int64_t n = a.queries * a.width;
    for (int64_t i = 0; i < n; ++i) query[i] = a.query[head * n + i] * a.scaling;
  }

  int64_t stride;  // of the scores of a query
  std::unique_ptr<float[]> scores, query, factor, tile;
  std::unique_ptr<uint8_t[]> code;
};

// Items are the splits of packed tokens of every row and head.
struct PackedBody {
  static LOSSY_INLINE void run(const AttentionArgs& a, int64_t first, int64_t last) {
    const int64_t splits = a.splits() - 1, size = a.values.rows;
    Room room(a, a.chunks_of_split() * size);
    for (int64_t item = first; item < last; ++item) {
      const int64_t head = item / splits, split = item % splits, begin = split * a.chunks_of_split();
      const int32_t* about = a.rows + head / a.heads * 4;
      const int64_t count = std::max<int64_t>(0, std::min<int64_t>(about[2] - begin, a.chunks_of_split()));
      const int64_t chunk = head * a.keys.chunks + begin;
      float *partial = a.partial_of(head, split + 1), *out = partial + 2 * a.queries, *scores = room.scores.get();
      std::fill_n(out, a.queries * a.out_width, 0.0f);
      room.take_query(a, head);
      for (int64_t c = 0; c < count; ++c) {
        weigh(a.keys, chunk + c, a.queries, room.query.get(), a.width, false, scores + c * size, room.stride,
              room.factor.get(), room.tile.get(), room.code.get());
      }
      cap_and_hide(a, head, about[0] + about[1] + begin * size, count * size, scores, room.stride);
      softmax(a, scores, room.stride, count * size, partial, partial + a.queries);
      keep_weights(a, head, a.sinks.tokens + begin * size, count * size, scores, room.stride);
      for (int64_t c = 0; c < count; ++c) {
        weigh(a.values, chunk + c, a.queries, scores + c * size, room.stride, true, out, a.out_width,
              room.factor.get(), room.tile.get(), room.code.get());
      }
    }
  }
};

// Items are the tokens in floating point of every row and head: its first split.
template <class T>
struct FullBody {
  static LOSSY_INLINE void run(const AttentionArgs& a, int64_t first, int64_t last) {
    Room room(a, a.sinks.tokens + a.window.tokens);
    for (int64_t head = first; head < last; ++head) {
      const int32_t* about = a.rows + head / a.heads * 4;
      const int64_t sinks = about[1], recent = a.window.tokens - about[3];
      float *partial = a.partial_of(head, 0), *out = partial + 2 * a.queries;
      float *scores = room.scores.get(), *later = scores + sinks;
      std::fill_n(out, a.queries * a.out_width, 0.0f);
      room.take_query(a, head);
      score(a, a.sinks, head, 0, sinks, room.query.get(), scores, room.stride);
      score(a, a.window, head, about[3], recent, room.query.get(), later, room.stride);
      cap_and_hide(a, head, about[0], sinks, scores, room.stride);
      cap_and_hide(a, head, about[0] + sinks + about[2] * a.values.rows, recent, later, room.stride);
      softmax(a, scores, room.stride, sinks + recent, partial, partial + a.queries);
      keep_weights(a, head, 0, sinks, scores, room.stride);
      keep_weights(a, head, a.sinks.tokens + a.packed_slots() + about[3], recent, later, room.stride);
      add(a, a.sinks, head, 0, sinks, scores, room.stride, out);
      add(a, a.window, head, about[3], recent, later, room.stride, out);
    }
  }

 private:
  static LOSSY_INLINE void score(const AttentionArgs& a, const Full& full, int64_t head, int64_t from, int64_t n,
                                 const float* __restrict query, float* __restrict scores, int64_t stride) {
    const T* keys = static_cast<const T*>(full.keys) + (head * full.tokens + from) * a.width;
    for (int64_t t = 0; t < n; ++t) {
      const T* __restrict key = keys + t * a.width;
      for (int64_t r = 0; r < a.queries; ++r) {
        const float* __restrict q = query + r * a.width;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < a.width; ++d) sum += q[d] * to_float(key[d]);
        scores[r * stride + t] = sum;
      }
    }
  }
  static LOSSY_INLINE void add(const AttentionArgs& a, const Full& full, int64_t head, int64_t from, int64_t n,
                               const float* __restrict weights, int64_t stride, float* __restrict out) {
    const T* values = static_cast<const T*>(full.values) + (head * full.tokens + from) * a.out_width;
    for (int64_t t = 0; t < n; ++t) {
      const T* __restrict value = values + t * a.out_width;
      for (int64_t r = 0; r < a.queries; ++r) {
        const float p = weights[r * stride + t];
        float* __restrict to = out + r * a.out_width;
#pragma omp simd
        for (int64_t e = 0; e < a.out_width; ++e) to[e] += p * to_float(value[e]);
      }
    }
  }
};

// Merges the splits of every row and head.
struct MergeBody {
  static LOSSY_INLINE void run(const AttentionArgs& a, int64_t first, int64_t last) {
    const int64_t splits = a.splits(), size = a.queries * a.out_width;
    for (int64_t head = first; head < last; ++head) {
      const float* partial = a.partial_of(head, 0);
      float *packed = a.packed_out + head * size, *full = a.full_out + head * size;
      std::fill_n(packed, size, 0.0f);
      for (int64_t r = 0; r < a.queries; ++r) {
        float top = -float_of(kInfinity), sum = 0.0f;
        for (int64_t s = 0; s < splits; ++s) top = std::max(top, partial[s * a.partial_size() + r]);
        const float base = top == -float_of(kInfinity) ? 0.0f : top;
        for (int64_t s = 0; s < splits; ++s) {
          const float* part = partial + s * a.partial_size();
          sum += exp_of(part[r] - base) * part[a.queries + r];
        }
        for (int64_t s = 0; s < splits; ++s) {
          const float* part = partial + s * a.partial_size();
          const float share = sum == 0.0f ? 0.0f : exp_of(part[r] - base) / sum;
          const float* __restrict from = part + 2 * a.queries + r * a.out_width;
          float* __restrict to = (s == 0 ? full : packed) + r * a.out_width;
#pragma omp simd
          for (int64_t e = 0; e < a.out_width; ++e) to[e] = s == 0 ? share * from[e] : to[e] + share * from[e];
          add_weights(a, head, r, s, share);
        }
      }
    }
  }

 private:
  // Adds what query `r` gives to the tokens of a split.
  static LOSSY_INLINE void add_weights(const AttentionArgs& a, int64_t head, int64_t r, int64_t split, float share) {
    if (!a.weights) return;
    const int64_t tokens = a.chunks_of_split() * a.values.rows, window = a.sinks.tokens + a.packed_slots();
    if (split == 0) {
      add_range(a, head, r, 0, a.sinks.tokens, share);
      add_range(a, head, r, window, a.slots(), share);
    } else {
      const int64_t first = a.sinks.tokens + (split - 1) * tokens;
      add_range(a, head, r, first, std::min(first + tokens, window), share);
    }
  }
  static LOSSY_INLINE void add_range(const AttentionArgs& a, int64_t head, int64_t r, int64_t first, int64_t last,
                                     float share) {
    const float* __restrict from = a.weights + (head * a.queries + r) * a.slots();
    float* __restrict to = a.sums + head * a.slots();
#pragma omp simd
    for (int64_t i = first; i < last; ++i) to[i] = (r == 0 ? 0.0f : to[i]) + share * from[i];
  }
};
}  // namespace
}  // namespace lossy

// dtype of sinks and window: 0 float32, 1 float16, 2 bfloat16, 3 float64. sizes: B, H, R, D, E, C, G, S, W, Q, T.
// sums: of the weights of every token over the queries, or null. Returns 0; -1 for an unknown type; b + 1 if row b tells of tokens that there are not.
extern "C" int lossy_packed_attention(const float* query, const void* const* keys, const void* const* values,
                                      int key_bits, int value_bits, int64_t key_group, int64_t value_group,
                                      const void* const* full, int dtype, const int32_t* rows, const uint8_t* mask,
                                      const int64_t* sizes, double scaling, double softcap, float* packed_out,
                                      float* full_out, float* sums, int threads, int level) {
  using namespace lossy;
  const int64_t batch = sizes[0], heads = sizes[1], chunks = sizes[5], chunk = sizes[6];
  const auto packed = [&](const void* const* parts, int64_t rows_of, int64_t width, int64_t group, int bits) {
    return Packed{static_cast<const uint8_t*>(parts[0]), static_cast<const uint16_t*>(parts[1]),
                  static_cast<const uint16_t*>(parts[2]), chunks, rows_of, width, group, bits};
  };
  AttentionArgs a{query,
                  packed(keys, sizes[3], chunk, key_group, key_bits),
                  packed(values, chunk, sizes[4], value_group, value_bits),
                  {full[0], full[1], sizes[7]},
                  {full[2], full[3], sizes[8]},
                  rows,
                  mask,
                  batch,
                  heads,
                  sizes[2],
                  sizes[3],
                  sizes[4],
                  sizes[9],
                  sizes[10],
                  (float)scaling,
                  (float)softcap,
                  nullptr,
                  sums,
                  nullptr,
                  packed_out,
                  full_out};
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t start = rows[4 * b], sinks = rows[4 * b + 1], count = rows[4 * b + 2], from = rows[4 * b + 3];
    const bool fits = start >= 0 && sinks >= 0 && sinks <= sizes[7] && count >= 0 && count <= chunks && from >= 0 &&
                      from <= sizes[8];
    if (!fits || (mask && start + sinks + count * chunk + sizes[8] - from > sizes[10])) return (int)b + 1;
  }
  const int64_t all = batch * heads;
  const std::unique_ptr<float[]> partial(new float[all * a.splits() * a.partial_size()]);
  a.partial = partial.get();
  const std::unique_ptr<float[]> weights(sums ? new float[all * a.queries * a.slots()]() : nullptr);
  a.weights = weights.get();
  switch (dtype) {
    case 0: run_parallel<FullBody<float>>(a, all, 1, threads, level); break;
    case 1: run_parallel<FullBody<half_bits>>(a, all, 1, threads, level); break;
    case 2: run_parallel<FullBody<bfloat16_bits>>(a, all, 1, threads, level); break;
    case 3: run_parallel<FullBody<double>>(a, all, 1, threads, level); break;
    default: return -1;
  }
  run_parallel<PackedBody>(a, all * (a.splits() - 1), 1, threads, level);
  run_parallel<MergeBody>(a, all, 1, threads, level);
  return 0;
}
