// What the deferred Adam records about each step, for the rows that miss it. adam.h has the formulas.
#pragma once

#include "cpu/embedding/optim/adam.inl"

template <typename T>
void publish_sums(const ScheduleRow& from, SeriesRow<T>& to) {
  // Relative spread of q up to which the expansion's first neglected term is below 1e-7 of the sum.
  constexpr double kSpread = 0.02;
  const double* raw = from.raw;
  if (raw[0] <= 0) {  // no step with a learning rate yet
    to.sum = 0;
    to.mean = static_cast<T>(from.first);
    to.moment[0] = to.moment[1] = to.moment[2] = 0;
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

// Adds step `step` to the sums of every earlier step s: rows current to s have now missed it too.
template <typename W>
void extend_sums(const Adam<W>& adam, const AdamTable<W>& table, int64_t step, double lr) {
  const double bias1 = 1 - std::pow(adam.clock.beta1, static_cast<double>(step));
  const double bias2 = std::sqrt(1 - std::pow(adam.clock.beta2, static_cast<double>(step)));
  const double keep1 = adam.keep1, root2 = std::sqrt(static_cast<double>(adam.keep2));
  ScheduleRow* schedule = table.schedule - adam.base;
  const int64_t oldest = adam.base > step - adam.horizon ? adam.base : step - adam.horizon;
  double power1 = keep1, power2 = root2;
  for (int64_t s = step - 1; s >= oldest; --s, power1 *= keep1, power2 *= root2) {
    ScheduleRow& row = schedule[s];
    if (s == step - 1) row.first = root2 / bias2;
    const double away = power2 / bias2 - row.first;
    double term = lr / bias1 * power1;
    if (adam.decays) term *= std::exp(row.log_decay - schedule[step].log_decay);
    for (double& raw : row.raw) {
      raw += term;
      term *= away;
    }
    publish_sums(row, table.series[s - adam.base]);
  }
}

template <typename W>
void adam_advance(const AdamTable<W>& table, AdamClock* clock, double lr) {
  using T = Compute<W>;
  const Adam<W> adam(table);
  const StepScalars<T> by = adam.scalars(lr);
  const int64_t step = adam.now + 1;
  ScheduleRow& row = table.schedule[step - adam.base];
  row = {};
  row.log_decay = (&row)[-1].log_decay + (adam.decays ? std::log(static_cast<double>(by.decay)) : 0.0);
  table.series[step - adam.base] = {0, 0, {0, 0, 0}, by.step_size, by.inverse_bias2, by.decay};
  // Without a horizon the sums never settle, and in double they are not exact enough: steps are replayed.
  if (clock->horizon > 0 && sizeof(T) == sizeof(float)) extend_sums(adam, table, step, lr);
  clock->step = static_cast<double>(step);
}

template <typename W>
constexpr AdamKernels<W> kAdam = {adam_step<W>, adam_flush<W>, adam_advance<W>, adam_dense<W>};
