// The embedding's CUDA kernels as function objects, called once per thread. They need neither torch nor
// synchronisation, so that a loop on the CPU runs them as well.
//
// B batch, F fields, E width, R rows of all fields, U distinct rows of a batch. A thread works on kPack neighbouring
// elements of a row, 16 bytes of float32: at E = 8 two threads a row, sixteen rows a warp. Widths that kPack does not
// divide take kPack = 1.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define ADAFTR_FAST_HD __host__ __device__ __forceinline__
#else
#define ADAFTR_FAST_HD inline
#endif

namespace adaftr_fast::cuda {

template <typename T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T at[kPack];
};

template <typename T, int kPack>
ADAFTR_FAST_HD Pack<T, kPack> read(const T* from) {
  return *reinterpret_cast<const Pack<T, kPack>*>(from);
}

template <typename T, int kPack>
ADAFTR_FAST_HD void write(T* to, const Pack<T, kPack>& x) {
  *reinterpret_cast<Pack<T, kPack>*>(to) = x;
}

// Keeps the smallest position of an id out of range; *bad starts as the largest number.
ADAFTR_FAST_HD void report_bad(unsigned long long* bad, int64_t position) {
  const auto at = static_cast<unsigned long long>(position);
#if defined(__CUDA_ARCH__)
  atomicMin(bad, at);
#else
  if (at < *bad) *bad = at;
#endif
}

// One record per past step; csrc/cpu/embedding/optim/adam.h has the meaning and the formulas.
template <typename T>
struct SeriesRow {
  T sum, mean, moment[3], step_size, inverse_bias2, decay;
};

template <typename T>
struct AdamState {
  const T* moments;            // [R, 2, E]
  const int32_t* current;      // [R]
  const SeriesRow<T>* series;  // from step `base` on
  int64_t now, base, horizon;
  T take1, keep1, keep2, epsilon;
};

// w of one element, brought from step `from` to now. m and v are those of step `from`.
template <typename T>
ADAFTR_FAST_HD T present_weight(const AdamState<T>& adam, int64_t from, T w, T m, T v) {
  if (from >= adam.now) return w;
  const SeriesRow<T>& s = adam.series[from - adam.base];
  const T deviation = sqrt(v);
  if (s.mean > 0) {
    const T y = 1 / (deviation * s.mean + adam.epsilon), z = deviation * y;
    return w - s.sum * m * y * (1 + z * z * (s.moment[0] - z * (s.moment[1] - z * s.moment[2])));
  }
  const int64_t to = adam.now - from < adam.horizon ? adam.now : from + adam.horizon;
  const T root2 = sqrt(adam.keep2);
  T power1 = 1, power2 = 1;
  for (int64_t k = from + 1; k <= to; ++k) {
    const SeriesRow<T>& at = adam.series[k - adam.base];
    power1 *= adam.keep1;
    power2 *= root2;
    w -= at.step_size * power1 * m / (deviation * power2 * at.inverse_bias2 + adam.epsilon);
  }
  return w;
}

// out[b, f] = weight[field_offsets[f] + ids[b, f]], read through the deferred steps of Adam where kDeferred.
// Threads: B * F * E / kPack.
template <typename T, typename Id, int kPack, bool kDeferred>
struct Lookup {
  const T* weight;
  const Id* ids;                 // [B, F]
  const int64_t* field_offsets;  // [F + 1]
  T* out;                        // [B, F * E]
  int64_t fields, width;
  unsigned long long* bad;
  AdamState<T> adam;  // used where kDeferred

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const int64_t packs = width / kPack, i = thread / packs, e = thread % packs * kPack, f = i % fields;
    const auto id = static_cast<int64_t>(ids[i]);
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(field_offsets[f + 1] - field_offsets[f])) {
      return report_bad(bad, i);
    }
    const int64_t row = field_offsets[f] + id;
    Pack<T, kPack> x = read<T, kPack>(weight + row * width + e);
    if constexpr (kDeferred) {
      const Pack<T, kPack> m = read<T, kPack>(adam.moments + row * 2 * width + e);
      const Pack<T, kPack> v = read<T, kPack>(adam.moments + (row * 2 + 1) * width + e);
      for (int p = 0; p < kPack; ++p) x.at[p] = present_weight(adam, adam.current[row], x.at[p], m.at[p], v.at[p]);
    }
    write<T, kPack>(out + i * width + e, x);
  }
};

// sums[u] = sum of grad over the look-ups order[begin[u]] to order[begin[u + 1] - 1], in this order: with look-ups
// stably sorted by row the result is the same in every run. Threads: U * E / kPack.
template <typename T, int kPack>
struct Merge {
  const T* grad;         // [B * F, E]
  const int64_t* order;  // [B * F]
  const int64_t* begin;  // [U + 1]
  T* sums;               // [U, E]
  int64_t width;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const int64_t packs = width / kPack, u = thread / packs, e = thread % packs * kPack;
    Pack<T, kPack> sum = {};
    for (int64_t k = begin[u]; k < begin[u + 1]; ++k) {
      const Pack<T, kPack> g = read<T, kPack>(grad + order[k] * width + e);
      for (int p = 0; p < kPack; ++p) sum.at[p] += g.at[p];
    }
    write<T, kPack>(sums + u * width + e, sum);
  }
};

// The merged gradient of a batch, and the scalars of a step.
template <typename T>
struct Update {
  T* weight;
  T* state;
  const int64_t* rows;  // [U]
  const T* grad;        // [U, E]
  int64_t width;
  T lr, weight_decay, epsilon, take1, take2;
};

// Threads: U * E.
template <typename T>
struct Sgd {
  Update<T> by;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    T& w = by.weight[by.rows[thread / by.width] * by.width + thread % by.width];
    w -= by.lr * (by.grad[thread] + by.weight_decay * w);
  }
};

// state [R, E]. Threads: U * E.
template <typename T>
struct Adagrad {
  Update<T> by;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const int64_t at = by.rows[thread / by.width] * by.width + thread % by.width;
    const T w = by.weight[at], g = by.grad[thread] + by.weight_decay * w, total = by.state[at] + g * g;
    by.state[at] = total;
    by.weight[at] = w - by.lr * g / (sqrt(total) + by.epsilon);
  }
};

// state [R]. Threads: U; a row's mean needs all of it.
template <typename T>
struct RowwiseAdagrad {
  Update<T> by;

  ADAFTR_FAST_HD void operator()(int64_t u) const {
    T* w = by.weight + by.rows[u] * by.width;
    const T* grad = by.grad + u * by.width;
    T squares = 0;
    for (int64_t e = 0; e < by.width; ++e) {
      const T g = grad[e] + by.weight_decay * w[e];
      squares += g * g;
    }
    const T total = by.state[by.rows[u]] += squares / static_cast<T>(by.width);
    const T rate = by.lr / (sqrt(total) + by.epsilon);
    for (int64_t e = 0; e < by.width; ++e) w[e] -= rate * (grad[e] + by.weight_decay * w[e]);
  }
};

// state [R, 2, E]. Threads: U * E.
template <typename T>
struct LazyAdam {
  Update<T> by;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const int64_t row = by.rows[thread / by.width], e = thread % by.width;
    T& w = by.weight[row * by.width + e];
    T& m = by.state[row * 2 * by.width + e];
    T& v = by.state[(row * 2 + 1) * by.width + e];
    const T g = by.grad[thread] + by.weight_decay * w;
    m += by.take1 * (g - m);
    v += by.take2 * (g * g - v);
    w -= by.lr * m / (sqrt(v) + by.epsilon);
  }
};

// One step of dense Adam for the rows of the batch, after the steps they missed. Threads: U * E. The
// rows' `current` is written by Stamp in a later launch, when no thread reads it any more.
template <typename T>
struct Adam {
  Update<T> by;  // state: the moments; lr: that of the step over 1 - β1^t
  AdamState<T> adam;
  T inverse_bias2;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const int64_t row = by.rows[thread / by.width], e = thread % by.width, from = adam.current[row];
    T& weight = by.weight[row * by.width + e];
    T& m = by.state[row * 2 * by.width + e];
    T& v = by.state[(row * 2 + 1) * by.width + e];
    const T w = present_weight(adam, from, weight, m, v), g = by.grad[thread];
    const auto gap = static_cast<T>(adam.now - from);
    m *= pow(adam.keep1, gap);
    v *= pow(adam.keep2, gap);
    m += adam.take1 * (g - m);
    v = adam.keep2 * v + by.take2 * g * g;
    weight = w - by.lr * m / (sqrt(v) * inverse_bias2 + by.epsilon);
  }
};

// Threads: U.
struct Stamp {
  int32_t* current;
  const int64_t* rows;
  int32_t step;

  ADAFTR_FAST_HD void operator()(int64_t u) const { current[rows[u]] = step; }
};

#if defined(__CUDACC__)
template <typename Body>
__global__ void each(Body body, int64_t threads) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < threads; i += stride) body(i);
}
#else
template <typename Body>
void each(Body body, int64_t threads) {
  for (int64_t i = 0; i < threads; ++i) body(i);
}
#endif

}  // namespace adaftr_fast::cuda
