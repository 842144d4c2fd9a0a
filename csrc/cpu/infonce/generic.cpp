// Adaptive InfoNCE for generic.
#include "cpu/infonce/kernels.h"

#define VECTOR_BYTES 16
#define TILE_ROWS 6

namespace adaftr_fast::generic {
#include "cpu/infonce/fma.inl"
}  // namespace adaftr_fast::generic
