// Compiled by tests/cuda/test_embedding.py to see that the kernels build for a GPU; never run.
#include "cuda/embedding/kernels.cuh"

namespace adaftr_fast::cuda {
template __global__ void each(Lookup<float, int32_t, 4, false>, int64_t);
template __global__ void each(Lookup<float, int64_t, 4, false>, int64_t);
template __global__ void each(Lookup<float, int64_t, 1, false>, int64_t);
template __global__ void each(Lookup<float, int64_t, 4, true>, int64_t);
template __global__ void each(Merge<float, 4>, int64_t);
template __global__ void each(Merge<float, 1>, int64_t);
template __global__ void each(Sgd<float>, int64_t);
template __global__ void each(Adagrad<float>, int64_t);
template __global__ void each(RowwiseAdagrad<float>, int64_t);
template __global__ void each(LazyAdam<float>, int64_t);
template __global__ void each(Adam<float>, int64_t);
template __global__ void each(Stamp, int64_t);
}  // namespace adaftr_fast::cuda
