// What cuda/launch.cuh needs, for the emulation on the CPU: the interface of cuda/device.cuh.
#pragma once
#include <cstdint>
#include <cstring>

#include "../cuda/block.cuh"
#include "../tensors.h"
#include "cuda_emulation.h"

#define SRTOD_BACKEND CPU
#define SRTOD_LAUNCH(kernel, grid, stream, ...) \
  (static_cast<void>(stream), ::emulation::launch(false, (kernel), (grid), ::srtod::kThreads, 0, __VA_ARGS__))
#define SRTOD_LAUNCH_DEPENDENT SRTOD_LAUNCH
#define SRTOD_SHARED(type, name, ...) \
  static char name##_mark;            \
  auto& name = ::emulation::shared<type __VA_ARGS__>(&name##_mark)

namespace srtod {

constexpr uint32_t kPartVectors = 4, kPartsOfGroup = 2;  // small, so that the sizes of the tests reach every path

class OnDevice {
 public:
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  int64_t multiprocessors() const { return emulation::kResidentBlocks / kBlocksPerMultiprocessor; }
  int64_t cache_bytes() const { return 32 << 10; }
  int64_t shared_bytes() const { return 12 << 10; }
};

inline void fill_bytes(Tensor& t, int byte, cudaStream_t) {
  const size_t bytes = static_cast<size_t>(t.numel()) * t.element_size();
  if (bytes > 0) std::memset(t.mutable_data_ptr(), byte, bytes);
}

template <class... Parameters>
int64_t dynamic_shared_bytes(void (*)(Parameters...), const OnDevice& device) {
  return device.shared_bytes();
}

template <class... Parameters, class... Arguments>
bool launch_cooperative(void (*kernel)(Parameters...), dim3 grid, int64_t shared_bytes, int64_t, cudaStream_t,
                        Arguments... arguments) {
  emulation::launch(true, kernel, grid, kThreads, shared_bytes, static_cast<Parameters>(arguments)...);
  return true;
}

inline void wait_for_previous_launch() {}
inline void allow_next_launch() {}
inline void wait_for_grid() { emulation::wait(emulation::machine().of_grid); }
inline char* dynamic_shared_memory() { return emulation::machine().current->block->dynamic_shared.get(); }

}  // namespace srtod
