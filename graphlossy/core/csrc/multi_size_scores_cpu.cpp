// graphlossy::multi_size_scores on the CPU.
#include "multi_size.h"

namespace lossy {
namespace {

struct ScoresArgs {
  Rank rank;
  const Bucket* buckets;
  const float* const* queries;  // for every bucket [size, batch]
  float* out;                   // [batch, tokens]
  int64_t batch, longest;
  int kind, bits;
};

// sum_i rows[r, i] q[i] of neighbouring rows, added in the order of i.
template <int SIZE>
LOSSY_INLINE void dots(const float* __restrict rows, int64_t count, const float* __restrict q, float* __restrict out) {
#pragma omp simd
  for (int64_t r = 0; r < count; ++r) {
    float sum = 0.0f;
    for (int i = 0; i < SIZE; ++i) sum = add_rn(sum, mul_rn(rows[r * SIZE + i], q[i]));
    out[r] = sum;
  }
}
LOSSY_INLINE void dots_of(const float* rows, int64_t count, int64_t size, const float* q, float* out) {
  switch (size) {
    case 1: return dots<1>(rows, count, q, out);
    case 2: return dots<2>(rows, count, q, out);
    case 3: return dots<3>(rows, count, q, out);
    case 4: return dots<4>(rows, count, q, out);
    case 8: return dots<8>(rows, count, q, out);
    case 16: return dots<16>(rows, count, q, out);
    case 32: return dots<32>(rows, count, q, out);
    default: break;
  }
  for (int64_t r = 0; r < count; ++r) {
    float sum = 0.0f;
    for (int64_t i = 0; i < size; ++i) sum = add_rn(sum, mul_rn(rows[r * size + i], q[i]));
    out[r] = sum;
  }
}

constexpr int64_t kBlocks = 16, kTokens = kBlocks * kWords * kWord;  // of a thread at a time: long runs of each bucket

struct ScoresBody {
  static LOSSY_INLINE void run(const ScoresArgs& a, int64_t first, int64_t last) {
    const Rank& r = a.rank;
    std::vector<int64_t> next((size_t)r.codes);
    const bool few = a.batch < kLanes;
    const int64_t rows = few && a.kind != kFloat32 ? kTokens : 1;
    std::vector<float> memory((size_t)((few ? kTokens : kWord * kWord) + a.longest * (rows + 1)));
    std::vector<uint16_t> order(few ? (size_t)kTokens : 0);
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * kTokens;
      for (int c = 0; c < r.codes; ++c) next[c] = r.bits ? r.count(part * kBlocks, c) : begin;
      if (few) {
        one_by_one(a, begin, next.data(), order.data(), memory.data());
      } else {
        together(a, begin, next.data(), memory.data());
      }
    }
  }

 private:
  // Few queries: the rows of a bucket in this part are neighbours; their products are then dealt out to the tokens.
  static LOSSY_INLINE void one_by_one(const ScoresArgs& a, int64_t begin, const int64_t* next, uint16_t* order,
                                      float* memory) {
    const Rank& r = a.rank;
    float *product = memory, *query = product + kTokens, *rows = query + a.longest;
    const int64_t words = std::min(kBlocks * kWords, r.words - begin / kWord);
    int64_t ends[256], n = 0;
    for (int c = 0; c < r.codes; ++c) {  // the tokens of this part, bucket after bucket
      for (int64_t w = 0; w < words; ++w) {
        const int64_t word = begin / kWord + w, block = word / kWords, left = r.tokens - word * kWord;
        uint64_t match = left < kWord ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
        for (int b = 0; b < r.bits; ++b) {
          match &= r.block_of(block)[b * r.stride(block) + word % kWords] ^ ((uint64_t)(c >> b & 1) - 1);
        }
        for (; match; match &= match - 1) order[n++] = (uint16_t)(w * kWord + __builtin_ctzll(match));
      }
      ends[c] = n;
    }
    for (int64_t q = 0; q < a.batch; ++q) {
      float* out = a.out + q * r.tokens + begin;
      for (int c = 0; c < r.codes; ++c) {
        const Bucket& k = a.buckets[c];
        const int64_t start = c ? ends[c - 1] : 0, count = ends[c] - start;
        if (k.size == 0) {
          for (int64_t i = 0; i < count; ++i) out[order[start + i]] = 0.0f;
          continue;
        }
        const float* from = rows;
        if (a.kind == kFloat32) {
          from = static_cast<const float*>(k.table) + next[c] * k.size;
        } else {
          for (int64_t i = 0; i < count; ++i) {
            fetch(k, a.kind, a.bits, next[c] + i, rows + i * k.size);  // all but float32 are decoded there
          }
        }
        for (int64_t i = 0; i < k.size; ++i) query[i] = a.queries[c][i * a.batch + q];
        dots_of(from, count, k.size, query, product);
        for (int64_t i = 0; i < count; ++i) out[order[start + i]] = product[i];
      }
    }
  }
  // Many: 64 tokens and as many queries at a time, so that a result is written in runs of a cache line and more.
  static LOSSY_INLINE void together(const ScoresArgs& a, int64_t begin, int64_t* next, float* memory) {
    const Rank& r = a.rank;
    float *tile = memory, *room = memory + kWord * kWord;
    const int64_t last = std::min(begin / kWord + kBlocks * kWords, r.words);
    for (int64_t word = begin / kWord; word < last; ++word, begin += kWord) {
      const int64_t width = std::min<int64_t>(kWord, r.tokens - begin), block = word / kWords;
      uint8_t code[kWord];
      int64_t row[kWord];
      r.codes_of(r.block_of(block), r.stride(block), (int)(word % kWords), code);
      for (int64_t t = 0; t < width; ++t) row[t] = next[code[t]]++;
      for (int64_t q = 0; q < a.batch; q += kWord) {
        const int64_t wide = std::min<int64_t>(kWord, a.batch - q);
        for (int64_t t = 0; t < width; ++t) {
          one(a, code[t], row[t], q, wide, room, tile + t * kWord);
        }
        for (int64_t b = 0; b < wide; ++b) {
          float* __restrict to = a.out + (q + b) * r.tokens + begin;
          for (int64_t t = 0; t < width; ++t) to[t] = tile[t * kWord + b];
        }
      }
    }
  }
  static LOSSY_INLINE void one(const ScoresArgs& a, int k, int64_t row, int64_t q, int64_t wide, float* room,
                               float* __restrict out) {
    const Bucket& b = a.buckets[k];
    const float* v = b.size ? fetch(b, a.kind, a.bits, row, room) : nullptr;
    const float* query = b.size ? a.queries[k] + q : nullptr;
    if (wide == kWord) {
      float sum[kWord] = {};
      for (int64_t i = 0; i < b.size; ++i) {
#pragma omp simd
        for (int t = 0; t < kWord; ++t) sum[t] = add_rn(sum[t], mul_rn(v[i], query[i * a.batch + t]));
      }
      std::copy(sum, sum + kWord, out);
      return;
    }
    for (int64_t t = 0; t < wide; ++t) {
      float sum = 0.0f;
      for (int64_t i = 0; i < b.size; ++i) sum = add_rn(sum, mul_rn(v[i], query[i * a.batch + t]));
      out[t] = sum;
    }
  }
};
}  // namespace
}  // namespace lossy

extern "C" {

void lossy_multi_size_scores(const uint64_t* planes, const void* counts, int wide, int64_t words, int64_t tokens,
                             int bits, int codes, const lossy::Bucket* buckets, const float* const* queries,
                             int64_t batch, int kind, int width, float* out, int threads, int level) {
  using namespace lossy;
  const ScoresArgs a{{planes, counts, words, tokens, bits, codes, wide}, buckets, queries, out, batch,
                     longest_row(buckets, codes), kind, width};
  (void)prepare_result(out, batch * tokens * (int64_t)sizeof(float), level);  // huge pages for a large new result
  run_parallel<ScoresBody>(a, (tokens + kTokens - 1) / kTokens, 1, threads, level);
}
}
