// Adaptive InfoNCE for avx512.
#include "cpu/infonce/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif

#define VECTOR_BYTES 64
#define TILE_ROWS 14

namespace adaftr_fast::avx512 {
#include "cpu/infonce/fma.inl"
}  // namespace adaftr_fast::avx512

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
