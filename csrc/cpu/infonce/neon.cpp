// Adaptive InfoNCE for NEON.
#include "cpu/infonce/kernels.h"

#if defined(__aarch64__)
#include "cpu/simd/targets/neon.inl"

namespace adaftr_fast::neon {
#include "cpu/infonce/kernels.inl"
}  // namespace adaftr_fast::neon
#endif
