// graphlossy::packed_attention on CUDA: a block takes 256 tokens of one row and head of keys (split-K), a thread one of
// them for the scores and one channel for the values; codes are decoded in registers. Each split has a softmax of its own,
// and a second kernel merges them by their largest scores. The definition is graphlossy/core/_packed_attention.py.
#pragma once
#include "quantize.cuh"

namespace lossy {

constexpr int kAttentionQueries = 4;   // at a time
constexpr int kAttentionWidth = 256;   // of a key at most
constexpr int kSplitTokens = kThreads;

struct AttentionSizes {
  int64_t heads, queries, width, out_width;  // heads: of a row of the batch
  int64_t chunks, chunk, key_group, value_group, sinks, window, positions, mask_tokens;
  int64_t packed_splits, full_splits;  // of every head
  float scaling, softcap;

  LOSSY_FN int64_t partial_size() const { return queries * (2 + out_width); }
  LOSSY_FN int64_t slots() const { return sinks + chunks * chunk + window; }
};

// A place among the codes of a row: planar groups, the last one of a row may be shorter. `group_size` is a multiple of 8.
template <int BITS>
struct CodePlace {
  int64_t byte, high;  // high: of the third bit, in groups of 3 bits
  int64_t group;
  int shift, high_shift;

  LOSSY_FN CodePlace(int64_t j, int64_t width, int64_t group_size) {
    group = j / group_size;
    const int32_t length = (int32_t)padded(group_length(width, group_size, group));
    const int32_t p = (int32_t)(j - group * group_size), low = BITS == 3 ? 2 : BITS, plane = length * low / 8;
    byte = group * (group_size / 8 * BITS) + p % plane;
    shift = p / plane * low;
    high = group * (group_size / 8 * BITS) + length / 4 + p % (length / 8);
    high_shift = p / (length / 8);
  }
  LOSSY_FN float code(const uint8_t* row) const {
    const int found = (row[byte] >> shift) & ((1 << (BITS == 3 ? 2 : BITS)) - 1);
    return (float)(BITS == 3 ? found | ((row[high] >> high_shift) & 1) << 2 : found);
  }
};

// Tokens in low bits of one row and head, from `first` on.
template <int KEY_BITS, int VALUE_BITS>
struct PackedSource {
  const uint8_t *keys, *values;
  const uint16_t *key_scale, *key_offset, *value_scale, *value_offset;
  int64_t chunk, width, out_width, key_group, value_group, first;

  LOSSY_FN void score(int64_t token, const float* query, float (&sum)[kAttentionQueries]) const {
    const int64_t c = (first + token) / chunk, j = first + token - c * chunk, bytes = padded(chunk) / 8 * KEY_BITS;
    const int64_t groups = (chunk + key_group - 1) / key_group;
    const CodePlace<KEY_BITS> place(j, chunk, key_group);
    for (int64_t d = 0; d < width; ++d) {
      const int64_t row = c * width + d, described = row * groups + place.group;
      const float scale = bfloat16_to_float(key_scale[described]), offset = bfloat16_to_float(key_offset[described]);
      const float key = fmaf(place.code(keys + row * bytes), scale, offset);
#pragma unroll
      for (int r = 0; r < kAttentionQueries; ++r) sum[r] = fmaf(query[r * kAttentionWidth + d], key, sum[r]);
    }
  }
  LOSSY_FN float value(int64_t token, const CodePlace<VALUE_BITS>& place) const {
    const int64_t row = first + token, groups = (out_width + value_group - 1) / value_group;
    const int64_t described = row * groups + place.group;
    const float scale = bfloat16_to_float(value_scale[described]);
    const float offset = bfloat16_to_float(value_offset[described]);
    return fmaf(place.code(values + row * (padded(out_width) / 8 * VALUE_BITS)), scale, offset);
  }
  LOSSY_FN CodePlace<VALUE_BITS> channel(int64_t e) const { return CodePlace<VALUE_BITS>(e, out_width, value_group); }
};

// Tokens in floating point of one row and head: sinks, then the window from its first token that counts on.
template <class T>
struct FullSource {
  const T *sink_keys, *sink_values, *window_keys, *window_values;
  int64_t sinks, width, out_width, first;  // sinks: that the row has; window_*: from the first token that counts on

  LOSSY_FN void score(int64_t token, const float* query, float (&sum)[kAttentionQueries]) const {
    const int64_t t = first + token;
    const T* key = t < sinks ? sink_keys + t * width : window_keys + (t - sinks) * width;
    for (int64_t d = 0; d < width; ++d) {
      const float k = to_float(key[d]);
#pragma unroll
      for (int r = 0; r < kAttentionQueries; ++r) sum[r] = fmaf(query[r * kAttentionWidth + d], k, sum[r]);
    }
  }
  LOSSY_FN float value(int64_t token, int64_t e) const {
    const int64_t t = first + token;
    return to_float(t < sinks ? sink_values[t * out_width + e] : window_values[(t - sinks) * out_width + e]);
  }
  LOSSY_FN int64_t channel(int64_t e) const { return e; }
};

template <bool MAX>
LOSSY_FN float over_threads(float v) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float warps[kWarps];
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, v, step);
    v = MAX ? fmaxf(v, other) : v + other;
  }
  __syncthreads();  // what the last call left has been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x >> kLogWarp] = v;
  __syncthreads();
  v = warps[0];
  for (int w = 1; w < kWarps; ++w) v = MAX ? fmaxf(v, warps[w]) : v + warps[w];
  return v;
}

// A split of `count` tokens: `place(t)` is the position of one among all of the row, `slot(t)` its slot.
template <class Source, class Place, class Slot>
LOSSY_FN void attend_split(const AttentionSizes& s, const Source& source, const Place& place, const Slot& slot,
                           int64_t count, const float* query, const uint8_t* mask, float* weight, float* partial) {
  __shared__ float queries[kAttentionQueries * kAttentionWidth];
  __shared__ float weights[kAttentionQueries * kSplitTokens];
  __shared__ float sums[kThreads];
  const int thread = (int)threadIdx.x;
  int lanes = 32;  // threads that share a token's channels
  while (lanes < s.out_width && lanes < kThreads) lanes *= 2;
  const int teams = kThreads / lanes, team = thread / lanes, lane = thread % lanes;
  for (int64_t r0 = 0; r0 < s.queries; r0 += kAttentionQueries) {
    const int now = s.queries - r0 < kAttentionQueries ? (int)(s.queries - r0) : kAttentionQueries;
    __syncthreads();
    for (int64_t i = thread; i < kAttentionQueries * s.width; i += kThreads) {
      const int64_t r = i / s.width, d = i - r * s.width;
      queries[r * kAttentionWidth + d] = r < now ? query[(r0 + r) * s.width + d] * s.scaling : 0.0f;
    }
    __syncthreads();
    float score[kAttentionQueries] = {};
    if (thread < count) source.score(thread, queries, score);
    for (int r = 0; r < now; ++r) {
      float v = score[r];
      if (s.softcap != 0.0f) v = s.softcap * tanhf(v / s.softcap);
      const bool seen =
          thread < count && (mask == nullptr || mask[(r0 + r) % s.positions * s.mask_tokens + place(thread)] != 0);
      if (!seen) v = -float_of(kInfinity);
      const float top = over_threads<true>(v), base = top == -float_of(kInfinity) ? 0.0f : top;
      const float share = expf(v - base);
      weights[r * kSplitTokens + thread] = share;
      if (weight != nullptr && thread < count) weight[(r0 + r) * s.slots() + slot(thread)] = share;
      const float sum = over_threads<false>(share);
      if (thread == 0) {
        partial[r0 + r] = top;
        partial[s.queries + r0 + r] = sum;
      }
    }
    __syncthreads();
    for (int64_t e0 = 0; e0 < s.out_width; e0 += lanes) {
      const int64_t e = e0 + lane;
      float out[kAttentionQueries] = {};
      if (e < s.out_width) {
        const auto channel = source.channel(e);
        for (int64_t t = team; t < count; t += teams) {
          const float v = source.value(t, channel);
#pragma unroll
          for (int r = 0; r < kAttentionQueries; ++r) {
            if (r < now) out[r] = fmaf(weights[r * kSplitTokens + t], v, out[r]);
          }
        }
      }
      for (int r = 0; r < now; ++r) {
        __syncthreads();
        sums[thread] = out[r];
        __syncthreads();
        if (team == 0 && e < s.out_width) {
          float total = 0.0f;
          for (int other = 0; other < teams; ++other) total += sums[other * lanes + lane];
          partial[2 * s.queries + (r0 + r) * s.out_width + e] = total;
        }
      }
    }
  }
}

template <int KEY_BITS, int VALUE_BITS>
LOSSY_FN void attend_packed(const AttentionSizes& s, const float* query, const uint8_t* keys, const uint16_t* key_scale,
                            const uint16_t* key_offset, const uint8_t* values, const uint16_t* value_scale,
                            const uint16_t* value_offset, const int32_t* rows, const uint8_t* mask, float* weights,
                            float* partial, int64_t items) {
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t head = item / s.packed_splits, split = item - head * s.packed_splits, row = head / s.heads;
    const int32_t* about = rows + 4 * row;
    const int64_t begin = split * kSplitTokens, left = about[2] * s.chunk - begin;
    const int64_t count = left < 0 ? 0 : left < kSplitTokens ? left : kSplitTokens;
    const int64_t key_rows = head * s.chunks * s.width, value_rows = head * s.chunks * s.chunk;
    const int64_t key_groups = (s.chunk + s.key_group - 1) / s.key_group;
    const int64_t value_groups = (s.out_width + s.value_group - 1) / s.value_group;
    const PackedSource<KEY_BITS, VALUE_BITS> source{keys + key_rows * (padded(s.chunk) / 8 * KEY_BITS),
                                                    values + value_rows * (padded(s.out_width) / 8 * VALUE_BITS),
                                                    key_scale + key_rows * key_groups,
                                                    key_offset + key_rows * key_groups,
                                                    value_scale + value_rows * value_groups,
                                                    value_offset + value_rows * value_groups,
                                                    s.chunk,
                                                    s.width,
                                                    s.out_width,
                                                    s.key_group,
                                                    s.value_group,
                                                    begin};
    const int64_t start = about[0] + about[1] + begin, slot = s.sinks + begin;
    attend_split(s, source, [=](int64_t t) { return start + t; }, [=](int64_t t) { return slot + t; }, count,
                 query + head * s.queries * s.width, mask == nullptr ? mask : mask + row * s.positions * s.mask_tokens,
                 weights == nullptr ? weights : weights + head * s.queries * s.slots(),
                 partial + (head * (s.packed_splits + s.full_splits) + split) * s.partial_size());
  }
}

template <class T>
LOSSY_FN void attend_full(const AttentionSizes& s, const float* query, const T* sink_keys, const T* sink_values,
                          const T* window_keys, const T* window_values, const int32_t* rows, const uint8_t* mask,
                          float* weights, float* partial, int64_t items) {
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t head = item / s.full_splits, split = item - head * s.full_splits, row = head / s.heads;
    const int32_t* about = rows + 4 * row;
    const int64_t begin = split * kSplitTokens, sinks = about[1], from = head * s.window + about[3];
    const int64_t left = sinks + s.window - about[3] - begin;
    const int64_t count = left < 0 ? 0 : left < kSplitTokens ? left : kSplitTokens;
    const FullSource<T> source{sink_keys + head * s.sinks * s.width,
                               sink_values + head * s.sinks * s.out_width,
                               window_keys + from * s.width,
                               window_values + from * s.out_width,
                               sinks,
                               s.width,
                               s.out_width,
                               begin};
    const int64_t start = about[0], skipped = about[2] * s.chunk;  // the packed ones lie between sinks and window
    const int64_t window = s.sinks + s.chunks * s.chunk + about[3] - sinks;  // slot of its first token, less the sinks
    attend_split(s, source, [=](int64_t t) { return start + begin + t + (begin + t < sinks ? 0 : skipped); },
                 [=](int64_t t) { return begin + t + (begin + t < sinks ? 0 : window); }, count,
                 query + head * s.queries * s.width, mask == nullptr ? mask : mask + row * s.positions * s.mask_tokens,
                 weights == nullptr ? weights : weights + head * s.queries * s.slots(),
                 partial + (head * (s.packed_splits + s.full_splits) + s.packed_splits + split) * s.partial_size());
  }
}

// A thread to an element of the result; norms: [heads, R, 2] largest score and sum of all weights of a query.
LOSSY_FN void merge_splits(const AttentionSizes& s, const float* partial, float* packed, float* full, float* norms,
                           int64_t elements) {
  const int64_t step = (int64_t)gridDim.x * kThreads, splits = s.packed_splits + s.full_splits;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < elements; i += step) {
    const int64_t line = i / s.out_width, e = i - line * s.out_width, head = line / s.queries;
    const int64_t r = line - head * s.queries;
    const float* from = partial + head * splits * s.partial_size();
    float top = -float_of(kInfinity), sum = 0.0f, out[2] = {0.0f, 0.0f};
    for (int64_t k = 0; k < splits; ++k) top = fmaxf(top, from[k * s.partial_size() + r]);
    const float base = top == -float_of(kInfinity) ? 0.0f : top;
    for (int64_t k = 0; k < splits; ++k) {
      const float* part = from + k * s.partial_size();
      const float share = expf(part[r] - base);
      sum = fmaf(share, part[s.queries + r], sum);
      float& to = out[k < s.packed_splits ? 0 : 1];
      to = fmaf(share, part[2 * s.queries + r * s.out_width + e], to);
    }
    packed[i] = sum == 0.0f ? 0.0f : out[0] / sum;
    full[i] = sum == 0.0f ? 0.0f : out[1] / sum;
    if (norms != nullptr && e == 0) {
      norms[2 * line] = base;
      norms[2 * line + 1] = sum;
    }
  }
}

// A thread to a slot: its weights over all queries of a head.
LOSSY_FN void sum_weights(const AttentionSizes& s, const float* partial, const float* weights, const float* norms,
                          const int32_t* rows, float* sums, int64_t elements) {
  const int64_t step = (int64_t)gridDim.x * kThreads, splits = s.packed_splits + s.full_splits;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < elements; i += step) {
    const int64_t head = i / s.slots(), slot = i - head * s.slots(), recent = slot - s.sinks - s.chunks * s.chunk;
    const int32_t* about = rows + 4 * (head / s.heads);
    int64_t split = -1;  // of the slot, if it holds a token
    if (slot < s.sinks) {
      if (slot < about[1]) split = s.packed_splits + slot / kSplitTokens;
    } else if (recent < 0) {
      if (slot - s.sinks < about[2] * s.chunk) split = (slot - s.sinks) / kSplitTokens;
    } else if (recent >= about[3]) {
      split = s.packed_splits + (about[1] + recent - about[3]) / kSplitTokens;
    }
    float total = 0.0f;
    for (int64_t r = 0; split >= 0 && r < s.queries; ++r) {
      const int64_t line = head * s.queries + r;
      const float top = partial[(head * splits + split) * s.partial_size() + r], sum = norms[2 * line + 1];
      if (sum != 0.0f) total += weights[line * s.slots() + slot] * expf(top - norms[2 * line]) / sum;
    }
    sums[i] = total;
  }
}
}  // namespace lossy
