// Dense layers and mixtures of experts for any CPU.
#include "cpu/simd/targets/generic.inl"

#include "cpu/mlp/kernels.h"

namespace adaftr_fast::generic {
#include "cpu/mlp/layers.inl"
#include "cpu/mlp/mixture.inl"

MlpKernels<float> mlp_f32() { return mlp_kernels<float>(); }
MlpKernels<double> mlp_f64() { return mlp_kernels<double>(); }
}  // namespace adaftr_fast::generic
