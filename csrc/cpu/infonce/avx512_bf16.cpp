// Adaptive InfoNCE by products of bfloat16, for AVX512-BF16.
#include "cpu/infonce/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/avx512_bf16.inl"

namespace adaftr_fast::avx512_bf16 {
#include "cpu/infonce/bf16_recomputed.inl"
#include "cpu/infonce/bf16_stored.inl"

// A block of P of so many elements, 16 MiB, may stay in L3: 256 rows x 32,768 columns on up to 4 threads. On a Zen 4,
// one and two threads, storing it takes 0.70 to 0.86 of the time of making S and P twice, from 3,072 to 32,768 columns,
// and 1.9 times as long at 65,536.
constexpr int64_t kMaxStoredElements = 8 << 20;

bool stores_probs(const InfoNCEProblem<float>& problem, int64_t threads) {
  return problem.columns * StoredSweep::few_rows(threads) <= kMaxStoredElements;
}

size_t bf16_workspace_bytes(const InfoNCEProblem<float>& problem, int64_t threads) {
  return (stores_probs(problem, threads) ? bytes_of<StoredSweep> : bytes_of<RecomputedSweep<1>>)(problem, threads);
}

void run_infonce_bf16(const InfoNCEProblem<float>& problem, void* workspace, int64_t threads) {
  (stores_probs(problem, threads) ? run_sweep<StoredSweep> : run_sweep<RecomputedSweep<1>>)(problem, workspace,
                                                                                            threads);
}

constinit const InfoNCEKernels kInfoNCE = {.bf16 = {bf16_workspace_bytes, run_infonce_bf16}};
}  // namespace adaftr_fast::avx512_bf16

#include "cpu/simd/targets/end.inl"
#endif
