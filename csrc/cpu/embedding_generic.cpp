#include "cpu/embedding.h"
#include "cpu/embedding_kernels.inl"

namespace adaftr_fast {
const EmbeddingKernels kEmbeddingGeneric = kKernels;
}
