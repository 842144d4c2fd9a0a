// Adaptive InfoNCE for AVX-512.
#include "cpu/infonce/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/avx512.inl"

namespace adaftr_fast::avx512 {
#include "cpu/infonce/kernels.inl"
}  // namespace adaftr_fast::avx512

#include "cpu/simd/targets/end.inl"
#endif
