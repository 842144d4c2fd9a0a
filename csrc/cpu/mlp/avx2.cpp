// Dense layers and mixtures of experts for AVX2.
#include "cpu/mlp/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/avx2.inl"

namespace adaftr_fast::avx2 {
#include "cpu/mlp/layers.inl"
#include "cpu/mlp/mixture.inl"

constinit const MlpKernels kMlp = {.f32 = mlp_kernel<float>(), .f64 = mlp_kernel<double>()};
}  // namespace adaftr_fast::avx2

#include "cpu/simd/targets/end.inl"
#endif
