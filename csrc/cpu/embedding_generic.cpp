#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/embedding_dispatch.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-math-errno")  // else every sqrt has a branch and its loop stays scalar
#endif

#include "cpu/embedding_bodies.inl"

namespace adaftr_fast {
const EmbeddingKernels kEmbeddingGeneric = kKernels;
}
