// The host side of a kernel: launches, reports of bad input, and the sort.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <initializer_list>

#include "cuda/runtime/kernel.cuh"
#include "cuda/runtime/report.cuh"

#if defined(ADAFTR_FAST_SERIAL)
#define ADAFTR_FAST_DEVICE_OPS(m) TORCH_LIBRARY_IMPL(adaftr_fast_serial, CPU, m)
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define ADAFTR_FAST_DEVICE_OPS(m) TORCH_LIBRARY_IMPL(adaftr_fast, CUDA, m)
#endif

namespace adaftr_fast::cuda {

// Where the kernels of a device report, made at its first use.
Report report_of(const at::Device& device);

// Raises what kernels that have ended reported since the last call; reads host memory only.
void raise_reported(const at::Device& device);

// Rows in ascending order and where each stood, in the memory of one tensor, which needs no views.
struct SortedRows {
  at::Tensor memory;  // int32 [4, M]: what is sorted, and then the result

  const int32_t* rows() const { return memory.const_data_ptr<int32_t>() + 2 * memory.size(1); }
  const int32_t* order() const { return rows() + memory.size(1); }
};

// Sorts rows [M] stably. Rows outside 0 to num_rows - 1 become num_rows.
SortedRows sort_rows(const char* op, const at::Tensor& rows, int64_t num_rows);

#if defined(ADAFTR_FAST_SERIAL)
// What the tests look at and set, and benchmarks/infonce/host.py, which times the host alone.
inline int64_t launches = 0;
inline int lane_shift = 0;
inline bool skips_kernels = false;

struct DeviceGuard {
  explicit DeviceGuard(const at::Device&) {}
};

template <typename Body>
void launch(const Body& body, int64_t threads) {
  ++launches;
  if (skips_kernels) return;
  // With several lanes the first of a row comes last, as after Lanes::wait.
  for (int64_t i = 0; i < threads; ++i) body(lane_shift == 0 ? i : threads - 1 - i);
}

inline Lanes lanes_for(int64_t) { return {lane_shift}; }
#else
using DeviceGuard = c10::cuda::CUDAGuard;

template <typename Body>
void launch(const Body& body, int64_t threads) {
  constexpr int64_t kBlock = 256, kMostBlocks = int64_t{1} << 20;  // each() strides over what is beyond
  if (threads == 0) return;
  const auto blocks = static_cast<unsigned>(std::min((threads + kBlock - 1) / kBlock, kMostBlocks));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  each<<<blocks, kBlock, 0, stream>>>(body, threads);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// As many lanes as a row has packs, rounded up to a power of two; at most a warp.
inline Lanes lanes_for(int64_t packs) {
  Lanes lanes;
  while (lanes.shift < 5 && lanes.count() < packs) ++lanes.shift;
  return lanes;
}
#endif

// Whether rows of `width` elements can be read in packs of kPack: tensors begin at multiples of a pack.
template <int kPack>
bool fits_packs(int64_t width, std::initializer_list<at::Tensor> tensors) {
  if (width % kPack != 0) return false;
  for (const at::Tensor& tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (kPack * tensor.element_size()) != 0) return false;
  }
  return true;
}

}  // namespace adaftr_fast::cuda
