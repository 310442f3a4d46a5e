// What launch.cuh needs of a GPU. csrc/emulation/device.h has the same interface for the CPU.
#pragma once
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>

#include "../tensors.h"
#include "block.cuh"

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

namespace srtod {

// How finely sums are cut.
constexpr uint32_t kPartVectors = 8;    // 16-byte accesses of one thread in a part of a plane
constexpr uint32_t kPartsOfGroup = 32;  // parts of a sum that one block combines

// --- host -----------------------------------------------------------------------------------------------------------

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it: else PyTorch's next launch would report it
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice,
                  "srtod: its CUDA kernels were not compiled for this GPU; `python -m srtod.info` lists the "
                  "architectures, TORCH_CUDA_ARCH_LIST names others when srtod is installed anew");
  STD_TORCH_CHECK(
      error != cudaErrorUnsupportedPtxVersion,
      "srtod: the GPU's driver is older than the CUDA toolkit that compiled srtod, and cannot translate its "
      "PTX; update the driver, or install srtod anew with the GPU's own architecture in "
      "TORCH_CUDA_ARCH_LIST");
  STD_CUDA_CHECK(error);
}

// Makes a tensor's GPU the current one; `stream` is the one that PyTorch works on.
class OnDevice {
 public:
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
    check_cuda(cudaDeviceGetAttribute(&value, name, index_));
    return value;
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// Sets all bytes, on the stream.
inline void fill_bytes(Tensor& t, int byte, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>(t.numel()) * t.element_size();
  if (bytes > 0) check_cuda(cudaMemsetAsync(t.mutable_data_ptr(), byte, bytes, stream));
}

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

// Dynamic shared memory that a block of this kernel can have when kBlocksPerMultiprocessor of them share a
// multiprocessor.
template <class... Parameters>
int64_t dynamic_shared_bytes(void (*kernel)(Parameters...), const OnDevice& device) {
  cudaFuncAttributes code{};
  check_cuda(cudaFuncGetAttributes(&code, kernel));
  return device.shared_bytes() - static_cast<int64_t>(code.sharedSizeBytes);
}

// Launches blocks that may wait for one another (`wait_for_grid`), each with `shared_bytes` of dynamic shared memory.
// `most_shared_bytes` is a limit that belongs to the kernel and the GPU, whatever is launched: threads of the host
// share it. Returns false, with nothing launched, where the GPU cannot hold all blocks at once.
template <class... Parameters, class... Arguments>
bool launch_cooperative(void (*kernel)(Parameters...), dim3 grid, int64_t shared_bytes, int64_t most_shared_bytes,
                        cudaStream_t stream, Arguments... arguments) {
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
__device__ __forceinline__ void wait_for_grid() { cooperative_groups::this_grid().sync(); }

__device__ __forceinline__ char* dynamic_shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

}  // namespace srtod
