// Compiles what follows, up to end.inl, for AMX, whose tiles multiply bfloat16; see avx2.inl.
#include <immintrin.h>

#define VECTOR_BYTES 64
#define TILE_ROWS 14
#define BF16_INSTRUCTIONS
#define AMX_TILES

#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#endif
