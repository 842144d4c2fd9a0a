// Compiles what follows, up to end.inl, for NEON with products of bfloat16 pairs (FEAT_BF16); see avx2.inl.
#include <arm_neon.h>

#define VECTOR_BYTES 16
#define TILE_ROWS 12
#define BF16_INSTRUCTIONS

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC target("+bf16")
#endif
