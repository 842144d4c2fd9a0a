// Dense layers and mixtures of experts for NEON.
#include "cpu/mlp/kernels.h"

#if defined(__aarch64__)
#include "cpu/simd/targets/neon.inl"

namespace adaftr_fast::neon {
#include "cpu/mlp/layers.inl"
#include "cpu/mlp/mixture.inl"

constinit const MlpKernels kMlp = {.f32 = mlp_kernel<float>(), .f64 = mlp_kernel<double>()};
}  // namespace adaftr_fast::neon
#endif
