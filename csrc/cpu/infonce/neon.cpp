// Adaptive InfoNCE for NEON.
#include "cpu/infonce/kernels.h"

#if defined(__aarch64__)
#include "cpu/simd/targets/neon.inl"

namespace adaftr_fast::neon {
#include "cpu/infonce/blocks/sweep.inl"
#include "cpu/infonce/fma.inl"
#include "cpu/infonce/symmetric/sweep.inl"
}  // namespace adaftr_fast::neon
#endif
