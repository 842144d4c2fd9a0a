// Adaptive InfoNCE for AVX512-BF16.
#include "cpu/infonce/kernels.h"

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
#include "cpu/simd/bf16_tiles_avx512.inl"
// After the above.
#include "cpu/infonce/bf16.inl"
// After the above.
#include "cpu/infonce/bf16_recomputed.inl"
#include "cpu/infonce/bf16_stored.inl"

// With more columns than this E comes from far away, and making it again takes no longer.
constexpr int64_t kMostKeptColumns = 2048;

size_t bf16_workspace_bytes(const InfoNCEProblem<float>& problem, int64_t threads) {
  const bool keeps = problem.columns <= kMostKeptColumns;
  return (keeps ? workspace_bytes<KeptSweep> : workspace_bytes<RemadeSweep<1>>)(problem, threads);
}

void run_infonce_bf16(const InfoNCEProblem<float>& problem, void* workspace, Parallel parallel) {
  const bool keeps = problem.columns <= kMostKeptColumns;
  (keeps ? run_infonce<KeptSweep> : run_infonce<RemadeSweep<1>>)(problem, workspace, parallel);
}

InfoNCEKernel<float> infonce_bf16() { return {bf16_workspace_bytes, run_infonce_bf16}; }
}  // namespace adaftr_fast::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
