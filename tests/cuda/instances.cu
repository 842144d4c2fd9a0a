// Compiled by test_compile.py to see that the kernels build for a GPU and spill no registers; never run.
#include <c10/util/BFloat16.h>

#include "cuda/embedding/lookup.cuh"
#include "cuda/embedding/update.cuh"

namespace adaftr_fast::cuda {

#define MERGE(Rule, W, pack)                                             \
  template __global__ void each(MergePieces<Rule<W>, W, pack>, int64_t); \
  template __global__ void each(MergeTiles<Rule<W>, W, pack>, int64_t);
#define TABLE(W, pack)                                                       \
  MERGE(Store, W, pack)                                                      \
  MERGE(Sgd, W, pack)                                                        \
  MERGE(Adagrad, W, pack)                                                    \
  MERGE(RowwiseAdagrad, W, pack)                                             \
  MERGE(LazyAdam, W, pack)                                                   \
  MERGE(AdamStep, W, pack)                                                   \
  template __global__ void each(AdamFlush<W, pack>, int64_t);                \
  template __global__ void each(DeferredLookup<W, int32_t, pack>, int64_t);  \
  template __global__ void each(PoolBags<W, int32_t, pack, false>, int64_t); \
  template __global__ void each(PoolBags<W, int64_t, pack, true>, int64_t);  \
  template __global__ void each(BagTerms<W, int32_t, pack>, int64_t);

TABLE(float, 4)
TABLE(float, 1)
TABLE(double, 2)
TABLE(c10::BFloat16, 8)

template __global__ void each(Lookup<Pack<uint32_t, 4>, int32_t>, int64_t);
template __global__ void each(Lookup<uint32_t, int64_t>, int64_t);
template __global__ void each(Rows<int32_t>, int64_t);
template __global__ void each(SelectedLengths<int32_t>, int64_t);
template __global__ void each(SelectedPositions<int32_t>, int64_t);
template __global__ void each(AdamRecord<float>, int64_t);
template __global__ void each(AdamExtend<float>, int64_t);
template __global__ void each(AdamRebase<float>, int64_t);

}  // namespace adaftr_fast::cuda
