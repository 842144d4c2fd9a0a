// Dense layers by products of bfloat16, and mixtures of experts, for AVX512-BF16.
#include "cpu/mlp/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/avx512_bf16.inl"

namespace adaftr_fast::avx512_bf16 {
#include "cpu/mlp/layers.inl"
#include "cpu/mlp/mixture.inl"
#include "cpu/simd/bf16_pairs.inl"

constinit const MlpKernels kMlp = {.bf16 = mlp_kernel<float, Pair>()};
}  // namespace adaftr_fast::avx512_bf16

#include "cpu/simd/targets/end.inl"
#endif
