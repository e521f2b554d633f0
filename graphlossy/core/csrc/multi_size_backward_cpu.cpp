// graphlossy::multi_size_backward on the CPU.
#include "multi_size.h"

namespace lossy {
namespace {

struct BackwardArgs {
  const Bucket* buckets;
  const float* grad;       // [outputs, dim]
  const int64_t* bag;      // [count] output of every position; null: its own
  const float* weights;    // [count]; null: 1
  const int64_t* order;    // positions by bucket, in their order within one
  const uint8_t* bucket;   // [count]
  const int64_t* row;      // [count]
  const int64_t* starts;   // [buckets] first place of each bucket in `order`
  const int64_t* at;       // [buckets] where its gradients begin in `values`
  const int64_t* matrix;   // [buckets] where its projection's gradient begins in `sums`; -1: not wanted
  float* values;
  float* sums;             // [chunks, all projections]
  int64_t count, dim, longest, all, codes;
  int kind, bits;
};

// sum_j g[j] p[j]: lane t adds up the columns t, t + 16, ...; then halves of the lanes are added to each other.
LOSSY_INLINE float dot(const float* __restrict g, const float* __restrict p, int64_t dim) {
  float sum[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= dim; j += kLanes) {
#pragma omp simd
    for (int t = 0; t < kLanes; ++t) sum[t] = add_rn(sum[t], mul_rn(g[j + t], p[j + t]));
  }
  for (int t = 0; j < dim; ++j, ++t) sum[t] = add_rn(sum[t], mul_rn(g[j], p[j]));
  for (int half = kLanes / 2; half; half /= 2) {
    for (int t = 0; t < half; ++t) sum[t] = add_rn(sum[t], sum[t + half]);
  }
  return sum[0];
}

struct BackwardBody {
  static LOSSY_INLINE void run(const BackwardArgs& a, int64_t first, int64_t last) {
    std::vector<float> memory((size_t)(a.longest + a.dim));
    float *room = memory.data(), *scaled = room + a.longest;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      float* sums = a.sums + chunk * a.all;
      for (int64_t t = chunk * kChunk; t < std::min(a.count, (chunk + 1) * kChunk); ++t) {
        const int64_t n = a.order[t];
        const int k = a.bucket[n];
        const Bucket& b = a.buckets[k];
        const float* grad = a.grad + (a.bag ? a.bag[n] : n) * a.dim;
        if (a.weights) {
#pragma omp simd
          for (int64_t j = 0; j < a.dim; ++j) scaled[j] = mul_rn(a.weights[n], grad[j]);
          grad = scaled;
        }
        float* values = a.values + a.at[k] + (t - a.starts[k]) * b.size;
        if (!b.projection) {
          std::copy(grad, grad + a.dim, values);
          continue;
        }
        for (int64_t i = 0; i < b.size; ++i) values[i] = dot(grad, b.projection + i * a.dim, a.dim);
        if (a.matrix[k] < 0) continue;
        const float* v = fetch(b, a.kind, a.bits, a.row[n], room);
        float* __restrict to = sums + a.matrix[k];
        for (int64_t i = 0; i < b.size; ++i) {
          const float x = v[i];
#pragma omp simd
          for (int64_t j = 0; j < a.dim; ++j) to[i * a.dim + j] += x * grad[j];
        }
      }
    }
  }
};
}  // namespace
}  // namespace lossy

extern "C" {

// How many positions each bucket has, without those of no bucket or of size 0, and the positions in that order.
void lossy_multi_size_order(const lossy::Bucket* buckets, int64_t codes, const uint8_t* bucket, int64_t count,
                            int64_t* counts, int64_t* order) {
  using namespace lossy;
  std::fill(counts, counts + codes, 0);
  for (int64_t n = 0; n < count; ++n) counts[bucket[n] < codes ? bucket[n] : 0] += bucket[n] < codes;
  std::vector<int64_t> next((size_t)codes);
  int64_t total = 0;
  for (int64_t k = 0; k < codes; ++k) {
    if (buckets[k].size == 0) counts[k] = 0;
    next[k] = total;
    total += counts[k];
  }
  for (int64_t n = 0; n < count; ++n) {
    if (bucket[n] < codes && buckets[bucket[n]].size) order[next[bucket[n]]++] = n;
  }
}

// Gradients of the rows of `order` (its first `count` entries) to `values`, and of the projections: chunk by chunk to
// `sums`, which is zero, then added up in its first `all` elements.
void lossy_multi_size_backward(const lossy::Bucket* buckets, int64_t codes, const float* grad, const int64_t* bag,
                               const float* weights, const int64_t* order, const uint8_t* bucket, const int64_t* row,
                               const int64_t* starts, const int64_t* at, const int64_t* matrix, int64_t count,
                               int64_t dim, int kind, int bits, float* values, float* sums, int64_t all, int threads,
                               int level) {
  using namespace lossy;
  const BackwardArgs a{buckets, grad,   bag,  weights, order, bucket, row, starts, at, matrix, values, sums, count, dim,
                       longest_row(buckets, codes), all, codes, kind, bits};
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  run_parallel<BackwardBody>(a, chunks, 1, threads, level);
  for (int64_t c = 1; c < chunks; ++c) {
    for (int64_t i = 0; i < all; ++i) sums[i] += sums[c * all + i];
  }
}
}
