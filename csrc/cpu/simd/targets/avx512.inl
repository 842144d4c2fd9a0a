// Compiles what follows, up to end.inl, for AVX-512; see avx2.inl.
#include <immintrin.h>

#define VECTOR_BYTES 64
#define TILE_ROWS 14

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif
