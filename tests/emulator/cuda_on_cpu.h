// Runs CUDA C++ on the host, a block at a time, its threads as fibers that give way where a warp exchanges values: enough
// of the language for warp-per-group kernels. A driver API of four functions stands in for libcuda.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define __global__
#define __launch_bounds__(...)

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

inline void give_way() { swapcontext(&fibers[current].context, &scheduler); }
inline void entry() {
  body();
  fibers[current].done = true;
  give_way();
}
// All lanes write, then all read.
template <class T>
T exchange(T value, int source) {
  const int me = current;
  std::memcpy(&slots[me], &value, sizeof value);
  give_way();
  T out;
  std::memcpy(&out, &slots[(me & ~(kLanes - 1)) | source], sizeof out);
  give_way();
  return out;
}
inline void run_block() {
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
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value, (emulator::current ^ mask) & (emulator::kLanes - 1));
}
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
int cuGetErrorString(int, const char** text) {
  *text = "named symbol not found";
  return 0;
}
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void*, void** arguments, void**) {
  if (grid_y != 1 || grid_z != 1 || block_x != emulator::kThreads || block_y != 1 || block_z != 1 || shared != 0) {
    return 1;  // CUDA_ERROR_INVALID_VALUE
  }
  emulator::body = [=] { reinterpret_cast<emulator::Kernel>(function)(arguments); };
  gridDim.x = grid_x;
  for (blockIdx.x = 0; blockIdx.x < grid_x; ++blockIdx.x) emulator::run_block();
  return 0;
}
}
