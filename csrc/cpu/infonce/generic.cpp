// Adaptive InfoNCE for any CPU.
#include "cpu/simd/targets/generic.inl"

#include "cpu/infonce/kernels.h"

namespace adaftr_fast::generic {
#include "cpu/infonce/blocks/sweep.inl"
#include "cpu/infonce/fma.inl"
#include "cpu/infonce/symmetric/sweep.inl"
}  // namespace adaftr_fast::generic
