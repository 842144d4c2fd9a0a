// Dense Adam at the cost of a sparse one. Every row stores the step it is current to. The steps it missed, those in
// which it had no gradient, are applied when the row is next needed.
//
// With no gradient, step k of dense Adam does m <- β1 m, v <- β2 v, w <- d_k w - c_k m / (r_k sqrt(v) + ε), where
// c_k = lr_k / (1 - β1^k), r_k = 1 / sqrt(1 - β2^k) and d_k = 1 - lr_k λ (AdamW) or 1 (Adam). For a row current to
// step s, j = k - s missed steps on, the denominator is sqrt(v) q_k + ε with q_k = β2^(j/2) r_k, which changes
// slowly while c_k β1^j dies out. So the sum over the missed steps depends on the row only through m and v,
//     sum_k a_k m / (sqrt(v) q_k + ε),  a_k = c_k β1^j,
// and is expanded about the mean q̄ of q under the weights a: with y = 1 / (sqrt(v) q̄ + ε) and x = sqrt(v) y,
//     A m y (1 + x² (M2 - x (M3 - x M4))),
// where A is the sum and M2, M3, M4 the central moments of q: five numbers for each past step, whatever the row.
// Where q spreads too widely for that (the first few hundred steps), and in double, the steps are replayed.
#pragma once

#include <cstdint>

#include "cpu/embedding/types.h"

namespace adaftr_fast {

// One record per step since `base`: the sums for rows that are current to the step, and the step's own scalars.
template <typename T>
struct SeriesRow {
  T sum;            // A
  T mean;           // q̄; not positive where the expansion is not accurate enough
  T moment[3];      // M2, M3, M4
  T step_size;      // c_k
  T inverse_bias2;  // r_k
  T decay;          // d_k
};

// The same sums in double, as they are accumulated: raw moments of q about its first value.
struct ScheduleRow {
  double raw[5];
  double first;      // q at the first missed step
  double log_decay;  // sum of log d_i for i <= k
  double unused;
};

struct AdamClock {
  double step;  // steps done
  double beta1, beta2, epsilon, weight_decay;
  double decoupled;  // 1: AdamW; 0: weight decay is added to the gradient
  double horizon;    // missed steps after which m no longer moves w; 0: never
  double base;       // no row is current to a step before this
};

constexpr int64_t kPowers = 4096;  // β^j is tabulated for j < kPowers

template <typename W>
struct AdamTable {
  using T = Compute<W>;
  W* weight;              // [R, E]
  T* moments;             // [R, 2, E]: m and v
  int32_t* current;       // [R]
  SeriesRow<T>* series;   // [capacity], from step `base` on
  ScheduleRow* schedule;  // [capacity]
  const T* powers;        // [2, kPowers]: β1^j, β2^j
  const AdamClock* clock;
  int64_t width;
  bool* strays;  // set where a row that is read is current to a step before `base`
};

template <typename W>
struct AdamKernels {
  // One step with learning rate lr for the distinct rows [begin, end) of the gradient.
  void (*step)(const AdamTable<W>&, const int64_t* rows, const W* grad, double lr, int64_t begin, int64_t end);
  // Applies the missed steps of table rows [begin, end).
  void (*flush)(const AdamTable<W>&, int64_t begin, int64_t end);
  // Records one more step, with learning rate lr, in series, schedule and clock.
  void (*advance)(const AdamTable<W>&, AdamClock*, double lr);
  // One step of dense Adam, after those of the clock, on `count` weights with moments m and v.
  void (*dense)(const AdamClock&, double lr, W* weight, Compute<W>* m, Compute<W>* v, const W* grad, int64_t count);
};

}  // namespace adaftr_fast
