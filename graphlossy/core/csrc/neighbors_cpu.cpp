// graphlossy::sample_neighbors and graphlossy::relabel on the CPU, bit for bit what graphlossy/core/_neighbors.py
// defines. Every seed node is worked on by itself, with random words that depend on (seed, node, stream) alone.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "cpu_dispatch.h"

namespace lossy {
namespace {

constexpr uint64_t kGamma = 0x9e3779b97f4a7c15ull;
constexpr int kUnitBits = 31;
constexpr int64_t kLargestDegree = (int64_t{1} << 29) - 1;
constexpr int64_t kSeedBlock = 64;      // seeds of a block of work; blocks are handed out as threads become free
constexpr int64_t kScanned = 48;        // subsets up to this size are searched one by one, larger ones by hashing
constexpr int64_t kAhead = 12;          // seeds whose memory is asked for in advance

inline uint64_t mix64(uint64_t z) {  // SplitMix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
inline uint64_t advance(uint64_t key, uint64_t counter) { return mix64(key + (counter + 1) * kGamma); }
// floor(word * bound / 2^64), bound < 2^31.
inline int64_t below(uint64_t word, uint64_t bound) {
  return (int64_t)(((word >> 32) * bound + (((word & 0xffffffffu) * bound) >> 32)) >> 32);
}
// floor(u * bound / 2^60) for the 60 high bits u of a word, bound < 2^60.
inline int64_t below_wide(uint64_t word, uint64_t bound) {
  const uint64_t u = word >> 4, mask = (1u << 30) - 1;
  const uint64_t uh = u >> 30, ul = u & mask, h = bound >> 30, l = bound & mask;
  return (int64_t)(uh * h + ((uh * l + ul * h + ((ul * l) >> 30)) >> 30));
}
inline double power_of_two(int64_t exponent) {
  const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
  double v;
  std::memcpy(&v, &bits, 8);
  return v;
}

struct Hop {
  const void* indptr;
  int wide;  // indptr: 0 int32, 1 int64
  int64_t nodes, edges;
  const int64_t* seeds;
  const int64_t* stream;  // may be null
  const void* weight;     // may be null
  int kind;               // of the weights: 0 float32, 1 float64, 2 int32, 3 int64
  int64_t k;
  int replace;
  uint64_t key;

  int64_t pointer(int64_t v) const {
    return wide ? static_cast<const int64_t*>(indptr)[v] : static_cast<const int32_t*>(indptr)[v];
  }
  void ask_for(int64_t v) const {
    if ((uint64_t)v >= (uint64_t)nodes) return;
    const char* at = static_cast<const char*>(indptr) + v * (wide ? 8 : 4);
    __builtin_prefetch(at);
  }
  double weight_of(int64_t e) const {
    double w = 0;
    switch (kind) {
      case 0: w = static_cast<const float*>(weight)[e]; break;
      case 1: w = static_cast<const double*>(weight)[e]; break;
      case 2: w = static_cast<const int32_t*>(weight)[e]; break;
      default: w = (double)static_cast<const int64_t*>(weight)[e];
    }
    return w > 0 && w <= 1.7976931348623157e308 ? w : 0.0;
  }
  uint64_t key_of(int64_t i) const {
    const uint64_t node = advance(key, (uint64_t)seeds[i]);
    return stream ? advance(node, (uint64_t)stream[i]) : node;
  }
  // Degree of seed i, or -1 if it is no node, or its edges are none of the graph's.
  int64_t degree_of(int64_t i, int64_t& begin) const {
    const int64_t v = seeds[i];
    if (v < 0 || v >= nodes) return -1;
    begin = pointer(v);
    const int64_t degree = pointer(v + 1) - begin;
    return begin < 0 || degree < 0 || degree > kLargestDegree || begin + degree > edges ? -1 : degree;
  }
  int64_t positive(int64_t begin, int64_t degree) const {
    int64_t n = 0;
    for (int64_t e = begin; e < begin + degree; ++e) n += weight_of(e) > 0;
    return n;
  }
  int64_t count_of(int64_t begin, int64_t degree) const {
    if (k < 0) return degree;
    if (replace) return (weight ? positive(begin, degree) > 0 : degree > 0) ? k : 0;
    return std::min(k, weight ? positive(begin, degree) : degree);
  }
};

// What a thread keeps between seeds.
struct Scratch {
  std::vector<int64_t> units, table;
  std::vector<uint8_t> certain;
};

// Floyd's algorithm F2: a uniform subset of k of the numbers below `degree`.
void subset(const Hop& a, int64_t begin, int64_t degree, uint64_t key, int64_t* out, Scratch& s) {
  const int64_t k = a.k;
  if (k <= kScanned) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t last = degree - k + j;
      int64_t drawn = begin + below(advance(key, j), last + 1);
      bool seen = false;
      for (int64_t i = 0; i < j; ++i) seen |= out[i] == drawn;
      out[j] = seen ? begin + last : drawn;
    }
    return;
  }
  int bits = 1;
  while ((int64_t{1} << bits) < 2 * k) ++bits;
  const int64_t mask = (int64_t{1} << bits) - 1;
  s.table.assign((size_t)mask + 1, -1);
  const auto insert = [&](int64_t value) {  // false if it was there
    int64_t at = (int64_t)(((uint64_t)value * kGamma) >> (64 - bits));
    for (; s.table[at] >= 0; at = (at + 1) & mask)
      if (s.table[at] == value) return false;
    s.table[at] = value;
    return true;
  };
  for (int64_t j = 0; j < k; ++j) {
    const int64_t last = degree - k + j, drawn = below(advance(key, j), last + 1);
    if (insert(drawn)) {
      out[j] = begin + drawn;
    } else {
      insert(last);
      out[j] = begin + last;
    }
  }
}

// Weights of a neighbourhood in units; returns their sum.
int64_t measure(const Hop& a, int64_t begin, int64_t degree, Scratch& s) {
  s.units.resize((size_t)degree);
  double largest = 0;
  for (int64_t i = 0; i < degree; ++i) largest = std::max(largest, a.weight_of(begin + i));
  int exponent = 0;
  (void)std::frexp(largest, &exponent);
  const int64_t shift = kUnitBits - exponent, first = shift >> 1;
  const double f0 = power_of_two(first), f1 = power_of_two(shift - first);
  int64_t total = 0;
  for (int64_t i = 0; i < degree; ++i) {
    const double w = a.weight_of(begin + i);
    const int64_t u = w > 0 ? std::max<int64_t>(1, (int64_t)std::nearbyint(w * f0 * f1)) : 0;
    s.units[i] = u;
    total += u;
  }
  return total;
}

void weighted_with(const Hop& a, int64_t begin, int64_t degree, uint64_t key, int64_t* out, double* expected,
                   Scratch& s) {
  const int64_t total = measure(a, begin, degree, s);
  if (total == 0) return;
  for (int64_t i = 1; i < degree; ++i) s.units[i] += s.units[i - 1];
  for (int64_t j = 0; j < a.k; ++j) {
    const int64_t value = below_wide(advance(key, j), total);
    const int64_t at = std::upper_bound(s.units.begin(), s.units.begin() + degree, value) - s.units.begin();
    const int64_t u = s.units[at] - (at ? s.units[at - 1] : 0);
    out[j] = begin + at;
    expected[j] = (double)u * (double)a.k / (double)total;
  }
}

void weighted_without(const Hop& a, int64_t begin, int64_t degree, uint64_t key, int64_t* out, double* expected,
                      Scratch& s) {
  int64_t total = measure(a, begin, degree, s), left = a.k;
  s.certain.assign((size_t)degree, 0);
  for (bool again = true; again && left > 0;) {
    again = false;
    const int64_t left_before = left, total_before = total;
    for (int64_t i = 0; i < degree; ++i) {
      const int64_t u = s.units[i];
      if (u == 0 || s.certain[i] || u * left_before < total_before) continue;
      s.certain[i] = 1;
      again = true;
      --left;
      total -= u;
    }
  }
  if (total == 0) left = 0;
  const int64_t first = left ? below_wide(advance(key, 0), total) : 0;
  const int64_t part = left ? total / left : 0, rest = left ? total % left : 0;
  int64_t running = 0, step = 0, n = 0;
  for (int64_t i = 0; i < degree; ++i) {
    if (!s.certain[i]) {
      running += s.units[i];
      if (step == left || step * part + (first + step * rest) / left >= running) continue;
      ++step;
      expected[n] = (double)s.units[i] * (double)left / (double)total;
    } else {
      expected[n] = 1.0;
    }
    out[n++] = begin + i;
  }
}

void sample_one(const Hop& a, int64_t i, int64_t count, int64_t* out, double* expected, Scratch& s) {
  int64_t begin = 0;
  const int64_t degree = a.degree_of(i, begin);
  if (count == 0) return;
  if (a.k < 0 || (!a.weight && !a.replace && degree <= a.k)) {
    for (int64_t j = 0; j < count; ++j) out[j] = begin + j;
    if (a.weight) std::fill(expected, expected + count, 1.0);
    return;
  }
  const uint64_t key = a.key_of(i);
  if (a.weight) {
    (a.replace ? weighted_with : weighted_without)(a, begin, degree, key, out, expected, s);
  } else if (a.replace) {
    for (int64_t j = 0; j < count; ++j) out[j] = begin + below(advance(key, j), degree);
  } else {
    subset(a, begin, degree, key, out, s);
  }
}

// Body over blocks of seeds as threads become free: degrees differ too much for equal shares.
template <class Body>
void over_seeds(int64_t count, int threads, const Body& body) {
  const int64_t blocks = (count + kSeedBlock - 1) / kSeedBlock;
  const int team = (int)std::max<int64_t>(1, std::min<int64_t>(threads, blocks / 4));
#if defined(_OPENMP)
#pragma omp parallel num_threads(team) if (team > 1)
#endif
  {
    KeepDenormals guard;
    (void)guard;
#if defined(_OPENMP)
#pragma omp for schedule(dynamic, 1)
#endif
    for (int64_t b = 0; b < blocks; ++b) body(b * kSeedBlock, std::min(count, (b + 1) * kSeedBlock));
  }
  (void)team;
}

// Local numbers of nodes: an array with an entry for every node, kept by the thread and left clean after each call...
class Array {
 public:
  explicit Array(int64_t nodes) : slots_(memory()), nodes_(nodes) {
    if ((int64_t)slots_.size() < nodes) slots_.assign((size_t)nodes, -1);
  }
  bool holds(int64_t node) const { return (uint64_t)node < (uint64_t)nodes_; }
  int32_t& slot(int64_t node) { return slots_[(size_t)node]; }
  void ask_for(int64_t node) const { __builtin_prefetch(slots_.data() + node, 1); }
  void clear(const int64_t* nodes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) slots_[(size_t)nodes[i]] = -1;
  }

 private:
  static std::vector<int32_t>& memory() {
    thread_local std::vector<int32_t> kept;
    return kept;
  }
  std::vector<int32_t>& slots_;
  int64_t nodes_;
};
// ... or a table of those that appear, with open addressing.
class Table {
 public:
  explicit Table(int64_t entries) {
    while ((int64_t{1} << bits_) < 2 * entries) ++bits_;
    slots_.assign(size_t{1} << bits_, Slot{-1, -1});
  }
  bool holds(int64_t node) const { return node >= 0; }
  int64_t& slot(int64_t node) {
    const size_t mask = slots_.size() - 1;
    size_t at = place(node);
    while (slots_[at].node >= 0 && slots_[at].node != node) at = (at + 1) & mask;
    slots_[at].node = node;
    return slots_[at].local;
  }
  void ask_for(int64_t node) const { __builtin_prefetch(slots_.data() + place(node), 1); }
  void clear(const int64_t*, int64_t) {}

 private:
  struct Slot {
    int64_t node, local;
  };
  size_t place(int64_t node) const { return (size_t)(((uint64_t)node * kGamma) >> (64 - bits_)); }
  int bits_ = 4;
  std::vector<Slot> slots_;
};

template <class Map>
int64_t number(Map&& map, const int64_t* known, int64_t num_known, const int64_t* found, int64_t count, int64_t* fresh,
               int64_t* local) {
  int64_t done = 0, n = 0;
  bool sound = true;
  for (; done < num_known && (sound = map.holds(known[done])); ++done) {
    if (done + kAhead < num_known) map.ask_for(known[done + kAhead]);
    auto& slot = map.slot(known[done]);
    if (slot < 0) slot = (int32_t)done;
  }
  for (int64_t i = 0; sound && i < count; ++i) {
    if (i + kAhead < count) map.ask_for(found[i + kAhead]);
    if (!(sound = map.holds(found[i]))) break;
    auto& slot = map.slot(found[i]);
    if (slot < 0) {
      slot = (int32_t)(num_known + n);
      fresh[n++] = found[i];
    }
    local[i] = slot;
  }
  map.clear(known, done);
  map.clear(fresh, n);
  return sound ? n : -2;
}
}  // namespace
}  // namespace lossy

extern "C" {

// Edges that will be taken for every seed, and their sum; -1 - i where seed i is no node of a sound graph.
int64_t lossy_count_neighbors(const void* indptr, int wide, int64_t nodes, int64_t edges, const int64_t* seeds,
                              int64_t count, const void* weight, int kind, int64_t k, int replace, int64_t* counts,
                              int threads) {
  using namespace lossy;
  const Hop a{indptr, wide, nodes, edges, seeds, nullptr, weight, kind, k, replace, 0};
  over_seeds(count, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (i + kAhead < count) a.ask_for(seeds[i + kAhead]);
      int64_t begin = 0;
      const int64_t degree = a.degree_of(i, begin);
      counts[i] = degree < 0 ? -1 : a.count_of(begin, degree);
    }
  });
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (counts[i] < 0) return -1 - i;
    total += counts[i];
  }
  return total;
}

// The edges of every seed to position[offsets[i]...], and for weighted draws how often each is expected.
void lossy_sample_neighbors(const void* indptr, int wide, int64_t nodes, int64_t edges, const int64_t* seeds,
                            int64_t count, const int64_t* stream, const void* weight, int kind, int64_t k, int replace,
                            uint64_t key, const int64_t* counts, const int64_t* ends, int64_t* position,
                            double* expected, int threads) {
  using namespace lossy;
  const Hop a{indptr, wide, nodes, edges, seeds, stream, weight, kind, k, replace, key};
  over_seeds(count, threads, [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    for (int64_t i = first; i < last; ++i) {
      if (i + kAhead < count) a.ask_for(seeds[i + kAhead]);
      const int64_t at = ends[i] - counts[i];
      sample_one(a, i, counts[i], position + at, expected ? expected + at : nullptr, scratch);
    }
  });
}

// out[i] = element position[i] of an array in a file: integers of `size` (4 or 8) bytes from byte `offset` on. Reading,
// unlike a memory map, leaves no page in the process. 0, or -1 - i if element i cannot be read whole.
int64_t lossy_read_elements(int file, int64_t offset, int size, const int64_t* position, int64_t count, int64_t* out,
                            int threads) {
#if defined(__linux__)
  int64_t failed = 0;
  lossy::over_seeds(count, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      int64_t wide = 0;
      int32_t narrow = 0;
      void* to = size == 8 ? static_cast<void*>(&wide) : static_cast<void*>(&narrow);
      const bool read = position[i] >= 0 && pread(file, to, (size_t)size, offset + position[i] * size) == size;
      out[i] = size == 8 ? wide : narrow;
      if (!read) __atomic_store_n(&failed, -1 - i, __ATOMIC_RELAXED);
    }
  });
  return failed;
#else
  (void)file, (void)offset, (void)size, (void)position, (void)out, (void)threads;
  return count ? -1 : 0;
#endif
}

// Numbers `found` in order of first appearance, after `known`; returns how many are fresh. `nodes`: all ids are below it
// and an array of as many entries is used; 0: a table. Fewer than 2^31 ids in all. -1: no memory; -2: an id that is no node.
int64_t lossy_relabel(const int64_t* known, int64_t num_known, const int64_t* found, int64_t count, int64_t nodes,
                      int64_t* fresh, int64_t* local) {
  using namespace lossy;
  try {
    if (nodes > 0) return number(Array(nodes), known, num_known, found, count, fresh, local);
    return number(Table(num_known + count), known, num_known, found, count, fresh, local);
  } catch (const std::bad_alloc&) {
    return -1;
  }
}
}
