#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/embedding_dispatch.h"
// After the above.
#include "cpu/embedding_bodies.inl"

namespace adaftr_fast {
const EmbeddingKernels kEmbeddingGeneric = kKernels;
}
