// Dense layers and mixtures of experts for AVX-512.
#include "cpu/mlp/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/avx512.inl"

namespace adaftr_fast::avx512 {
#include "cpu/mlp/layers.inl"
#include "cpu/mlp/mixture.inl"

MlpKernels<float> mlp_f32() { return mlp_kernels<float>(); }
MlpKernels<double> mlp_f64() { return mlp_kernels<double>(); }
}  // namespace adaftr_fast::avx512

#include "cpu/simd/targets/end.inl"
#endif
