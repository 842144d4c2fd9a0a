// Compiles what follows, up to end.inl, for AVX2. Standard headers come before: their inline functions would else be
// compiled for AVX2 as well, and the linker could take that copy for the whole program.
#define VECTOR_BYTES 32
#define TILE_ROWS 6

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
