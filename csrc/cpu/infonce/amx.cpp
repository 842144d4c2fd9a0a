// Adaptive InfoNCE by products of bfloat16, for AMX.
#include "cpu/infonce/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/amx.inl"

namespace adaftr_fast::amx {
#include "cpu/infonce/bf16_recomputed.inl"

InfoNCEKernel<float> infonce_bf16() { return {workspace_bytes<RemadeSweep<1>>, run_infonce<RemadeSweep<1>>}; }
InfoNCEKernel<float> infonce_bf16x2() { return {workspace_bytes<RemadeSweep<2>>, run_infonce<RemadeSweep<2>>}; }
}  // namespace adaftr_fast::amx

#include "cpu/simd/targets/end.inl"
#endif
