// What every CUDA kernel here is made of. A kernel is a function object that is called once per thread; it needs no
// synchronisation beyond a group of lanes. So it also runs in a loop on the CPU: with ADAFTR_FAST_SERIAL the files of
// csrc/cuda compile as plain C++, and the tests run the same code, from the op's checks to the last kernel, without a
// GPU.
#pragma once

#include <cstdint>

#include "cpu/embedding/types.h"

#if defined(__CUDACC__)
#define ADAFTR_FAST_HD __host__ __device__ __forceinline__
#define ADAFTR_FAST_UNROLL _Pragma("unroll")
#define ADAFTR_FAST_UNROLL_1 _Pragma("unroll 1")
#define ADAFTR_FAST_UNROLL_4 _Pragma("unroll 4")
#else
#define ADAFTR_FAST_HD inline
#define ADAFTR_FAST_UNROLL
#define ADAFTR_FAST_UNROLL_1
#define ADAFTR_FAST_UNROLL_4
#endif

namespace adaftr_fast::cuda {

// kPack neighbouring elements of a row, moved by one or two vector loads.
template <typename T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T at[kPack];
};

// Reads T elements as Pack<C>, converting each.
template <typename C, int kPack, typename T>
ADAFTR_FAST_HD Pack<C, kPack> read(const T* from) {
  const auto stored = *reinterpret_cast<const Pack<T, kPack>*>(from);
  Pack<C, kPack> x;
  ADAFTR_FAST_UNROLL
  for (int p = 0; p < kPack; ++p) x.at[p] = static_cast<C>(stored.at[p]);
  return x;
}

template <typename C, int kPack, typename T>
ADAFTR_FAST_HD void write(T* to, const Pack<C, kPack>& x) {
  Pack<T, kPack> stored;
  ADAFTR_FAST_UNROLL
  for (int p = 0; p < kPack; ++p) stored.at[p] = static_cast<T>(x.at[p]);
  *reinterpret_cast<Pack<T, kPack>*>(to) = stored;
}

// n / divisor for n < 2^31 by a multiplication and a shift (Hacker's Delight, 2nd ed., section 10-9): a division takes
// some 40 instructions, and a thread of a look-up does little else.
struct Divider {
  uint32_t divisor = 1, multiplier = 0, shift = 0;

  Divider() = default;
  explicit Divider(uint32_t by) : divisor(by) {
    while ((uint64_t{1} << shift) < by) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - by)) / by + 1);
  }

  ADAFTR_FAST_HD uint32_t quotient(uint32_t n) const {
    const auto high = static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> 32);
    return (high + n) >> shift;  // no overflow: both are below 2^31
  }
};

// A row is worked on by 2^shift neighbouring lanes of a warp, each on every 2^shift-th pack of it.
struct Lanes {
  int shift = 0;

  ADAFTR_FAST_HD int64_t unit(int64_t thread) const { return thread >> shift; }
  ADAFTR_FAST_HD int first(int64_t thread) const { return static_cast<int>(thread & ((1 << shift) - 1)); }
  ADAFTR_FAST_HD int count() const { return 1 << shift; }

  // The sum of x over the lanes of a row, for all of them, added in the same order in every run.
  template <typename T>
  ADAFTR_FAST_HD T sum(T x) const {
#if defined(__CUDA_ARCH__)
    for (int step = count() / 2; step > 0; step /= 2) x += __shfl_xor_sync(members(), x, step);
#endif
    return x;
  }

  // Waits until the other lanes of the row are here.
  ADAFTR_FAST_HD void wait() const {
#if defined(__CUDA_ARCH__)
    __syncwarp(members());
#endif
  }

#if defined(__CUDA_ARCH__)
  __device__ __forceinline__ unsigned members() const {
    const unsigned lane = threadIdx.x % 32, first = lane >> shift << shift;
    return (shift == 5 ? ~0u : (1u << count()) - 1) << first;
  }
#endif
};

#if defined(__CUDACC__)
// Calls body(i) for all i below `threads`, in a grid of any size of whole warps.
template <typename Body>
__global__ void each(Body body, int64_t threads) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < threads; i += stride) body(i);
}
#endif

}  // namespace adaftr_fast::cuda
