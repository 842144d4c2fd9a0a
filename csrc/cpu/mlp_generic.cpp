// Dense layers and mixtures for generic.
#include "cpu/mlp.h"

#define VECTOR_BYTES 16
#define TILE_ROWS 6

namespace adaftr_fast::generic {
#include "cpu/mlp.inl"
// After the above.
#include "cpu/mixture.inl"
}  // namespace adaftr_fast::generic
