// Adaptive InfoNCE for AMX.
#include "cpu/infonce/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#endif

#define VECTOR_BYTES 64
#define TILE_ROWS 14

namespace adaftr_fast::amx {
#include "cpu/simd/bf16_tiles_amx.inl"
// After the above.
#include "cpu/infonce/bf16.inl"
// After the above.
#include "cpu/infonce/bf16_recomputed.inl"

InfoNCEKernel<float> infonce_bf16() { return {workspace_bytes<RemadeSweep<1>>, run_infonce<RemadeSweep<1>>}; }
InfoNCEKernel<float> infonce_bf16x2() { return {workspace_bytes<RemadeSweep<2>>, run_infonce<RemadeSweep<2>>}; }
}  // namespace adaftr_fast::amx

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
