// graphlossy::rank_lookup and multi_size_forward on the CPU.
#include "multi_size.h"

namespace lossy {
namespace {

// All bits of the words before word w, none of it and those after it.
constexpr uint64_t kAll = ~uint64_t{0};
alignas(64) constexpr uint64_t kBefore[kWords][kWords] = {
    {0, 0, 0, 0, 0, 0, 0, 0},
    {kAll, 0, 0, 0, 0, 0, 0, 0},
    {kAll, kAll, 0, 0, 0, 0, 0, 0},
    {kAll, kAll, kAll, 0, 0, 0, 0, 0},
    {kAll, kAll, kAll, kAll, 0, 0, 0, 0},
    {kAll, kAll, kAll, kAll, kAll, 0, 0, 0},
    {kAll, kAll, kAll, kAll, kAll, kAll, 0, 0},
    {kAll, kAll, kAll, kAll, kAll, kAll, kAll, 0},
};

// The words of a block. A vector of this kind is as many registers as the instruction set needs for it.
typedef uint64_t Words __attribute__((vector_size(kWords * sizeof(uint64_t)), aligned(8), may_alias));

struct RankArgs {
  Rank rank;
  const int64_t* ids;
  uint8_t* bucket;
  int64_t* row;
  int64_t* wrong;  // position of some id out of range
  int64_t count;
};

struct RankBody {
  static LOSSY_INLINE void run(const RankArgs& a, int64_t first, int64_t last) {
    const Rank& r = a.rank;
    for (int64_t i = first; i < last; ++i) {
      const int64_t ahead = a.ids[std::min(i + 2 * kAhead, a.count - 1)];
      if (r.bits && (uint64_t)ahead < (uint64_t)r.tokens) ask_for(r, ahead / (kWord * kWords));
      const int64_t id = a.ids[i];
      if ((uint64_t)id >= (uint64_t)r.tokens) {
        __atomic_store_n(a.wrong, i, __ATOMIC_RELAXED);
      } else if (!r.bits) {
        a.bucket[i] = 0;
        a.row[i] = id;
      } else {
        find(r, id, a.bucket + i, a.row + i);
      }
    }
  }

 private:
  static LOSSY_INLINE void ask_for(const Rank& r, int64_t block) {
    const uint64_t* planes = r.block_of(block);
    for (int b = 0; b < r.bits; ++b) __builtin_prefetch(planes + b * kWords);
    __builtin_prefetch(static_cast<const char*>(r.counts) + block * r.codes * (r.wide ? 8 : 4));
  }
  // Without branches on the data: a word's place in its block is as good as random.
  static LOSSY_INLINE void find(const Rank& r, int64_t id, uint8_t* bucket, int64_t* row) {
    const int64_t block = id / (kWord * kWords);
    const int w = (int)(id / kWord % kWords), at = (int)(id % kWord), stride = r.stride(block);
    const uint64_t* plane = r.block_of(block);
    uint64_t own = (uint64_t{1} << at) - 1;
    int code = 0;
    Words match = *reinterpret_cast<const Words*>(kBefore[w]);
    for (int b = 0; b < r.bits; ++b, plane += stride) {
      const uint64_t bit = plane[w] >> at & 1, flip = bit - 1;
      code |= (int)bit << b;
      own &= plane[w] ^ flip;
      if (stride == kWords) {
        match &= *reinterpret_cast<const Words*>(plane) ^ flip;
      } else {
        for (int i = 0; i < w; ++i) match[i] &= plane[i] ^ flip;
      }
    }
    int rank = __builtin_popcountll(own);
    for (int i = 0; i < kWords; ++i) rank += __builtin_popcountll(match[i]);
    *bucket = (uint8_t)code;
    *row = r.count(block, code) + rank;
  }
};

LOSSY_INLINE void store(const float* from, int64_t count, int kind, void* out, int64_t at) {
  if (kind == kFloat32) {
    std::copy(from, from + count, static_cast<float*>(out) + at);
  } else {
    uint16_t* to = static_cast<uint16_t*>(out) + at;
    for (int64_t j = 0; j < count; ++j) to[j] = kind == kFloat16 ? float_to_half(from[j]) : float_to_bfloat16(from[j]);
  }
}

constexpr Bucket kNothing{};  // what a position of no bucket is given: a row of zeros
struct ForwardArgs {
  const Bucket* buckets;
  const uint8_t* bucket;
  const int64_t* row;
  const int64_t* ends;   // [bags] one past the last position of each bag; null: every position is an output
  const float* weights;  // [count]; null: 1
  void* out;
  int64_t count, dim, longest;
  int kind, bits, out_kind, mean;
  int64_t codes;

  LOSSY_INLINE const Bucket& of(int64_t n) const { return bucket[n] < codes ? buckets[bucket[n]] : kNothing; }
};

// Positions of one bucket at a time: their loop has one length, which the processor can foresee, and a narrow
// projection stays in registers.
struct ForwardBody {
  static LOSSY_INLINE void run(const ForwardArgs& a, int64_t first, int64_t last) {
    const bool direct = a.out_kind == kFloat32;
    std::vector<float> memory((size_t)(kBlock * a.longest + (direct ? 0 : kBlock * a.dim)));
    float* rows = memory.data();
    float* out = direct ? static_cast<float*>(a.out) + first * a.dim : rows + kBlock * a.longest;
    uint16_t starts[257] = {}, order[kBlock];
    const int64_t count = last - first;
    for (int64_t n = 0; n < count; ++n) ++starts[a.bucket[first + n] + 1];
    for (int k = 0; k < 256; ++k) starts[k + 1] = (uint16_t)(starts[k + 1] + starts[k]);
    for (int64_t n = 0; n < count; ++n) order[starts[a.bucket[first + n]]++] = (uint16_t)n;
    for (int64_t i = 0; i < count;) {
      const int k = a.bucket[first + order[i]];
      const int64_t end = starts[k];  // by now where the next bucket begins
      one_bucket(a, k < a.codes ? a.buckets[k] : kNothing, first, order + i, end - i, rows, out);
      i = end;
    }
    if (!direct) store(out, count * a.dim, a.out_kind, a.out, first * a.dim);
  }

 private:
  static LOSSY_INLINE void one_bucket(const ForwardArgs& a, const Bucket& b, int64_t first, const uint16_t* order,
                                      int64_t count, float* rows, float* out) {
    const float* from[kBlock];
    if (b.size == 0) {
      for (int64_t i = 0; i < count; ++i) std::fill(out + order[i] * a.dim, out + (order[i] + 1) * a.dim, 0.0f);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) ask_for_row(b, a.kind, a.row[first + order[i + kAhead]]);
      from[i] = fetch(b, a.kind, a.bits, a.row[first + order[i]], rows + i * b.size);
    }
    if (b.projection && a.dim % (2 * kLanes) == 0) {
      switch (b.size) {
        case 1: return narrow<1>(b, a.dim, order, count, from, out);
        case 2: return narrow<2>(b, a.dim, order, count, from, out);
        case 3: return narrow<3>(b, a.dim, order, count, from, out);
        case 4: return narrow<4>(b, a.dim, order, count, from, out);
        case 6: return narrow<6>(b, a.dim, order, count, from, out);
        case 8: return narrow<8>(b, a.dim, order, count, from, out);
        case 16: return narrow<16>(b, a.dim, order, count, from, out);
        default: break;
      }
    }
    for (int64_t i = 0; i < count; ++i) project(from[i], b, a.dim, out + order[i] * a.dim);
  }
  template <int SIZE>
  static LOSSY_INLINE void narrow(const Bucket& b, int64_t dim, const uint16_t* order, int64_t count,
                                  const float* const* from, float* out) {
    constexpr int kColumns = SIZE > 8 ? kLanes : 2 * kLanes;  // as many as leave the projection in registers
    for (int64_t j = 0; j < dim; j += kColumns) {
      float p[SIZE][kColumns];
      for (int i = 0; i < SIZE; ++i) std::copy(b.projection + i * dim + j, b.projection + i * dim + j + kColumns, p[i]);
      for (int64_t n = 0; n < count; ++n) {
        const float* v = from[n];
        float* __restrict to = out + order[n] * dim + j;
#pragma omp simd
        for (int t = 0; t < kColumns; ++t) {
          float sum = 0.0f;
          for (int i = 0; i < SIZE; ++i) sum = add_rn(sum, mul_rn(v[i], p[i][t]));
          to[t] = sum;
        }
      }
    }
  }
};

struct BagBody {
  static LOSSY_INLINE void run(const ForwardArgs& a, int64_t first, int64_t last) {
    std::vector<float> memory((size_t)(a.longest + 2 * a.dim));
    float *room = memory.data(), *value = room + a.longest, *sum = value + a.dim;
    for (int64_t bag = first; bag < last; ++bag) {
      const int64_t begin = bag ? a.ends[bag - 1] : 0, end = a.ends[bag];
      std::fill(sum, sum + a.dim, 0.0f);
      for (int64_t n = begin; n < end; ++n) {
        if (n + kAhead < a.count) ask_for_row(a.of(n + kAhead), a.kind, a.row[n + kAhead]);
        const Bucket& b = a.of(n);
        const float w = a.weights ? a.weights[n] : 1.0f;
        if (b.size) {
          project(fetch(b, a.kind, a.bits, a.row[n], room), b, a.dim, value);
        } else {
          std::fill(value, value + a.dim, 0.0f);
        }
#pragma omp simd
        for (int64_t j = 0; j < a.dim; ++j) sum[j] = add_rn(sum[j], mul_rn(w, value[j]));
      }
      if (a.mean && end > begin) {
        const float n = (float)(end - begin);
        for (int64_t j = 0; j < a.dim; ++j) sum[j] = div_rn(sum[j], n);
      }
      store(sum, a.dim, a.out_kind, a.out, bag * a.dim);
    }
  }
};
}  // namespace
}  // namespace lossy

extern "C" {

// Bucket and row of every id; returns -1, or the position of an id that is no token.
int64_t lossy_rank_lookup(const int64_t* ids, int64_t count, const uint64_t* planes, const void* counts, int wide,
                          int64_t words, int64_t tokens, int bits, int codes, uint8_t* bucket, int64_t* row,
                          int threads, int level) {
  using namespace lossy;
  int64_t wrong = -1;
  const RankArgs a{{planes, counts, words, tokens, bits, codes, wide}, ids, bucket, row, &wrong, count};
  run_parallel<RankBody>(a, count, 4 * kBlock, threads, level);
  return wrong;
}

// `outputs` bags (ends given) or positions; kind of the tables and of the result as in `Kind`.
void lossy_multi_size_forward(const lossy::Bucket* buckets, int64_t codes, const uint8_t* bucket, const int64_t* row,
                              int64_t count, const int64_t* ends, const float* weights, int64_t outputs, int64_t dim,
                              int kind, int bits, int mean, void* out, int out_kind, int threads, int level) {
  using namespace lossy;
  const ForwardArgs a{buckets, bucket, row,  ends, weights,  out, count, dim, longest_row(buckets, codes),
                      kind,    bits,   out_kind, mean, codes};
  if (ends) {
    run_parallel<BagBody>(a, outputs, kBlock / 16, threads, level);
  } else {
    run_parallel<ForwardBody>(a, outputs, kBlock, threads, level);
  }
}
}
