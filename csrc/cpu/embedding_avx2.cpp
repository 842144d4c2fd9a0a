#include "cpu/embedding.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif

#include "cpu/embedding_kernels.inl"

namespace adaftr_fast {
const EmbeddingKernels kEmbeddingAvx2 = kKernels;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
