#include "cpu/embedding/kernels.h"

#include "cpu/runtime/capability.h"

namespace adaftr_fast {

const EmbeddingKernels& embedding_kernels() {
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx2) return kEmbeddingAvx2;
#endif
  return kEmbeddingGeneric;
}

}  // namespace adaftr_fast
