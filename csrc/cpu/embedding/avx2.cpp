// The embedding's kernels for AVX2, which AVX-512 machines run as well: a row of 8 float32 is one vector of AVX2.
#include "cpu/embedding/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/avx2.inl"

namespace adaftr_fast::avx2 {
namespace {
#include "cpu/embedding/kernels.inl"
}  // namespace

constinit const EmbeddingKernels kEmbedding = kKernels;
}  // namespace adaftr_fast::avx2

#include "cpu/simd/targets/end.inl"
#endif
