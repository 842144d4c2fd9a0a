// Dense layers and mixtures for generic.
#include "cpu/mlp/kernels.h"

#define VECTOR_BYTES 16
#define TILE_ROWS 6

namespace adaftr_fast::generic {
#include "cpu/mlp/layers.inl"
// After the above.
#include "cpu/mlp/mixture.inl"

MlpKernels<float> mlp_f32() { return mlp_kernels<float>(); }
MlpKernels<double> mlp_f64() { return mlp_kernels<double>(); }
}  // namespace adaftr_fast::generic
