// The embedding's kernels for AVX2, which AVX-512 machines run as well: a row of 8 float32 is one vector of AVX2.
#include "cpu/embedding/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/targets/avx2.inl"

namespace adaftr_fast {
namespace avx2 {
namespace {
#include "cpu/embedding/kernels.inl"
}  // namespace
}  // namespace avx2

const EmbeddingKernels kEmbeddingAvx2 = avx2::kKernels;
}  // namespace adaftr_fast

#include "cpu/simd/targets/end.inl"
#endif
