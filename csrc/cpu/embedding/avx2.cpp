#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/embedding/kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
#define ADAFTR_FAST_AVX2  // gcc 12 expands macros before it sees the pragma, so __AVX2__ is not defined here

#include "cpu/embedding/kernels.inl"

namespace adaftr_fast {
const EmbeddingKernels kEmbeddingAvx2 = kKernels;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
