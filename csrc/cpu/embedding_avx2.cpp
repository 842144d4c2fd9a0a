#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/embedding_dispatch.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-math-errno")  // else every sqrt has a branch and its loop stays scalar
#endif

#include "cpu/embedding_bodies.inl"

namespace adaftr_fast {
const EmbeddingKernels kEmbeddingAvx2 = kKernels;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
