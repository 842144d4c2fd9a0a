// Dense Adam at the cost of a sparse one, per element. csrc/cpu/embedding/optim/adam.h has the meaning and the
// formulas.
#pragma once

#include <cmath>

#include "cuda/runtime/report.cuh"

namespace adaftr_fast::cuda {

constexpr int64_t kPowers = 4096;  // β^j is tabulated for j < kPowers

template <typename T>
struct SeriesRow {
  T sum, mean, moment[3], step_size, inverse_bias2, decay;
};

struct ScheduleRow {
  double raw[5];
  double first, log_decay, unused;
};

struct AdamClock {
  double step, beta1, beta2, epsilon, weight_decay, decoupled, horizon, base;
};

template <typename T>
struct AdamState {
  T* moments;             // [R, 2, E]: m and v
  int32_t* current;       // [R]
  SeriesRow<T>* series;   // [capacity], from step `base` on
  ScheduleRow* schedule;  // [capacity]
  const T* powers;        // [2, kPowers]: β1^j, β2^j
  AdamClock* clock;       // on the device, so that a captured graph reads the present step
  int64_t capacity;
};

// w, m and v of one element.
template <typename T>
struct Element {
  T w, m, v;
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
    now = static_cast<int64_t>(clock.step) - steps_back;
    base = static_cast<int64_t>(clock.base);
    horizon = clock.horizon > 0 ? static_cast<int64_t>(clock.horizon) : INT64_MAX / 2;
    take1 = static_cast<T>(1 - clock.beta1);
    take2 = static_cast<T>(1 - clock.beta2);
    keep1 = static_cast<T>(1 - static_cast<double>(take1));  // what m <- m + (1 - β1) (g - m) keeps
    keep2 = static_cast<T>(clock.beta2);
    epsilon = static_cast<T>(clock.epsilon);
    couples = clock.weight_decay != 0 && clock.decoupled == 0;
    decays = clock.weight_decay != 0 && clock.decoupled != 0;
    l2 = couples ? static_cast<T>(clock.weight_decay) : T(0);
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

  // One step on an element that is current to the step before; g is the gradient without weight decay.
  ADAFTR_FAST_HD void step(const SeriesRow<T>& by, Element<T>& x, T g) const {
    const T w = by.decay * x.w, slope = g + l2 * w;
    x.m += take1 * (slope - x.m);
    x.v = keep2 * x.v + take2 * slope * slope;
    x.w = w - by.step_size * x.m / (sqrt(x.v) * by.inverse_bias2 + epsilon);
  }

  ADAFTR_FAST_HD T closed_form(const SeriesRow<T>& s, T decay, const Element<T>& x) const {
    const T deviation = sqrt(x.v), y = T(1) / (deviation * s.mean + epsilon), z = deviation * y;
    const T series = T(1) + z * z * (s.moment[0] - z * (s.moment[1] - z * s.moment[2]));
    return decay * (x.w - s.sum * x.m * y * series);
  }

  ADAFTR_FAST_HD T replay(int64_t from, const Element<T>& x) const {
    const int64_t to = now - from < horizon ? now : from + horizon;
    const T deviation = sqrt(x.v), root2 = static_cast<T>(sqrt(static_cast<double>(keep2)));
    T w = x.w, power1 = 1, power2 = 1;
    for (int64_t k = from + 1; k <= to; ++k) {
      const SeriesRow<T>& at = state.series[k - base];
      power1 *= keep1;
      power2 *= root2;
      w = at.decay * w - at.step_size * power1 * x.m / (deviation * (power2 * at.inverse_bias2) + epsilon);
    }
    return w * decay_between(to, now);
  }

  // Brings an element that is current to step `from` to now.
  ADAFTR_FAST_HD void catch_up(int64_t from, Element<T>& x) const {
    if (couples) {  // weight decay is a gradient in every step
      for (int64_t k = from + 1; k <= now; ++k) step(state.series[k - base], x, T(0));
      return;
    }
    const SeriesRow<T>& s = state.series[from - base];
    const bool is_exact = sizeof(T) == sizeof(float) && s.mean > 0;
    x.w = is_exact ? closed_form(s, decay_between(from, now), x) : replay(from, x);
    x.m *= power(0, now - from);
    x.v *= power(1, now - from);
  }
};

// Threads: 1. Records the next step, with learning rate lr, and begins it.
template <typename T>
struct AdamRecord {
  AdamState<T> state;
  double lr;
  Report report;

  ADAFTR_FAST_HD void operator()(int64_t) const {
    AdamClock& clock = *state.clock;
    const AdamView<T> adam(state, 0);
    const int64_t at = adam.now + 1 - adam.base;
    if (at >= state.capacity) return report({Fault::schedule, 0, 0, 0, 0, state.capacity});
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
    const int64_t row = lanes.unit(thread), from = state.current[row];
    if (adam.is_stale(from)) {
      for (int64_t e = lanes.first(thread) * kPack; e < width; e += lanes.count() * kPack) bring_up(adam, row, from, e);
    }
    lanes.wait();  // the other lanes have read `current`
    if (lanes.first(thread) == 0) state.current[row] = static_cast<int32_t>(adam.now);
  }

  ADAFTR_FAST_HD void bring_up(const AdamView<T>& adam, int64_t row, int64_t from, int64_t e) const {
    W* w_at = weight + row * width + e;
    T *m_at = state.moments + row * 2 * width + e, *v_at = m_at + width;
    auto w = read<T, kPack>(w_at), m = read<T, kPack>(m_at), v = read<T, kPack>(v_at);
    ADAFTR_FAST_UNROLL
    for (int p = 0; p < kPack; ++p) {
      Element<T> x{w.at[p], m.at[p], v.at[p]};
      adam.catch_up(from, x);
      w.at[p] = x.w, m.at[p] = x.m, v.at[p] = x.v;
    }
    write(w_at, w);
    write(m_at, m);
    write(v_at, v);
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
