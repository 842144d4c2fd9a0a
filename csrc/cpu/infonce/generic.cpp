// Adaptive InfoNCE for any CPU.
#include "cpu/simd/targets/generic.inl"

#include "cpu/infonce/kernels.h"

namespace adaftr_fast::generic {
#include "cpu/infonce/kernels.inl"
}  // namespace adaftr_fast::generic
