// graphlossy::rank_lookup, multi_size_forward, multi_size_backward and multi_size_scores on CUDA. The definition is
// graphlossy/core/_multi_size.py; sums are added in its order, one rounding an operation, so the results are its own bit
// for bit. A thread never waits for another but in the dot products of the gradients.
#pragma once
#include "masks.cuh"

namespace lossy {

constexpr int kWord = 64, kWords = 8;  // tokens of a word; words between two entries of the directory
constexpr int kNoBucket = 255;         // of an id that is no token
constexpr int kDotLanes = 16;          // partial sums of a dot product
constexpr int kDotRows = 4;            // dot products of a team at a time
constexpr int kQueries = 8;            // queries of a thread at a time

// As in graphlossy/core/multi_size.py and multi_size_cpu.cpp.
struct Bucket {
  const void* table;        // [rows, size], or the codes of graphlossy::quantize
  const uint16_t* scale;    // of low-bit rows, else null
  const uint16_t* offset;
  const float* projection;  // [size, dim]; null: the identity
  int64_t rows, group_size;
  int64_t size;
  int64_t flat;             // groups of codes run over the whole table rather than along each row
  int64_t group_shift;      // log2 of group_size, -1 if it is no power of two
};

// A block of 512 tokens has its planes one after another, each of as many words as the block has (8 but in the last).
struct Rank {
  const uint64_t* __restrict__ planes;  // [words * bits]
  const void* __restrict__ counts;      // [blocks, codes] int32 or int64
  int64_t words, tokens;
  int bits, codes, wide;
};
struct Place {
  int code;
  int64_t row;
};
// Bucket of a token, and how many tokens before it are of the same one: the directory's entry of its block, and the
// words of its block up to its own in which every plane agrees with its number.
LOSSY_FN Place find_token(const Rank& rank, int64_t id) {
  if (rank.bits == 0) return {0, id};
  const int64_t block = id / (kWord * kWords), rest = rank.words - block * kWords;
  const int word = (int)(id / kWord % kWords), at = (int)(id % kWord), stride = rest < kWords ? (int)rest : kWords;
  const uint64_t* plane = rank.planes + block * kWords * rank.bits;
  int code = 0;
  for (int b = 0; b < rank.bits; ++b) code |= (int)(plane[b * stride + word] >> at & 1) << b;
  const int64_t entry = block * rank.codes + code;
  int64_t row = rank.wide != 0 ? ((const int64_t*)rank.counts)[entry] : (int64_t)((const int32_t*)rank.counts)[entry];
  for (int w = 0; w <= word; ++w) {
    uint64_t match = w < word ? ~(uint64_t)0 : ((uint64_t)1 << at) - 1;
    for (int b = 0; b < rank.bits; ++b) match &= plane[b * stride + w] ^ ((uint64_t)(code >> b & 1) - 1);
    row += __popcll(match);
  }
  return {code, row};
}

// wrong: the least position of an id that is no token, where there is one; it has no bucket then.
template <class Id>
LOSSY_FN void rank_lookup(const Id* __restrict__ ids, int64_t count, const Rank& rank, uint8_t* __restrict__ bucket,
                          int64_t* __restrict__ row, unsigned long long* wrong) {
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const int64_t id = (int64_t)ids[i];
    Place place{kNoBucket, 0};
    if ((uint64_t)id < (uint64_t)rank.tokens) {
      place = find_token(rank, id);
    } else {
      atomicMin(wrong, (unsigned long long)i);
    }
    bucket[i] = (uint8_t)place.code;
    row[i] = place.row;
  }
}

// The elements of a row from its element `first` on, one after another, as float32.
template <class T>
class RowElements {
 public:
  LOSSY_FN RowElements(const Bucket& bucket, int, int64_t row, int64_t first)
      : next_(static_cast<const T*>(bucket.table) + row * bucket.size + first) {}
  LOSSY_FN float next() { return to_float(*next_++); }

 private:
  const T* __restrict__ next_;
};
// Codes of a group are planar (see _reference.py): position p is in byte p % plane, at bit (p / plane) * bits.
struct Codes {};
template <>
class RowElements<Codes> {
 public:
  LOSSY_FN RowElements(const Bucket& bucket, int bits, int64_t row, int64_t first) : bucket_(bucket), bits_(bits) {
    width_ = bucket.flat != 0 ? bucket.rows * bucket.size : bucket.size;
    codes_ = static_cast<const uint8_t*>(bucket.table);
    if (bucket.flat != 0) {
      first += row * bucket.size;
    } else {
      codes_ += row * (padded(width_) / 8 * bits);
      described_ = row * groups(width_ + bucket.group_size - 1);
    }
    group_ = groups(first);
    enter((int32_t)(first - group_ * bucket.group_size));
  }
  LOSSY_FN float next() {
    if (left_ == 0) {
      ++group_;
      enter(0);
    }
    const int code = from_[byte_] >> shift_ & ((1 << bits_) - 1);
    --left_;
    if (++byte_ == plane_) {
      byte_ = 0;
      shift_ += bits_;
    }
    return canonical(decode(code, scale_, offset_));
  }

 private:
  LOSSY_FN int64_t groups(int64_t elements) const {
    return bucket_.group_shift >= 0 ? elements >> bucket_.group_shift : elements / bucket_.group_size;
  }
  LOSSY_FN void enter(int32_t position) {
    const int32_t length = (int32_t)group_length(width_, bucket_.group_size, group_);
    plane_ = (int32_t)(padded(length) / 8) * bits_;
    shift_ = position / plane_ * bits_;
    byte_ = position % plane_;
    left_ = length - position;
    from_ = codes_ + group_ * (bucket_.group_size / 8 * bits_);
    scale_ = bfloat16_to_float(bucket_.scale[described_ + group_]);
    offset_ = bfloat16_to_float(bucket_.offset[described_ + group_]);
  }

  const Bucket& bucket_;
  const uint8_t *codes_, *from_;
  int64_t width_, group_, described_ = 0;  // described_: metadata of the row's first group
  int32_t bits_, plane_, byte_, shift_, left_;
  float scale_, offset_;
};

LOSSY_FN void store_rounded(float v, float* out) { *out = v; }
LOSSY_FN void store_rounded(float v, half_bits* out) { out->u = float_to_half(v); }
LOSSY_FN void store_rounded(float v, bfloat16_bits* out) { out->u = float_to_bfloat16(v); }

// Columns j to j + count - 1 of a position: sum_i row[i] P[i, j], added in the order of i from zero on.
template <class T>
LOSSY_FN void row_columns(const Bucket& bucket, int bits, int64_t row, int64_t dim, int64_t j, int count,
                          float (&out)[kWidth]) {
  if (bucket.projection == nullptr) {
    RowElements<T> elements(bucket, bits, row, j);
#pragma unroll
    for (int t = 0; t < kWidth; ++t) out[t] = t < count ? elements.next() : 0.0f;
    return;
  }
  RowElements<T> elements(bucket, bits, row, 0);
  const float* p = bucket.projection + j;
  const bool wide = dim % kWidth == 0 && aligned(bucket.projection, alignof(Four<float>));
  Four<float> sum{}, column{};
  for (int64_t i = 0; i < bucket.size; ++i, p += dim) {
    const float v = elements.next();
    if (wide) {
      column = *reinterpret_cast<const Four<float>*>(p);
    } else {
#pragma unroll
      for (int t = 0; t < kWidth; ++t) column.at[t] = t < count ? p[t] : 0.0f;
    }
#pragma unroll
    for (int t = 0; t < kWidth; ++t) sum.at[t] = add_rn(sum.at[t], mul_rn(v, column.at[t]));
  }
#pragma unroll
  for (int t = 0; t < kWidth; ++t) out[t] = sum.at[t];
}

// 2^log_lanes threads, up to a warp, to an output: a position, or with `ends` a bag, whose positions are added in their
// order. A thread has four columns at a time.
template <class T, class Out>
LOSSY_FN void multi_size_forward(const Bucket* __restrict__ buckets, int codes, int bits,
                                 const uint8_t* __restrict__ bucket, const int64_t* __restrict__ row,
                                 const int64_t* __restrict__ ends, const float* __restrict__ weights,
                                 Out* __restrict__ out, int64_t outputs, int64_t dim, int mean, int log_lanes) {
  const int member = (int)threadIdx.x & ((1 << log_lanes) - 1);
  const bool wide = dim % kWidth == 0;  // the result is a tensor of its own, so its first element is aligned
  for (int64_t index = first_thread() >> log_lanes; index < outputs; index += all_threads() >> log_lanes) {
    const int64_t begin = ends == nullptr ? index : index == 0 ? 0 : ends[index - 1];
    const int64_t end = ends == nullptr ? index + 1 : ends[index];
    for (int64_t j = (int64_t)member * kWidth; j < dim; j += (int64_t)kWidth << log_lanes) {
      const int count = dim - j < kWidth ? (int)(dim - j) : kWidth;
      float sum[kWidth] = {};
      for (int64_t n = begin; n < end; ++n) {
        const int k = bucket[n];
        float value[kWidth] = {};
        if (k < codes && buckets[k].size != 0) row_columns<T>(buckets[k], bits, row[n], dim, j, count, value);
        const float weight = weights == nullptr ? 1.0f : weights[n];
#pragma unroll
        for (int t = 0; t < kWidth; ++t) {  // a position on its own is copied: the sum would lose the sign of its zeros
          sum[t] = ends == nullptr ? value[t] : add_rn(sum[t], mul_rn(weight, value[t]));
        }
      }
      if (mean != 0 && end > begin) {
#pragma unroll
        for (int t = 0; t < kWidth; ++t) sum[t] = div_rn(sum[t], (float)(end - begin));
      }
      Out* to = out + index * dim + j;
      Four<Out> four;
#pragma unroll
      for (int t = 0; t < kWidth; ++t) store_rounded(sum[t], &four.at[t]);
      if (wide) {
        *reinterpret_cast<Four<Out>*>(to) = four;
      } else {
#pragma unroll
        for (int t = 0; t < kWidth; ++t) {
          if (t < count) to[t] = four.at[t];
        }
      }
    }
  }
}

// Gradients of the rows at the positions `order`, which are sorted by bucket: those of bucket k begin at place starts[k]
// of `order`, their gradients at element at[k] of `values`. 16 threads to a position: lane t adds up columns t, t + 16,
// ...; then halves of the lanes are added to each other.
template <class Grad>
LOSSY_FN void multi_size_values(const Bucket* __restrict__ buckets, const Grad* __restrict__ grad,
                                const int64_t* __restrict__ bag, const float* __restrict__ weights,
                                const int64_t* __restrict__ order, const uint8_t* __restrict__ bucket,
                                const int64_t* __restrict__ starts, const int64_t* __restrict__ at,
                                float* __restrict__ values, int64_t count, int64_t dim) {
  const int lane = (int)threadIdx.x & (kDotLanes - 1);
  const uint32_t team = 0xffffu << (threadIdx.x & kDotLanes);  // the lanes of its warp that share a position
  for (int64_t place = first_thread() / kDotLanes; place < count; place += all_threads() / kDotLanes) {
    const int64_t n = order[place];
    const int k = bucket[place];
    const Bucket& b = buckets[k];
    const Grad* from = grad + (bag == nullptr ? n : bag[n]) * dim;
    const float weight = weights == nullptr ? 1.0f : weights[n];
    float* to = values + at[k] + (place - starts[k]) * b.size;
    if (b.projection == nullptr) {
      for (int64_t j = lane; j < dim; j += kDotLanes) to[j] = mul_rn(weight, to_float(from[j]));
      continue;
    }
    for (int64_t i = 0; i < b.size; i += kDotRows) {
      float sum[kDotRows] = {};
      const float* p = b.projection + i * dim;
      const int rows = b.size - i < kDotRows ? (int)(b.size - i) : kDotRows;
      for (int64_t j = lane; j < dim; j += kDotLanes) {
        const float g = mul_rn(weight, to_float(from[j]));
#pragma unroll
        for (int r = 0; r < kDotRows; ++r) {
          if (r < rows) sum[r] = add_rn(sum[r], mul_rn(g, p[r * dim + j]));
        }
      }
#pragma unroll
      for (int r = 0; r < kDotRows; ++r) {
        for (int half = kDotLanes / 2; half > 0; half /= 2) {
          sum[r] = add_rn(sum[r], __shfl_xor_sync(team, sum[r], half));
        }
        if (lane == r && r < rows) to[i + r] = sum[r];
      }
    }
  }
}

// A thread to a token and eight queries: sum_i row[i] q[i, b], added in the order of i. `queries` are [size, batch] for
// every bucket, one after another; those of bucket k begin at queries[begins[k]].
template <class T>
LOSSY_FN void multi_size_scores(const Rank& rank, const Bucket* __restrict__ buckets, int bits,
                                const float* __restrict__ queries, const int64_t* __restrict__ begins,
                                float* __restrict__ out, int64_t batch) {
  const int64_t parts = (batch + kQueries - 1) / kQueries;
  for (int64_t turn = first_thread(); turn < rank.tokens * parts; turn += all_threads()) {
    const int64_t part = parts == 1 ? 0 : turn / rank.tokens, id = turn - part * rank.tokens, q = part * kQueries;
    const int count = batch - q < kQueries ? (int)(batch - q) : kQueries;
    const Place place = find_token(rank, id);
    const Bucket& bucket = buckets[place.code];
    float sum[kQueries] = {};
    if (bucket.size != 0) {
      RowElements<T> elements(bucket, bits, place.row, 0);
      const float* query = queries + begins[place.code] + q;
      for (int64_t i = 0; i < bucket.size; ++i, query += batch) {
        const float v = elements.next();
#pragma unroll
        for (int t = 0; t < kQueries; ++t) {
          if (t < count) sum[t] = add_rn(sum[t], mul_rn(v, query[t]));
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kQueries; ++t) {
      if (t < count) out[(q + t) * rank.tokens + id] = sum[t];
    }
  }
}
}  // namespace lossy
