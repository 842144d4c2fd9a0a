// A caching allocator: tensors of a few megabytes give their memory back to a cache when they die. malloc hands such
// blocks back to the system, and then every step pays for fresh pages: at 1024 x 100 look-ups that took as long as the
// look-ups themselves.
#pragma once

#include "cpu/runtime/tensor.h"

namespace adaftr_fast {

// As empty; large tensors take cached memory, in huge pages where the system grants them.
Tensor cached_empty(Sizes sizes, ScalarType type);

}  // namespace adaftr_fast
