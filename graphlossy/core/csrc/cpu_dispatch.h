// Run-time choice of the instruction set: every hot loop is an always-inlined template, compiled once more inside a
// wrapper for each x86-64 level. (GCC's target_clones cannot ask for 512-bit vectors, which read memory at full speed.)
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#define LOSSY_INLINE inline __attribute__((always_inline))
#define LOSSY_NOINLINE __attribute__((noinline))

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#define LOSSY_LEVELS 3
#define LOSSY_V3 __attribute__((noinline, target("arch=x86-64-v3")))
#if defined(__clang__)
#define LOSSY_V4 __attribute__((noinline, target("arch=x86-64-v4")))
#else
#define LOSSY_V4 __attribute__((noinline, target("arch=x86-64-v4,prefer-vector-width=512")))
#endif
#else
#define LOSSY_LEVELS 1
#endif

namespace lossy {

// Highest level that this processor runs: 0 baseline, 1 x86-64-v3 (AVX2), 2 x86-64-v4 (AVX-512).
inline int supported_level() {
#if LOSSY_LEVELS == 3
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v3 ? (v4 ? 2 : 1) : 0;
#else
  return 0;
#endif
}
// Level in use: a request of -1 is the highest one.
inline int level_of(int requested) {
  static const int highest = supported_level();
  return requested < 0 || requested > highest ? highest : requested;
}

// Denormal numbers are kept whatever the calling thread asked for (torch.set_flush_denormal), so that the result does
// not depend on which thread computes it.
class KeepDenormals {
 public:
#if LOSSY_LEVELS == 3
  KeepDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~KeepDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// Results much larger than a cache are written past it: a plain store would first read the memory that it overwrites.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
using StreamCopy = void (*)(void* to, const void* from, size_t bytes);
#if LOSSY_LEVELS == 3
// Copies whole, aligned vectors by `store(to, from)` and what lies before and after them plainly.
template <size_t WIDTH, class Store>
LOSSY_INLINE void stream_vectors(void* to, const void* from, size_t bytes, const Store& store) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const size_t rest = (size_t)(-reinterpret_cast<uintptr_t>(out) & (WIDTH - 1));
  size_t at = rest < bytes ? rest : bytes;
  if (at) std::memcpy(out, in, at);
  for (; at + WIDTH <= bytes; at += WIDTH) store(out + at, in + at);
  if (at < bytes) std::memcpy(out + at, in + at, bytes - at);
}
struct Store16 {
  LOSSY_INLINE void operator()(void* to, const void* from) const {
    _mm_stream_si128(static_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
};
struct Store32 {
  __attribute__((target("arch=x86-64-v3"))) void operator()(void* to, const void* from) const {
    _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }
};
struct Store64 {
  __attribute__((target("arch=x86-64-v4"))) void operator()(void* to, const void* from) const {
    _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
  }
};
LOSSY_NOINLINE inline void stream_base(void* to, const void* from, size_t bytes) {
  stream_vectors<16>(to, from, bytes, Store16{});
}
LOSSY_V3 inline void stream_v3(void* to, const void* from, size_t bytes) {
  stream_vectors<32>(to, from, bytes, Store32{});
}
LOSSY_V4 inline void stream_v4(void* to, const void* from, size_t bytes) {
  stream_vectors<64>(to, from, bytes, Store64{});
}
inline void stream_end() { _mm_sfence(); }  // makes what was streamed visible to other threads
#else
inline void stream_end() {}
#endif
// Whether the memory of a large result was never written to: C libraries map such sizes anew for every allocation, and
// the kernel provides its pages one by one at the first store, which takes several times the store itself.
inline bool is_untouched(const void* memory, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  for (int quarter = 1; quarter < 4; ++quarter) {
    const uintptr_t at = (reinterpret_cast<uintptr_t>(memory) + (uintptr_t)(bytes / 4 * quarter)) / page * page;
    unsigned char resident = 1;
    if (mincore(reinterpret_cast<void*>(at), 1, &resident) != 0 || (resident & 1)) return false;
  }
  return true;
#else
  (void)memory, (void)bytes;
  return false;
#endif
}
// Asks for huge pages, so that 512 first stores share one interruption. It is a hint: nothing depends on the answer.
inline void ask_for_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + (uintptr_t)bytes) / page * page;
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}
// How to write a result of `bytes` to `out`; null: by plain stores. Pages that the kernel has just cleared are in the
// cache, so that plain stores are the faster ones there.
inline StreamCopy prepare_result(void* out, int64_t bytes, int requested) {
  if (bytes < kStreamBytes) return nullptr;
  if (is_untouched(out, bytes)) {
    ask_for_huge_pages(out, bytes);
    return nullptr;
  }
#if LOSSY_LEVELS == 3
  const int level = level_of(requested);
  return level == 2 ? stream_v4 : level == 1 ? stream_v3 : stream_base;
#else
  (void)requested;
  return nullptr;
#endif
}

// body(first, last) over [0, count) in blocks of `block`, on at most `threads` threads.
template <class Body>
void parallel_blocks(int64_t count, int64_t block, int threads, const Body& body) {
  const int64_t blocks = (count + block - 1) / block;
  const int team = (int)(blocks < threads ? (blocks > 0 ? blocks : 1) : threads);
#if defined(_OPENMP)
#pragma omp parallel num_threads(team) if (team > 1)
#endif
  {
    KeepDenormals guard;
    (void)guard;
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * block, last = first + block < count ? first + block : count;
      body(first, last);
    }
  }
  (void)team;
}

// Body::run(args, first, last), compiled for every level; Body::run and all it calls must be always inlined.
template <class Body, class Args>
LOSSY_NOINLINE void run_base(const Args& args, int64_t first, int64_t last) {
  Body::run(args, first, last);
}
#if LOSSY_LEVELS == 3
template <class Body, class Args>
LOSSY_V3 void run_v3(const Args& args, int64_t first, int64_t last) {
  Body::run(args, first, last);
}
template <class Body, class Args>
LOSSY_V4 void run_v4(const Args& args, int64_t first, int64_t last) {
  Body::run(args, first, last);
}
#endif

// Body over [0, count) in blocks, at the given level (see level_of) and number of threads.
template <class Body, class Args>
void run_parallel(const Args& args, int64_t count, int64_t block, int threads, int requested) {
  void (*run)(const Args&, int64_t, int64_t) = run_base<Body, Args>;
#if LOSSY_LEVELS == 3
  const int level = level_of(requested);
  if (level == 2) run = run_v4<Body, Args>;
  if (level == 1) run = run_v3<Body, Args>;
#else
  (void)requested;
#endif
  parallel_blocks(count, block, threads, [&](int64_t first, int64_t last) { run(args, first, last); });
}
}  // namespace lossy
