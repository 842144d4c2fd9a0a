// Adaptive InfoNCE by products of bfloat16, for AMX.
#include "cpu/infonce/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/amx.inl"

namespace adaftr_fast::amx {
#include "cpu/infonce/bf16_recomputed.inl"

constinit const InfoNCEKernels kInfoNCE = {.bf16 = kernel_of<RecomputedSweep<1>>(),
                                           .bf16x2 = kernel_of<RecomputedSweep<2>>()};
}  // namespace adaftr_fast::amx

#include "cpu/simd/targets/end.inl"
#endif
