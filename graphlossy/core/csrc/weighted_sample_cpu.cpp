// graphlossy::weighted_sample on the CPU: exact integer units, uniform numbers made bucket by bucket, one pass over the
// weights. Every step is integer arithmetic on numbers that depend on (seed, position) alone, so that neither the number
// of threads nor the size of a block shows in the result. See core/_weighted_sample.py for the definition.
#include <atomic>
#include <cmath>
#include <vector>

#include "cpu_dispatch.h"

namespace lossy {
namespace {

constexpr int kBits = 60;       // of a uniform number; the units of all weights add up to less than 2**kBits
constexpr int64_t kTile = 512;  // words of the generator at a time
constexpr int kLarge = 255;     // a count of this many and more is kept apart from the one-byte counts

struct Units {
  const void* weights;
  double first, second;  // two factors: one alone overflows for the smallest weights
};

template <class T>
LOSSY_INLINE int64_t unit(const Units& u, int64_t i) {
  return (int64_t)std::nearbyint((double)static_cast<const T*>(u.weights)[i] * u.first * u.second);
}

struct SumArgs {
  Units units;
  int64_t* sums;
  int64_t block;
};

template <class T>
struct SumBody {
  static LOSSY_INLINE void run(const SumArgs& a, int64_t first, int64_t last) {
    int64_t sum = 0;
    for (int64_t i = first; i < last; ++i) sum += unit<T>(a.units, i);
    a.sums[first / a.block] = sum;
  }
};

// Outputs `start`, `start` + 1, ... of SplitMix64 seeded with `key` (see core/_random.py).
LOSSY_INLINE void words(uint64_t key, uint64_t start, int64_t count, uint64_t* __restrict out) {
  const uint64_t base = key + (start + 1) * 0x9e3779b97f4a7c15ull;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    uint64_t z = base + (uint64_t)i * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    out[i] = z ^ (z >> 31);
  }
}

struct BucketArgs {
  uint64_t key;
  int64_t draws, slices;
  int high;
  uint32_t* tables;  // [slices, 2**high]
};

struct BucketBody {
  static LOSSY_INLINE void run(const BucketArgs& a, int64_t first, int64_t last) {
    uint64_t tile[kTile];
    const int rest = kBits - a.high;
    const uint64_t mask = (uint64_t{1} << a.high) - 1;
    for (int64_t slice = first; slice < last; ++slice) {
      uint32_t* table = a.tables + (slice << a.high);
      const int64_t end = (int64_t)((__int128)a.draws * (slice + 1) / a.slices);
      for (int64_t at = (int64_t)((__int128)a.draws * slice / a.slices); at < end; at += kTile) {
        const int64_t n = end - at < kTile ? end - at : kTile;
        words(a.key, (uint64_t)at, n, tile);
        for (int64_t i = 0; i < n; ++i) ++table[(tile[i] >> rest) & mask];
      }
    }
  }
};

struct CountArgs {
  Units units;
  int64_t block;
  const int64_t* starts;  // [blocks + 1] units before every block
  const int64_t* ends;    // [2**high + 1] draws before every bucket
  int64_t total;
  uint64_t key;
  int high;
  uint8_t* counts;         // [n], kLarge where the count is that or more
  int64_t* found;          // [blocks] weights that were drawn
  int64_t *index, *times;  // those counted kLarge times and more, in no order
  std::atomic<int64_t>* large;
};

LOSSY_INLINE uint64_t scaled(uint64_t u, uint64_t total) {
  return (uint64_t)(((unsigned __int128)u * total) >> kBits);
}
// The least u whose draw, floor(u * total / 2**kBits), is `value` or more.
LOSSY_INLINE uint64_t least_above(uint64_t value, uint64_t total) {
  return (uint64_t)((((unsigned __int128)value << kBits) + (total - 1)) / total);
}

// Where the values of a bucket belong among rising numbers: the bucket is cut into equal slots, for each of which the
// first number above its start is kept, so that the search ends after a step or two.
class Guide {
 public:
  // `length` rising numbers, the last one above `most`, for `draws` values in [least, most].
  LOSSY_INLINE Guide(const int64_t* rising, int64_t length, int64_t least, int64_t most, int64_t draws)
      : rising_(rising), least_(least) {
    int bits = 0;
    while (bits < kSlotBits && (int64_t{1} << bits) < draws) ++bits;
    const uint64_t range = (uint64_t)(most - least);
    while ((range >> shift_) >> bits) ++shift_;
    const int64_t slots = (int64_t)(range >> shift_) + 1;
    int32_t at = 0;
    for (int64_t s = 0; s < slots; ++s) {
      const int64_t start = least + (s << shift_);
      while (rising[at] <= start) ++at;
      first_[s] = at;
    }
    first_[slots] = (int32_t)length - 1;
  }

  // The first number above `value`.
  LOSSY_INLINE int64_t find(int64_t value) const {
    const int64_t slot = (value - least_) >> shift_;
    const int64_t* base = rising_ + first_[slot];
    for (int64_t length = first_[slot + 1] - first_[slot] + 1; length > 1;) {
      const int64_t half = length / 2;
      base += base[half - 1] <= value ? half : 0;
      length -= half;
    }
    return base - rising_;
  }

 private:
  static constexpr int kSlotBits = 11;
  const int64_t* rising_;
  int64_t least_;
  int shift_ = 0;
  int32_t first_[(1 << kSlotBits) + 1];
};

template <class T>
struct CountBody {
  static LOSSY_INLINE void run(const CountArgs& a, int64_t first, int64_t last) {
    const int64_t block = first / a.block, length = last - first;
    const int64_t low = a.starts[block], high = a.starts[block + 1];
    uint8_t* counts = a.counts + first;
    a.found[block] = 0;
    std::memset(counts, 0, (size_t)length);
    if (low == high) return;
    static thread_local std::vector<int64_t> scratch;
    scratch.assign((size_t)(2 * length), 0);
    int64_t *running = scratch.data(), *times = running + length;
    int64_t sum = low;
    for (int64_t i = 0; i < length; ++i) running[i] = sum += unit<T>(a.units, first + i);

    const int rest = kBits - a.high;
    const uint64_t total = (uint64_t)a.total;
    const int64_t one = (int64_t)(least_above((uint64_t)low, total) >> rest);
    const int64_t other = (int64_t)((least_above((uint64_t)high, total) - 1) >> rest);
    int64_t at = 0;
    for (int64_t bucket = one; bucket <= other; ++bucket) {
      const int64_t begin = a.ends[bucket], stop = a.ends[bucket + 1];
      if (begin == stop) continue;
      const uint64_t top = (uint64_t)bucket << rest;
      int64_t least = (int64_t)scaled(top, total), most = (int64_t)scaled(top | ((uint64_t{1} << rest) - 1), total);
      const bool whole = least >= low && most < high;
      least = least < low ? low : least;
      most = most >= high ? high - 1 : most;
      while (running[at] <= least) ++at;
      if (whole && most < running[at]) {  // all draws of the bucket fall on one weight: they need not be made
        times[at] += stop - begin;
        continue;
      }
      int64_t end = at;
      while (running[end] <= most) ++end;
      const Guide guide(running + at, end - at + 1, least, most, stop - begin);
      for (int64_t start = begin; start < stop; start += kTile) {
        const int64_t n = stop - start < kTile ? stop - start : kTile;
        if (whole) {
          draw<true>(a, top, rest, start, n, low, high, guide, times + at);
        } else {
          draw<false>(a, top, rest, start, n, low, high, guide, times + at);
        }
      }
      at = end;
    }
    finish(a, first, length, times, counts, block);
  }

  // Makes draws `start` .. `start` + n - 1 and counts those in [low, high), all of them if the bucket lies WHOLE in it.
  template <bool WHOLE>
  static LOSSY_INLINE void draw(const CountArgs& a, uint64_t top, int rest, int64_t start, int64_t n, int64_t low,
                                int64_t high, const Guide& guide, int64_t* times) {
    uint64_t tile[kTile];
    words(a.key, (uint64_t)start, n, tile);
    const uint64_t mask = (uint64_t{1} << rest) - 1, total = (uint64_t)a.total;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t value = (int64_t)scaled(top | (tile[i] & mask), total);
      if (WHOLE || (value >= low && value < high)) ++times[guide.find(value)];
    }
  }

  static LOSSY_INLINE void finish(const CountArgs& a, int64_t first, int64_t length, const int64_t* times,
                                  uint8_t* counts, int64_t block) {
    int64_t found = 0;
    for (int64_t i = 0; i < length; ++i) {
      found += times[i] != 0;
      if (times[i] >= kLarge) {
        const int64_t slot = a.large->fetch_add(1);
        a.index[slot] = first + i;
        a.times[slot] = times[i];
      }
      counts[i] = (uint8_t)(times[i] < kLarge ? times[i] : kLarge);
    }
    a.found[block] = found;
  }
};

struct FillArgs {
  const uint8_t* counts;
  const int64_t* offsets;  // [blocks] results before every block
  int64_t *index, *times;
  int64_t block;
};

struct FillBody {
  static LOSSY_INLINE void run(const FillArgs& a, int64_t first, int64_t last) {
    int64_t index[kTile], times[kTile];
    int64_t to = a.offsets[first / a.block];
    for (int64_t start = first; start < last; start += kTile) {
      const int64_t n = last - start < kTile ? last - start : kTile;
      int64_t found = 0;
      for (int64_t i = 0; i < n; ++i) {  // without a branch: whether a weight was drawn cannot be predicted
        index[found] = start + i;
        times[found] = a.counts[start + i];
        found += a.counts[start + i] != 0;
      }
      std::memcpy(a.index + to, index, (size_t)found * sizeof(int64_t));
      std::memcpy(a.times + to, times, (size_t)found * sizeof(int64_t));
      to += found;
    }
  }
};
}  // namespace
}  // namespace lossy

extern "C" {

// sums[b]: units of block b. double_weights: 0 float32, 1 float64.
void lossy_weighted_sums(const void* weights, int double_weights, int64_t n, double factor1, double factor2,
                         int64_t* sums, int64_t block, int threads, int level) {
  using namespace lossy;
  const SumArgs a{{weights, factor1, factor2}, sums, block};
  if (double_weights) {
    run_parallel<SumBody<double>>(a, n, block, threads, level);
  } else {
    run_parallel<SumBody<float>>(a, n, block, threads, level);
  }
}
// counts[b], [2**high]: how many of `draws` uniform numbers fall into bucket b.
void lossy_weighted_buckets(uint64_t key, int64_t draws, int high, int64_t* counts, int threads, int level) {
  using namespace lossy;
  const int64_t slices = threads > 1 && draws > (1 << 16) ? threads : 1;
  std::vector<uint32_t> tables((size_t)slices << high, 0);
  const BucketArgs a{key, draws, slices, high, tables.data()};
  run_parallel<BucketBody>(a, slices, 1, threads, level);
  for (int64_t b = 0; b < int64_t{1} << high; ++b) {
    counts[b] = 0;
    for (int64_t s = 0; s < slices; ++s) counts[b] += tables[(s << high) + b];
  }
}
// Returns how many weights were drawn 255 times and more: their numbers and counts are in index and times.
int64_t lossy_weighted_count(const void* weights, int double_weights, int64_t n, double factor1, double factor2,
                             int64_t block, const int64_t* starts, const int64_t* ends, int64_t total, uint64_t key,
                             int high, uint8_t* counts, int64_t* found, int64_t* index, int64_t* times, int threads,
                             int level) {
  using namespace lossy;
  std::atomic<int64_t> large{0};
  const Units units{weights, factor1, factor2};
  const CountArgs a{units, block, starts, ends, total, key, high, counts, found, index, times, &large};
  if (double_weights) {
    run_parallel<CountBody<double>>(a, n, block, threads, level);
  } else {
    run_parallel<CountBody<float>>(a, n, block, threads, level);
  }
  return large.load();
}
// The numbers and counts of the weights that were drawn; offsets[b]: how many come before block b.
void lossy_weighted_fill(const uint8_t* counts, int64_t n, int64_t block, const int64_t* offsets, int64_t* index,
                         int64_t* times, int64_t results, int threads, int level) {
  using namespace lossy;
  prepare_result(index, results * (int64_t)sizeof(int64_t), level);
  prepare_result(times, results * (int64_t)sizeof(int64_t), level);
  run_parallel<FillBody>(FillArgs{counts, offsets, index, times, block}, n, block, threads, level);
}
}
