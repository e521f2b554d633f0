// Runs CUDA C++ on the host, a block at a time, its threads as fibers that give way where they exchange values or wait
// for each other: enough of the language for the kernels here. A driver API of six functions stands in for libcuda.
//
// The source takes its device branches (__CUDA_ARCH__). Compiled with -fsanitize=alignment and traps, an access to an
// address that is not a multiple of its size is an error of the launch, as on a GPU; so is one outside all memory.
#pragma once
#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define __CUDA_ARCH__ 900
#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
template <class To, class From>
To same_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float v) { return same_bits<unsigned>(v); }
inline float __uint_as_float(unsigned u) { return same_bits<float>(u); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
// One thread runs at a time.
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long value) {
  const unsigned long long before = *at;
  if (value < before) *at = value;
  return before;
}
inline long long __double_as_longlong(double v) { return same_bits<long long>(v); }
inline double __longlong_as_double(long long u) { return same_bits<double>(u); }

struct Index {
  unsigned x = 0;
};
inline Index blockIdx, gridDim;

namespace emulator {
constexpr int kThreads = 256, kLanes = 32, kStack = 1 << 16;
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};
inline std::vector<Fiber> fibers(kThreads);
inline int current = -1;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline uint64_t slots[kThreads];
inline unsigned masks[kThreads];  // lanes that a thread exchanges values with, while it does

inline void give_way() { swapcontext(&fibers[current].context, &scheduler); }
inline void entry() {
  body();
  fibers[current].done = true;
  give_way();
}
// All lanes of a mask write, then all read: one that is elsewhere, or has another mask, is an error of the launch.
template <class T>
T exchange(T value, int source, unsigned mask = ~0u) {
  const int me = current, warp = me & ~(kLanes - 1);
  std::memcpy(&slots[me], &value, sizeof value);
  masks[me] = mask;
  give_way();
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) != 0 && masks[warp | lane] != mask) __builtin_trap();
  }
  if ((mask >> (me - warp) & 1) == 0 || (mask >> source & 1) == 0) __builtin_trap();
  T out;
  std::memcpy(&out, &slots[warp | source], sizeof out);
  give_way();
  masks[me] = 0;
  return out;
}
inline void run_block() {
  std::memset(masks, 0, sizeof masks);
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStack};
    fiber.context.uc_link = nullptr;
    fiber.done = false;
    makecontext(&fiber.context, entry, 0);
  }
  for (bool any = true; any;) {
    any = false;
    for (current = 0; current < kThreads; ++current) {
      if (fibers[current].done) continue;
      swapcontext(&scheduler, &fibers[current].context);
      any = true;
    }
  }
}
// While it lives, a fault of a kernel ends the launch and not the process.
inline sigjmp_buf failed;
class Guard {
 public:
  Guard() {
    struct sigaction jump {};
    jump.sa_handler = [](int) { siglongjmp(failed, 1); };
    jump.sa_flags = SA_NODEFER;
    for (int i = 0; i < kFaults; ++i) sigaction(kSignals[i], &jump, &before_[i]);
  }
  ~Guard() {
    for (int i = 0; i < kFaults; ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kFaults = 4;
  static constexpr int kSignals[kFaults] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
  struct sigaction before_[kFaults];
};
using Kernel = void (*)(void** arguments);
inline std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}
// The arguments of a launch come as an array of pointers to them.
template <class... Types, size_t... I>
void call(void (*kernel)(Types...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<Types>*>(arguments[I])...);
}
template <class... Types>
void call(void (*kernel)(Types...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<Types...>{});
}
}  // namespace emulator

#define threadIdx (Index{(unsigned)emulator::current})
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask) {
  return emulator::exchange(value, (emulator::current ^ mask) & (emulator::kLanes - 1), lanes);
}
inline void __syncthreads() { emulator::give_way(); }
inline unsigned __ballot_sync(unsigned, bool value) {
  unsigned bits = 0;
  for (int lane = 0; lane < emulator::kLanes; ++lane) bits |= (unsigned)emulator::exchange<int>(value, lane) << lane;
  return bits;
}

// Every kernel registers itself under its name.
#define EMULATED(NAME)                                                                    \
  namespace {                                                                             \
  const bool registered_##NAME =                                                          \
      (emulator::kernels()[#NAME] = [](void** a) { emulator::call(NAME, a); }, true); \
  }

extern "C" {
// A thread must have a context before it launches anything.
inline thread_local void* emulator_context = nullptr;
void emulator_make_context() { emulator_context = &emulator_context; }
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int index) {
  *device = index;
  return index < 1 ? 0 : 101;  // CUDA_ERROR_INVALID_DEVICE
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  static char primary;
  *context = &primary;
  return 0;
}
int cuCtxGetCurrent(void** context) {
  *context = emulator_context;
  return 0;
}
int cuCtxSetCurrent(void* context) {
  emulator_context = context;
  return 0;
}
int cuModuleLoadData(void** module, const void*) {
  *module = nullptr;
  return 0;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  const auto found = emulator::kernels().find(name);
  if (found == emulator::kernels().end()) return 500;  // CUDA_ERROR_NOT_FOUND
  *function = reinterpret_cast<void*>(found->second);
  return 0;
}
int cuGetErrorString(int status, const char** text) {
  *text = status == 500 ? "named symbol not found" : status == 700 ? "illegal memory access" : "invalid value";
  return 0;
}
// Blocks that a launch runs: those of its grid from `first` on and before `last`.
inline unsigned emulator_first = 0, emulator_last = ~0u;
void emulator_blocks(unsigned first, unsigned last) { emulator_first = first, emulator_last = last; }

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void*, void** arguments, void**) {
  if (grid_y != 1 || grid_z != 1 || block_x != emulator::kThreads || block_y != 1 || block_z != 1 || shared != 0) {
    return 1;  // CUDA_ERROR_INVALID_VALUE
  }
  if (emulator_context == nullptr) return 201;  // CUDA_ERROR_INVALID_CONTEXT
  emulator::body = [=] { reinterpret_cast<emulator::Kernel>(function)(arguments); };
  gridDim.x = grid_x;
  const emulator::Guard guard;
  if (sigsetjmp(emulator::failed, 1) != 0) return 700;  // CUDA_ERROR_ILLEGAL_ADDRESS
  const unsigned last = grid_x < emulator_last ? grid_x : emulator_last;
  for (blockIdx.x = emulator_first; blockIdx.x < last; ++blockIdx.x) emulator::run_block();
  return 0;
}
}
