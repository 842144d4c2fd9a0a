// Adaptive InfoNCE by products of bfloat16, for NEON with bfloat16.
#include "cpu/infonce/kernels.h"

#if defined(__aarch64__)
#include "cpu/simd/targets/neon_bf16.inl"

namespace adaftr_fast::neon_bf16 {
#include "cpu/infonce/bf16_pairs.inl"

constinit const InfoNCEKernels kInfoNCE = {.bf16 = kernel_of<PairSweep>()};
}  // namespace adaftr_fast::neon_bf16

#include "cpu/simd/targets/end.inl"
#endif
