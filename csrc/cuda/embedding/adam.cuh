// Dense Adam at the cost of a sparse one, per element. csrc/cpu/embedding/optim/adam.h has the meaning and the
// formulas.
#pragma once

#include <cmath>

#include "cpu/embedding/optim/adam.h"
#include "cuda/runtime/report.cuh"

namespace adaftr_fast::cuda {

template <typename T>
struct AdamState {
  T* moments;             // [R, 2, E]: m and v
  int32_t* current;       // [R]
  SeriesRow<T>* series;   // [capacity], from step `base` on
  ScheduleRow* schedule;  // [capacity]
  const T* powers;        // [2, kPowers]: β1^j, β2^j
  AdamClock* clock;       // on the device, so that a captured graph reads the present step
  int64_t capacity;
  Report report;
};

// w, m and v of a pack of elements.
template <typename T, int kPack>
struct Elements {
  Pack<T, kPack> w, m, v;
};

// Where a pack of elements of a row stands in the table and in its moments.
template <typename W>
struct Place {
  using T = Compute<W>;
  W* w;
  T *m, *v;

  ADAFTR_FAST_HD Place(W* weight, T* moments, int64_t row, int64_t width, int64_t e)
      : w(weight + row * width + e), m(moments + row * 2 * width + e), v(m + width) {}

  template <int kPack>
  ADAFTR_FAST_HD Elements<T, kPack> read() const {
    return {cuda::read<T, kPack>(w), cuda::read<T, kPack>(m), cuda::read<T, kPack>(v)};
  }
  template <int kPack>
  ADAFTR_FAST_HD void write(const Elements<T, kPack>& x) const {
    cuda::write(w, x.w);
    cuda::write(m, x.m);
    cuda::write(v, x.v);
  }
};

// What a thread needs of the state. `now` is the step that rows are brought to.
template <typename T>
struct AdamView {
  AdamState<T> state;
  int64_t now, base, horizon;
  T take1, take2, keep1, keep2, epsilon, l2;
  bool couples, decays;

  // steps_back: how many of the recorded steps rows are not brought to.
  ADAFTR_FAST_HD AdamView(const AdamState<T>& state, int64_t steps_back) : state(state) {
    const AdamClock& clock = *state.clock;
    const bool fits = this->fits();
    now = (fits ? static_cast<int64_t>(clock.step) : 0) - steps_back;
    base = fits ? static_cast<int64_t>(clock.base) : 0;
    horizon = clock.horizon > 0 && clock.horizon < kPowers ? static_cast<int64_t>(clock.horizon) : INT64_MAX / 2;
    take1 = static_cast<T>(1 - clock.beta1);
    take2 = static_cast<T>(1 - clock.beta2);
    keep1 = static_cast<T>(1 - static_cast<double>(take1));  // what m <- m + (1 - β1) (g - m) keeps
    keep2 = static_cast<T>(clock.beta2);
    epsilon = static_cast<T>(clock.epsilon);
    couples = clock.weight_decay != 0 && clock.decoupled == 0;
    decays = clock.weight_decay != 0 && clock.decoupled != 0;
    l2 = couples ? static_cast<T>(clock.weight_decay) : T(0);
  }

  // Whether the steps of the clock index the schedule. Those of one that do not count as 0, where no row is stale.
  ADAFTR_FAST_HD bool fits() const {
    const double step = state.clock->step, base = state.clock->base;
    return 0 <= base && base <= step && step < INT32_MAX && static_cast<int64_t>(step - base) < state.capacity &&
           step == floor(step) && base == floor(base);
  }

  // The step that a row is current to. One before the schedule begins is reported, and indexes nothing.
  ADAFTR_FAST_HD int64_t since(int64_t row) const {
    const int64_t from = state.current[row];
    if (from >= base) return from;
    state.report({Fault::current, 0, row, from, base});
    return now;
  }

  // A row that never had a gradient only decays.
  ADAFTR_FAST_HD bool is_stale(int64_t from) const { return from < now && (from > 0 || couples || decays); }

  ADAFTR_FAST_HD T power(int which, int64_t gap) const {
    if (gap < kPowers) return state.powers[which * kPowers + gap];
    return static_cast<T>(pow(static_cast<double>(which == 0 ? keep1 : keep2), static_cast<double>(gap)));
  }

  ADAFTR_FAST_HD T decay_between(int64_t from, int64_t to) const {
    if (!decays) return T(1);
    return static_cast<T>(exp(state.schedule[to - base].log_decay - state.schedule[from - base].log_decay));
  }

  // One step on elements that are current to the step before; g is the gradient without weight decay.
  template <int kPack>
  ADAFTR_FAST_HD void step(const SeriesRow<T>& by, Elements<T, kPack>& x, const Pack<T, kPack>& g) const {
    ADAFTR_FAST_UNROLL
    for (int p = 0; p < kPack; ++p) {
      const T w = by.decay * x.w.at[p], slope = g.at[p] + l2 * w;
      x.m.at[p] += take1 * (slope - x.m.at[p]);
      x.v.at[p] = keep2 * x.v.at[p] + take2 * slope * slope;
      x.w.at[p] = w - by.step_size * x.m.at[p] / (sqrt(x.v.at[p]) * by.inverse_bias2 + epsilon);
    }
  }

  template <int kPack>
  ADAFTR_FAST_HD void apply_closed_form(const SeriesRow<T>& s, T decay, Elements<T, kPack>& x) const {
    ADAFTR_FAST_UNROLL
    for (int p = 0; p < kPack; ++p) {
      const T deviation = sqrt(x.v.at[p]), y = T(1) / (deviation * s.mean + epsilon), z = deviation * y;
      const T series = T(1) + z * z * (s.moment[0] - z * (s.moment[1] - z * s.moment[2]));
      x.w.at[p] = decay * (x.w.at[p] - s.sum * x.m.at[p] * y * series);
    }
  }

  // Applies the missed steps one by one; only w changes on the way.
  template <int kPack>
  ADAFTR_FAST_HD void replay(int64_t from, Elements<T, kPack>& x) const {
    const int64_t to = now - from < horizon ? now : from + horizon;
    const T root2 = static_cast<T>(sqrt(static_cast<double>(keep2)));
    T power1 = 1, power2 = 1;
    Pack<T, kPack> deviation;
    ADAFTR_FAST_UNROLL
    for (int p = 0; p < kPack; ++p) deviation.at[p] = sqrt(x.v.at[p]);
    ADAFTR_FAST_UNROLL_1  // thousands of steps: the elements of the pack overlap
    for (int64_t k = from + 1; k <= to; ++k) {
      const SeriesRow<T>& at = state.series[k - base];
      power1 *= keep1;
      power2 *= root2;
      const T rate = at.step_size * power1, scale = power2 * at.inverse_bias2;
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) {
        x.w.at[p] = at.decay * x.w.at[p] - rate * x.m.at[p] / (deviation.at[p] * scale + epsilon);
      }
    }
    const T rest = decay_between(to, now);
    ADAFTR_FAST_UNROLL
    for (int p = 0; p < kPack; ++p) x.w.at[p] *= rest;
  }

  // Brings elements that are current to step `from` to now.
  template <int kPack>
  ADAFTR_FAST_HD void catch_up(int64_t from, Elements<T, kPack>& x) const {
    if (couples) {  // weight decay is a gradient in every step
      ADAFTR_FAST_UNROLL_1
      for (int64_t k = from + 1; k <= now; ++k) step(state.series[k - base], x, Pack<T, kPack>{});
      return;
    }
    const SeriesRow<T>& s = state.series[from - base];
    if (sizeof(T) == sizeof(float) && s.mean > 0) {
      apply_closed_form(s, decay_between(from, now), x);
    } else {
      replay(from, x);
    }
    const T left1 = power(0, now - from), left2 = power(1, now - from);
    ADAFTR_FAST_UNROLL
    for (int p = 0; p < kPack; ++p) {
      x.m.at[p] *= left1;
      x.v.at[p] *= left2;
    }
  }
};

// Threads: 1. Records the next step, with learning rate lr, and begins it.
template <typename T>
struct AdamRecord {
  AdamState<T> state;
  double lr;

  ADAFTR_FAST_HD void operator()(int64_t) const {
    AdamClock& clock = *state.clock;
    const AdamView<T> adam(state, 0);
    const int64_t at = adam.now + 1 - adam.base;
    if (!adam.fits()) return state.report({Fault::clock, 0, 0, 0, state.capacity});
    if (at >= state.capacity) return state.report({Fault::schedule, 0, 0, 0, state.capacity});
    const auto step = static_cast<double>(adam.now + 1);
    const T decay = adam.decays ? static_cast<T>(1 - lr * clock.weight_decay) : T(1);
    const double log_decay = adam.decays ? log(static_cast<double>(decay)) : 0.0;
    state.schedule[at] = {{0, 0, 0, 0, 0}, 0, state.schedule[at - 1].log_decay + log_decay, 0};
    const auto step_size = static_cast<T>(lr / (1 - pow(clock.beta1, step)));
    const auto inverse_bias2 = static_cast<T>(1 / sqrt(1 - pow(clock.beta2, step)));
    state.series[at] = {0, 0, {0, 0, 0}, step_size, inverse_bias2, decay};
    clock.step = step;
  }
};

// Threads: as many as the horizon may have steps. Adds the recorded step to the sums of every earlier step s: rows
// current to s have now missed it too.
template <typename T>
struct AdamExtend {
  AdamState<T> state;
  double lr;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const AdamClock& clock = *state.clock;
    // Without a horizon the sums never settle, and in double they are not exact enough: steps are replayed.
    if (clock.horizon <= 0 || sizeof(T) != sizeof(float)) return;
    const AdamView<T> adam(state, 0);
    const int64_t s = adam.now - 1 - thread;
    if (s < adam.base || s < adam.now - adam.horizon) return;
    const auto step = static_cast<double>(adam.now), missed = static_cast<double>(thread + 1);
    const double bias1 = 1 - pow(clock.beta1, step), bias2 = sqrt(1 - pow(clock.beta2, step));
    const double root2 = sqrt(static_cast<double>(adam.keep2));
    ScheduleRow& row = state.schedule[s - adam.base];
    if (thread == 0) row.first = root2 / bias2;
    const double away = pow(root2, missed) / bias2 - row.first;
    double term = lr / bias1 * pow(static_cast<double>(adam.keep1), missed);
    if (adam.decays) term *= exp(row.log_decay - state.schedule[adam.now - adam.base].log_decay);
    for (double& raw : row.raw) {
      raw += term;
      term *= away;
    }
    publish(row, state.series[s - adam.base]);
  }

  ADAFTR_FAST_HD static void publish(const ScheduleRow& from, SeriesRow<T>& to) {
    constexpr double kSpread = 0.02;  // as csrc/cpu/embedding/optim/adam_schedule.inl
    const double* raw = from.raw;
    if (raw[0] <= 0) {  // no step with a learning rate yet
      to.sum = to.moment[0] = to.moment[1] = to.moment[2] = 0;
      to.mean = static_cast<T>(from.first);
      return;
    }
    const double mu = raw[1] / raw[0], m2 = raw[2] / raw[0], m3 = raw[3] / raw[0], m4 = raw[4] / raw[0];
    const double central2 = m2 - mu * mu, mean = from.first + mu;
    to.sum = static_cast<T>(raw[0]);
    to.mean = static_cast<T>(central2 <= kSpread * kSpread * mean * mean ? mean : -1);
    to.moment[0] = static_cast<T>(central2);
    to.moment[1] = static_cast<T>(m3 - 3 * mu * m2 + 2 * mu * mu * mu);
    to.moment[2] = static_cast<T>(m4 - 4 * mu * m3 + 6 * mu * mu * m2 - 3 * mu * mu * mu * mu);
  }
};

// Threads: R lanes. Applies the missed steps of every row.
template <typename W, int kPack>
struct AdamFlush {
  using T = Compute<W>;
  W* weight;
  AdamState<T> state;
  int64_t width;
  Lanes lanes;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const AdamView<T> adam(state, 0);
    const int64_t row = lanes.unit(thread), from = adam.since(row);
    if (adam.is_stale(from)) {
      for (int64_t e = lanes.first(thread) * kPack; e < width; e += lanes.count() * kPack) {
        const Place<W> place(weight, state.moments, row, width, e);
        auto x = place.template read<kPack>();
        adam.catch_up(from, x);
        place.write(x);
      }
    }
    lanes.wait();  // the other lanes have read `current`
    if (lanes.first(thread) == 0) state.current[row] = static_cast<int32_t>(adam.now);
  }
};

// Threads: 1. Begins a new series after a flush.
template <typename T>
struct AdamRebase {
  AdamState<T> state;

  ADAFTR_FAST_HD void operator()(int64_t) const {
    state.clock->base = state.clock->step;
    state.schedule[0] = {};
    state.series[0] = {};
  }
};

}  // namespace adaftr_fast::cuda
