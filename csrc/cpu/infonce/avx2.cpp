// Adaptive InfoNCE for AVX2.
#include "cpu/infonce/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/avx2.inl"

namespace adaftr_fast::avx2 {
#include "cpu/infonce/kernels.inl"
}  // namespace adaftr_fast::avx2

#include "cpu/simd/targets/end.inl"
#endif
