// Launching kernels: streams, devices, and what differs between a GPU and its emulation on the CPU.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "../checks.h"

#ifdef SRTOD_EMULATION
#include "../emulation/cuda_emulation.h"
#define SRTOD_BACKEND CPU
#define SRTOD_LAUNCH(kernel, grid, stream, ...) \
  (static_cast<void>(stream), ::emulation::launch(false, (kernel), (grid), ::srtod::kThreads, 0, __VA_ARGS__))
#define SRTOD_LAUNCH_DEPENDENT SRTOD_LAUNCH
#define SRTOD_SHARED(type, name, ...) \
  static char name##_mark;            \
  auto& name = ::emulation::shared<type __VA_ARGS__>(&name##_mark)
#else
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define SRTOD_BACKEND CUDA
#define SRTOD_LAUNCH(kernel, grid, stream, ...)                        \
  do {                                                                 \
    (kernel)<<<(grid), ::srtod::kThreads, 0, (stream)>>>(__VA_ARGS__); \
    ::srtod::check_cuda(cudaGetLastError());                           \
  } while (false)
// Lets the launch overlap the end of the one before it; the kernel begins with `wait_for_previous_launch`.
#define SRTOD_LAUNCH_DEPENDENT(kernel, grid, stream, ...) \
  ::srtod::launch_dependent((kernel), (grid), (stream), __VA_ARGS__)
// A shared array of a block, for example SRTOD_SHARED(float, sums, [8]).
#define SRTOD_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#endif

namespace srtod {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// At least so many blocks fit a multiprocessor at once: leaves 128 registers to a thread, of which none is spilled.
constexpr int kBlocksPerMultiprocessor = 2;

// How finely sums are cut. Small in the emulation, so that the sizes of the tests reach every path.
#ifdef SRTOD_EMULATION
constexpr uint32_t kPartVectors = 4, kPartsOfGroup = 2;
#else
constexpr uint32_t kPartVectors = 8;    // 16-byte accesses of one thread in a part of a plane
constexpr uint32_t kPartsOfGroup = 32;  // parts of a sum that one block combines
#endif

// --- host -----------------------------------------------------------------------------------------------------------

#ifndef SRTOD_EMULATION
inline void check_cuda(cudaError_t error) {
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice,
                  "srtod: its CUDA kernels were not compiled for this GPU; `python -m srtod.info` lists the "
                  "architectures, TORCH_CUDA_ARCH_LIST names others when srtod is installed anew");
  STD_CUDA_CHECK(error);
}
#endif

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline dim3 grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks > 0 && blocks <= 2147483647, "srtod: a tensor is too large for one launch");
  return dim3(static_cast<unsigned>(blocks));
}

// Makes a tensor's GPU the current one; `stream` is the one that PyTorch works on.
class OnDevice {
 public:
#ifdef SRTOD_EMULATION
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  int64_t multiprocessors() const { return emulation::kResidentBlocks / kBlocksPerMultiprocessor; }
  int64_t cache_bytes() const { return 32 << 10; }
  int64_t shared_bytes() const { return 12 << 10; }
#else
  explicit OnDevice(const Tensor& t) : index_(t.get_device_index()), guard_(index_) {}
  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }
  int64_t multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  int64_t cache_bytes() const { return attribute(cudaDevAttrL2CacheSize); }
  // Shared memory of a block when kBlocksPerMultiprocessor of them share a multiprocessor.
  int64_t shared_bytes() const {
    return std::min(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                    attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / kBlocksPerMultiprocessor -
                        attribute(cudaDevAttrReservedSharedMemoryPerBlock));
  }

 private:
  int64_t attribute(cudaDeviceAttr name) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, index_));
    return value;
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// Sets all bytes, on the stream.
inline void fill_bytes(Tensor& t, int byte, [[maybe_unused]] cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>(t.numel()) * t.element_size();
  if (bytes == 0) return;
#ifdef SRTOD_EMULATION
  std::memset(t.mutable_data_ptr(), byte, bytes);
#else
  STD_CUDA_CHECK(cudaMemsetAsync(t.mutable_data_ptr(), byte, bytes, stream));
#endif
}

inline void set_zero(Tensor& t, cudaStream_t stream) { fill_bytes(t, 0, stream); }

// Counters by which blocks find out who comes last.
inline Tensor zero_counters(int64_t count, const Tensor& on, cudaStream_t stream) {
  Tensor counters = empty({count}, ScalarType::Int, on);
  set_zero(counters, stream);
  return counters;
}

#ifndef SRTOD_EMULATION
template <class... Parameters, class... Arguments>
void launch_dependent(void (*kernel)(Parameters...), dim3 grid, cudaStream_t stream, Arguments... arguments) {
  cudaFuncAttributes code{};
  check_cuda(cudaFuncGetAttributes(&code, kernel));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = code.ptxVersion >= 90 ? 1 : 0;  // else `wait_for_previous_launch` would not wait
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}
#endif

// Dynamic shared memory that a block of this kernel can have when kBlocksPerMultiprocessor of them share a
// multiprocessor.
template <class... Parameters>
int64_t dynamic_shared_bytes([[maybe_unused]] void (*kernel)(Parameters...), const OnDevice& device) {
#ifdef SRTOD_EMULATION
  return device.shared_bytes();
#else
  cudaFuncAttributes code{};
  check_cuda(cudaFuncGetAttributes(&code, kernel));
  return device.shared_bytes() - static_cast<int64_t>(code.sharedSizeBytes);
#endif
}

// Launches blocks that may wait for one another (`wait_for_grid`), each with `shared_bytes` of dynamic shared memory.
// `most_shared_bytes` is a limit that belongs to the kernel and the GPU, whatever is launched: threads of the host
// share it. Returns false, with nothing launched, where the GPU cannot hold all blocks at once.
template <class... Parameters, class... Arguments>
bool launch_cooperative(void (*kernel)(Parameters...), dim3 grid, int64_t shared_bytes,
                        [[maybe_unused]] int64_t most_shared_bytes, cudaStream_t stream, Arguments... arguments) {
#ifdef SRTOD_EMULATION
  static_cast<void>(stream);
  emulation::launch(true, kernel, grid, kThreads, shared_bytes, static_cast<Parameters>(arguments)...);
  return true;
#else
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most_shared_bytes)));
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorNotSupported) {
    cudaGetLastError();  // forgets it
    return false;
  }
  check_cuda(error);
  return true;
#endif
}

// --- device ---------------------------------------------------------------------------------------------------------

// Until here a kernel launched by SRTOD_LAUNCH_DEPENDENT must not touch what the launch before it writes.
__device__ __forceinline__ void wait_for_previous_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// From here on the next dependent launch may bring its blocks onto the GPU.
__device__ __forceinline__ void allow_next_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// A barrier of all blocks of a cooperative launch; what they wrote before it can be read after it.
__device__ __forceinline__ void wait_for_grid() {
#ifdef SRTOD_EMULATION
  emulation::wait(emulation::machine().of_grid);
#elif defined(__CUDA_ARCH__)
  cooperative_groups::this_grid().sync();
#endif
}

__device__ __forceinline__ char* dynamic_shared_memory() {
#ifdef SRTOD_EMULATION
  return emulation::machine().current->block->dynamic_shared.get();
#else
  extern __shared__ __align__(16) char memory[];
  return memory;
#endif
}

}  // namespace srtod
