// Runs CUDA kernels on the CPU, for tests on machines without a GPU: g++ -x c++ -DSRTOD_EMULATION. Never shipped.
//
// A CUDA thread is a fiber; they switch at barriers and warp shuffles only, in an order that changes from launch to
// launch, so that a missing barrier shows up as a wrong result. Shared memory is allocated anew for every block, filled
// with NaN, each array on its own: AddressSanitizer sees every access outside. Blocks run one after another in a
// shuffled order, or all at once in a cooperative launch, on a GPU of six blocks. Not modelled: races within a barrier
// interval, memory models, bank conflicts, speed.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

namespace emulation {

constexpr unsigned kResidentBlocks = 6;  // what fits the GPU at once
constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kMaxThreads = 1024;

// Threads that wait for one another: a grid, a block or a warp. Those that have returned are not waited for.
struct Barrier {
  int live = 0, waiting = 0;
  uint64_t generation = 0;

  void release_if_complete() {
    if (live > 0 && waiting == live) {
      waiting = 0;
      ++generation;
    }
  }
};

struct Warp {
  Barrier barrier;
  uint64_t exchange[2][32] = {};  // for shuffles; two, so that one barrier is enough
};

struct Block {
  dim3 index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::map<const void*, std::unique_ptr<char[]>> shared;  // by the address of a mark at their declaration
  std::unique_ptr<char[]> dynamic_shared;
};

// Where a fiber, or the scheduler, goes on. Not ucontext's swapcontext, which costs two system calls a switch.
struct Resumption {
  void* registers[5];
};

struct Fiber {
  Resumption resumption;
  std::unique_ptr<char[]> stack;  // null: not started yet
  Block* block;
  dim3 thread;
  unsigned lane, warp;
  bool done;
  const Barrier* waits_at;  // null: can run
  uint64_t generation;

  bool can_run() const { return !done && (!waits_at || waits_at->generation != generation); }
};

struct Machine {
  dim3 grid, block;
  size_t shared_bytes = 0;
  Barrier of_grid;
  std::deque<Fiber> fibers;  // kept from launch to launch
  Fiber* current = nullptr;
  Resumption scheduler;
  const std::function<void()>* kernel = nullptr;
  uint64_t launches = 0;
  std::mutex busy;  // one launch at a time
};

inline Machine the_machine;
inline Machine& machine() { return the_machine; }

// AddressSanitizer would take the jump for the end of a stack, and clean up with a system call.
[[gnu::noinline, gnu::no_sanitize_address]] inline void resume(Resumption& there) {
  __builtin_longjmp(there.registers, 1);
}

[[gnu::noinline, gnu::no_sanitize_address]] inline void switch_context(Resumption& here, Resumption& there) {
  if (__builtin_setjmp(here.registers) == 0) resume(there);
}

// What a fiber does: one CUDA thread after another.
inline void run_threads() {
  for (;;) {
    Machine& m = machine();
    (*m.kernel)();
    Fiber& fiber = *m.current;
    fiber.done = true;
    for (Barrier* barrier : {&m.of_grid, &fiber.block->barrier, &fiber.block->warps[fiber.warp].barrier}) {
      --barrier->live;
      barrier->release_if_complete();
    }
    switch_context(fiber.resumption, m.scheduler);
  }
}

[[gnu::noinline, gnu::no_sanitize_address]] inline void start(Fiber& fiber, Resumption& here) {
  if (__builtin_setjmp(here.registers) != 0) return;
  ucontext_t context;
  getcontext(&context);
  fiber.stack.reset(new char[kStackBytes]);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  makecontext(&context, run_threads, 0);
  setcontext(&context);
}

// Runs a fiber until it waits or is done.
inline void run(Fiber& fiber) {
  Machine& m = machine();
  m.current = &fiber;
  fiber.waits_at = nullptr;
  if (fiber.stack)
    switch_context(m.scheduler, fiber.resumption);
  else
    start(fiber, m.scheduler);
}

inline void wait(Barrier& barrier) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  fiber.waits_at = &barrier;
  fiber.generation = barrier.generation;
  ++barrier.waiting;
  barrier.release_if_complete();
  if (!fiber.can_run()) switch_context(fiber.resumption, m.scheduler);
}

template <class T>
T shuffle(T value, unsigned source_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  const Fiber& me = *machine().current;
  Warp& warp = me.block->warps[me.warp];
  auto& exchange = warp.exchange[warp.barrier.generation % 2];
  std::memcpy(&exchange[me.lane], &value, sizeof(T));
  wait(warp.barrier);
  std::memcpy(&value, &exchange[source_lane], sizeof(T));
  return value;
}

inline std::unique_ptr<char[]> garbage(size_t bytes) {
  std::unique_ptr<char[]> memory(new char[bytes]);
  std::memset(memory.get(), 0xff, bytes);
  return memory;
}

// The shared array that is declared at `mark`, of the running block.
template <class T>
T& shared(const void* mark) {
  std::unique_ptr<char[]>& memory = machine().current->block->shared[mark];
  if (!memory) memory = garbage(sizeof(T));
  return *reinterpret_cast<T*>(memory.get());
}

inline Block make_block(uint64_t index) {
  const Machine& m = machine();
  const unsigned threads = m.block.x * m.block.y * m.block.z;
  Block block;
  block.index = {static_cast<unsigned>(index % m.grid.x), static_cast<unsigned>(index / m.grid.x % m.grid.y),
                 static_cast<unsigned>(index / m.grid.x / m.grid.y)};
  block.barrier.live = static_cast<int>(threads);
  block.warps.resize((threads + 31) / 32);
  block.dynamic_shared = garbage(m.shared_bytes);
  return block;
}

// Runs these blocks at once.
inline void run(std::vector<Block>& blocks) {
  Machine& m = machine();
  const unsigned threads = m.block.x * m.block.y * m.block.z;
  const size_t count = blocks.size() * threads;
  while (m.fibers.size() < count) m.fibers.emplace_back();
  m.of_grid = {static_cast<int>(count), 0, 0};
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = m.fibers[i];
    const unsigned t = static_cast<unsigned>(i % threads);
    fiber.block = &blocks[i / threads];
    fiber.thread = {t % m.block.x, t / m.block.x % m.block.y, t / (m.block.x * m.block.y)};
    fiber.lane = t % 32;
    fiber.warp = t / 32;
    fiber.done = false;
    fiber.waits_at = nullptr;
    ++fiber.block->warps[fiber.warp].barrier.live;
  }
  const bool backward = m.launches % 2;
  while (m.of_grid.live > 0) {
    bool ran = false;
    for (size_t i = 0; i < count; ++i) {
      Fiber& fiber = m.fibers[backward ? count - 1 - i : i];
      if (!fiber.can_run()) continue;
      ran = true;
      run(fiber);
    }
    if (!ran) {
      m.fibers.clear();  // they are in the middle of a kernel
      throw std::runtime_error("emulation: threads wait at different barriers; a GPU would hang");
    }
  }
}

template <class Kernel, class... Arguments>
void launch(bool cooperative, Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, Arguments... arguments) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.busy);
  const unsigned threads = block.x * block.y * block.z;
  if (threads > kMaxThreads || threads == 0 || grid.x == 0 || grid.x > 2147483647u || grid.y == 0 || grid.y > 65535 ||
      grid.z == 0 || grid.z > 65535)
    throw std::runtime_error("emulation: a GPU would refuse this launch configuration");
  m.grid = grid;
  m.block = block;
  m.shared_bytes = shared_bytes;
  ++m.launches;
  const std::function<void()> body = [&] { kernel(arguments...); };
  m.kernel = &body;
  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<Block> blocks;
  if (cooperative) {
    if (count > kResidentBlocks) throw std::runtime_error("emulation: too many blocks for a cooperative launch");
    for (uint64_t b = 0; b < count; ++b) blocks.push_back(make_block(b));
    return run(blocks);
  }
  uint64_t stride = count / 2 + m.launches % 7;  // visits every block once, far from in order
  while (std::gcd(stride, count) != 1) ++stride;
  for (uint64_t k = 0, b = m.launches % count; k < count; ++k, b = (b + stride) % count) {
    blocks.clear();
    blocks.push_back(make_block(b));
    run(blocks);
  }
}

}  // namespace emulation

#define threadIdx (::emulation::machine().current->thread)
#define blockIdx (::emulation::machine().current->block->index)
#define blockDim (::emulation::machine().block)
#define gridDim (::emulation::machine().grid)

inline void __syncthreads() { emulation::wait(emulation::machine().current->block->barrier); }
inline void __threadfence() {}
template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  return emulation::shuffle(value, emulation::machine().current->lane ^ mask);
}
template <class T>
T atomicAdd(T* address, T value) {  // fibers do not interrupt each other
  const T old = *address;
  *address += value;
  return old;
}
