// Adaptive InfoNCE for avx2.
#include "cpu/infonce/kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define VECTOR_BYTES 32
#define TILE_ROWS 6

namespace adaftr_fast::avx2 {
#include "cpu/infonce/fma.inl"
}  // namespace adaftr_fast::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
