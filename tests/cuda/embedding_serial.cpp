// The bodies of the CUDA kernels, run by a loop on the CPU, behind C functions for ctypes.
#include "cuda/embedding/kernels.cuh"

using namespace adaftr_fast::cuda;

extern "C" {

unsigned long long lookup(const float* weight, const int64_t* ids, const int64_t* field_offsets, float* out,
                          int64_t count, int64_t fields, int64_t width) {
  unsigned long long bad = ~0ULL;
  if (width % 4 == 0) {
    each(Lookup<float, int64_t, 4, false>{weight, ids, field_offsets, out, fields, width, &bad, {}}, count * width / 4);
  } else {
    each(Lookup<float, int64_t, 1, false>{weight, ids, field_offsets, out, fields, width, &bad, {}}, count * width);
  }
  return bad;
}

void merge(const float* grad, const int64_t* order, const int64_t* begin, float* sums, int64_t unique, int64_t width) {
  if (width % 4 == 0) {
    each(Merge<float, 4>{grad, order, begin, sums, width}, unique * width / 4);
  } else {
    each(Merge<float, 1>{grad, order, begin, sums, width}, unique * width);
  }
}

void update(int which, float* weight, float* state, const int64_t* rows, const float* grad, int64_t unique,
            int64_t width, float lr, float weight_decay, float epsilon, float take1, float take2) {
  const Update<float> by{weight, state, rows, grad, width, lr, weight_decay, epsilon, take1, take2};
  if (which == 0) each(Sgd<float>{by}, unique * width);
  if (which == 1) each(Adagrad<float>{by}, unique * width);
  if (which == 2) each(RowwiseAdagrad<float>{by}, unique);
  if (which == 3) each(LazyAdam<float>{by}, unique * width);
}

struct AdamArguments {
  float *weight, *moments;
  int32_t* current;
  const float* series;
  int64_t width, now, base, horizon;
  float take1, keep1, keep2, epsilon;
};

static AdamState<float> state_of(const AdamArguments& a) {
  return {a.moments, a.current, reinterpret_cast<const SeriesRow<float>*>(a.series),
          a.now,     a.base,    a.horizon,
          a.take1,   a.keep1,   a.keep2,
          a.epsilon};
}

void deferred_lookup(const AdamArguments* a, const int64_t* ids, const int64_t* field_offsets, float* out,
                     int64_t count, int64_t fields) {
  unsigned long long bad = ~0ULL;
  each(Lookup<float, int64_t, 4, true>{a->weight, ids, field_offsets, out, fields, a->width, &bad, state_of(*a)},
       count * a->width / 4);
}

void adam(const AdamArguments* a, const int64_t* rows, const float* grad, int64_t unique, float lr, float inverse_bias2,
          float take2) {
  const Update<float> by{a->weight, a->moments, rows, grad, a->width, lr, 0, a->epsilon, a->take1, take2};
  each(Adam<float>{by, state_of(*a), inverse_bias2}, unique * a->width);
  each(Stamp{a->current, rows, static_cast<int32_t>(a->now + 1)}, unique);
}
}
