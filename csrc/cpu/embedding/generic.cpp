// The embedding's kernels for any CPU.
#include "cpu/simd/targets/generic.inl"

#include "cpu/embedding/kernels.h"

namespace adaftr_fast {
namespace generic {
namespace {
#include "cpu/embedding/kernels.inl"
}  // namespace
}  // namespace generic

const EmbeddingKernels kEmbeddingGeneric = generic::kKernels;
}  // namespace adaftr_fast
