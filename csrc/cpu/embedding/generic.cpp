#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/embedding/kernels.h"
// After the above.
#include "cpu/embedding/kernels.inl"

namespace adaftr_fast {
const EmbeddingKernels kEmbeddingGeneric = kKernels;
}
