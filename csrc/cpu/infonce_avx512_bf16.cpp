// Adaptive InfoNCE for AVX512-BF16.
#include "cpu/infonce.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#endif

#define VECTOR_BYTES 64
#define TILE_ROWS 14

namespace adaftr_fast::avx512_bf16 {
#include "cpu/dpbf16_product.inl"
#include "cpu/infonce_bf16_kept.inl"

InfoNCEKernel<float> infonce_bf16() { return {workspace_bytes<KeptSweep>, run_infonce<KeptSweep>}; }
}  // namespace adaftr_fast::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
