// Dense layers by products of bfloat16, and mixtures, for AVX512-BF16.
#include "cpu/mlp/kernels.h"

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
#define BF16_PRODUCTS

namespace adaftr_fast::avx512_bf16 {
#include "cpu/mlp/layers.inl"
// After the above.
#include "cpu/mlp/mixture.inl"
// After the above.
#include "cpu/mlp/bf16_pairs.inl"

MlpKernels<float> mlp_bf16() { return mlp_kernels<float, Pair>(); }
}  // namespace adaftr_fast::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
