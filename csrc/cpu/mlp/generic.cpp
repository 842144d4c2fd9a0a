// Dense layers and mixtures of experts for any CPU.
#include "cpu/simd/targets/generic.inl"

#include "cpu/mlp/kernels.h"

namespace adaftr_fast::generic {
#include "cpu/mlp/layers.inl"
#include "cpu/mlp/mixture.inl"

constinit const MlpKernels kMlp = {.f32 = mlp_kernel<float>(), .f64 = mlp_kernel<double>()};
}  // namespace adaftr_fast::generic
