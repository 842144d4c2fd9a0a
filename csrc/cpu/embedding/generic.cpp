// The embedding's kernels for any CPU.
#include "cpu/simd/targets/generic.inl"

#include "cpu/embedding/kernels.h"

namespace adaftr_fast::generic {
namespace {
#include "cpu/embedding/kernels.inl"
}  // namespace

constinit const EmbeddingKernels kEmbedding = kKernels;
}  // namespace adaftr_fast::generic
