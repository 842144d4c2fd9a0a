#include "cpu/embedding/kernels.h"

#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {

namespace {

constexpr KernelTables<EmbeddingKernels> kTables = {&generic::kEmbedding,
#if defined(__x86_64__)
                                                    &avx2::kEmbedding
#endif
};

}  // namespace

const EmbeddingKernels& embedding_kernels() { return best_table(kTables); }

}  // namespace adaftr_fast
