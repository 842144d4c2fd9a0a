// Dense layers and mixtures for avx2.
#include "cpu/mlp/kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define VECTOR_BYTES 32
#define TILE_ROWS 6

namespace adaftr_fast::avx2 {
#include "cpu/mlp/layers.inl"
// After the above.
#include "cpu/mlp/mixture.inl"

MlpKernels<float> mlp_f32() { return mlp_kernels<float>(); }
MlpKernels<double> mlp_f64() { return mlp_kernels<double>(); }
}  // namespace adaftr_fast::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
