// Bodies of the deferred Adam, compiled once for each instruction set. See embedding_adam.h for the formulas.

namespace adaftr_fast {
namespace {

constexpr int64_t kLanes = 8;  // elements of a row are worked on in groups of this many

template <typename T>
struct Lanes {
  alignas(64) T w[kLanes];
  alignas(64) T m[kLanes];
  alignas(64) T v[kLanes];
};

template <typename T>
struct StepScalars {
  T step_size, inverse_bias2, decay;
};

// What a table's kernels share in one call.
template <typename W>
struct Adam {
  using T = Compute<W>;

  explicit Adam(const AdamTable<W>& table) : table(table), clock(*table.clock) {
    now = static_cast<int64_t>(clock.step);
    base = static_cast<int64_t>(clock.base);
    horizon = clock.horizon > 0 ? static_cast<int64_t>(clock.horizon) : INT64_MAX / 2;
    take1 = static_cast<T>(1 - clock.beta1);
    take2 = static_cast<T>(1 - clock.beta2);
    keep1 = static_cast<T>(1 - static_cast<double>(take1));  // what m <- m + (1 - β1) (g - m) keeps
    keep2 = static_cast<T>(clock.beta2);
    root2 = static_cast<T>(std::sqrt(static_cast<double>(keep2)));
    epsilon = static_cast<T>(clock.epsilon);
    couples = clock.weight_decay != 0 && clock.decoupled == 0;
    decays = clock.weight_decay != 0 && clock.decoupled != 0;
    l2 = couples ? static_cast<T>(clock.weight_decay) : T(0);
  }

  StepScalars<T> scalars(double lr) const {
    const double step = static_cast<double>(now + 1);
    return {static_cast<T>(lr / (1 - std::pow(clock.beta1, step))),
            static_cast<T>(1 / std::sqrt(1 - std::pow(clock.beta2, step))),
            decays ? static_cast<T>(1 - lr * clock.weight_decay) : T(1)};
  }

  // Whether a row current to step `from` has changed since: a row that never had a gradient only decays.
  bool is_stale(int64_t from) const { return from < now && (from > 0 || couples || decays); }

  T power(int64_t which, int64_t gap) const {
    if (gap < kPowers) return table.powers[which * kPowers + gap];
    return static_cast<T>(std::pow(static_cast<double>(which == 0 ? keep1 : keep2), static_cast<double>(gap)));
  }

  T decay_between(int64_t from, int64_t to) const {
    if (!decays) return T(1);
    return static_cast<T>(std::exp(table.schedule[to - base].log_decay - table.schedule[from - base].log_decay));
  }

  const AdamTable<W>& table;
  const AdamClock clock;
  int64_t now, base, horizon;
  T take1, take2, keep1, keep2, root2, epsilon, l2;
  bool couples, decays;
};

template <typename T>
inline void closed_form(const SeriesRow<T>& s, T epsilon, T decay, Lanes<T>& x, int64_t n) {
  for (int64_t e = 0; e < n; ++e) {
    const T root = std::sqrt(x.v[e]), y = T(1) / (root * s.mean + epsilon), z = root * y;
    const T series = T(1) + z * z * (s.moment[0] - z * (s.moment[1] - z * s.moment[2]));
    x.w[e] = decay * (x.w[e] - s.sum * x.m[e] * y * series);
  }
}

// Step by step, without touching m and v.
template <typename W, typename T = Compute<W>>
inline void replay(const Adam<W>& adam, int64_t from, Lanes<T>& x, int64_t n) {
  const int64_t to = adam.now - from < adam.horizon ? adam.now : from + adam.horizon;
  alignas(64) T root[kLanes];
  for (int64_t e = 0; e < n; ++e) root[e] = std::sqrt(x.v[e]);
  T power1 = 1, power2 = 1;
  for (int64_t k = from + 1; k <= to; ++k) {
    const SeriesRow<T>& at = adam.table.series[k - adam.base];
    power1 *= adam.keep1;
    power2 *= adam.root2;
    const T rate = at.step_size * power1, scale = power2 * at.inverse_bias2;
    for (int64_t e = 0; e < n; ++e) x.w[e] = at.decay * x.w[e] - rate * x.m[e] / (root[e] * scale + adam.epsilon);
  }
  const T rest = adam.decay_between(to, adam.now);
  for (int64_t e = 0; e < n; ++e) x.w[e] *= rest;
}

// One step of Adam on lanes that are current to the step before; g is the gradient without weight decay.
template <typename W, typename T = Compute<W>>
inline void dense_step(const Adam<W>& adam, const StepScalars<T>& by, Lanes<T>& x, const T* g, int64_t n) {
  for (int64_t e = 0; e < n; ++e) {
    const T w = by.decay * x.w[e], slope = g[e] + adam.l2 * w;
    x.m[e] += adam.take1 * (slope - x.m[e]);
    x.v[e] = adam.keep2 * x.v[e] + adam.take2 * slope * slope;
    x.w[e] = w - by.step_size * x.m[e] / (std::sqrt(x.v[e]) * by.inverse_bias2 + adam.epsilon);
  }
}

// Brings w from step `from` to now. m and v are brought along only where they must be, for coupled weight decay.
template <typename W, typename T = Compute<W>>
inline void catch_up_weight(const Adam<W>& adam, int64_t from, Lanes<T>& x, int64_t n) {
  const SeriesRow<T>& s = adam.table.series[from - adam.base];
  if (__builtin_expect(adam.couples, 0)) {
    const T none[kLanes] = {};
    for (int64_t k = from + 1; k <= adam.now; ++k) {
      const SeriesRow<T>& at = adam.table.series[k - adam.base];
      dense_step(adam, {at.step_size, at.inverse_bias2, at.decay}, x, none, n);
    }
  } else if (sizeof(T) == sizeof(float) && s.mean > 0) {
    closed_form(s, adam.epsilon, adam.decay_between(from, adam.now), x, n);
  } else {
    replay(adam, from, x, n);
  }
}

template <typename W, typename T = Compute<W>>
inline void catch_up(const Adam<W>& adam, int64_t from, Lanes<T>& x, int64_t n) {
  catch_up_weight(adam, from, x, n);
  if (adam.couples) return;
  const int64_t gap = adam.now - from;
  const T power1 = adam.power(0, gap), power2 = adam.power(1, gap);
  for (int64_t e = 0; e < n; ++e) {
    x.m[e] *= power1;
    x.v[e] *= power2;
  }
}

template <typename W, typename T = Compute<W>>
inline void read_lanes(const W* w, const T* m, const T* v, Lanes<T>& x, int64_t n) {
  for (int64_t e = 0; e < n; ++e) {
    x.w[e] = load(w + e);
    x.m[e] = m[e];
    x.v[e] = v[e];
  }
}

template <typename W, typename T = Compute<W>>
inline void write_lanes(W* w, T* m, T* v, const Lanes<T>& x, int64_t n) {
  for (int64_t e = 0; e < n; ++e) {
    store(w + e, x.w[e]);
    m[e] = x.m[e];
    v[e] = x.v[e];
  }
}

// Calls visit(first element, number of elements) for the groups of a row; the number is a constant for full groups.
template <int64_t kWidth, typename Visit>
inline void for_each_group(int64_t width, Visit visit) {
  const int64_t full = kWidth ? kWidth : width - width % kLanes;
  for (int64_t e = 0; e < full; e += kLanes) visit(e, std::integral_constant<int64_t, kLanes>{});
  if (!kWidth && full < width) visit(full, width - full);
}

template <typename W>
inline void prefetch_row(const AdamTable<W>& table, int64_t row, int64_t width) {
  prefetch(table.weight + row * width, width * sizeof(W));
  prefetch(table.moments + row * 2 * width, 2 * width * sizeof(Compute<W>));
}

template <typename W, int64_t kWidth>
inline void adam_read(const Adam<W>& adam, int64_t row, int64_t width, W* out) {
  using T = Compute<W>;
  const W* w = adam.table.weight + row * width;
  const int64_t from = adam.table.current[row];
  if (!adam.is_stale(from)) {
    copy_row<kWidth* static_cast<int64_t>(sizeof(W))>(reinterpret_cast<char*>(out), reinterpret_cast<const char*>(w),
                                                      width * sizeof(W));
    return;
  }
  const T* m = adam.table.moments + row * 2 * width;
  for_each_group<kWidth>(width, [&](int64_t e, auto n) {
    Lanes<T> x;
    read_lanes(w + e, m + e, m + width + e, x, n);
    catch_up_weight(adam, from, x, n);
    for (int64_t i = 0; i < n; ++i) store(out + e + i, x.w[i]);
  });
}

template <typename Id, typename W, int64_t kWidth>
int64_t adam_lookup_rows(const Ids<Id>& ids, const AdamTable<W>& table, W* out, int64_t begin, int64_t end) {
  const Adam<W> adam(table);
  const int64_t width = kWidth ? kWidth : table.width, fields = ids.fields, last = ids.batch * fields - 1;
  for (int64_t b = begin; b < end; ++b) {
    int64_t ahead_field = kAhead % fields;
    for (int64_t f = 0, i = b * fields; f < fields; ++f, ++i) {
      const int64_t ahead =
          ids.first_row[ahead_field] + static_cast<int64_t>(ids.data[i + kAhead < last ? i + kAhead : last]);
      prefetch_row(table, ahead, width);
      __builtin_prefetch(table.current + ahead);
      if (++ahead_field == fields) ahead_field = 0;
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids.data[i]));
      if (__builtin_expect(id >= static_cast<uint64_t>(ids.first_row[f + 1] - ids.first_row[f]), 0)) return i;
      adam_read<W, kWidth>(adam, ids.first_row[f] + static_cast<int64_t>(id), width, out + i * width);
    }
  }
  return -1;
}

template <typename W, int64_t kWidth>
void adam_step_rows(const AdamTable<W>& table, const int64_t* rows, const W* grad, double lr, int64_t begin,
                    int64_t end) {
  using T = Compute<W>;
  const Adam<W> adam(table);
  const StepScalars<T> by = adam.scalars(lr);
  const int64_t width = kWidth ? kWidth : table.width;
  for (int64_t u = begin; u < end; ++u) {
    const int64_t row = rows[u], ahead = rows[u + kUpdateAhead < end ? u + kUpdateAhead : end - 1];
    prefetch_row(table, ahead, width);
    W* w = table.weight + row * width;
    T* m = table.moments + row * 2 * width;
    const int64_t from = table.current[row];
    const bool stale = adam.is_stale(from);
    for_each_group<kWidth>(width, [&](int64_t e, auto n) {
      Lanes<T> x;
      alignas(64) T g[kLanes];
      for (int64_t i = 0; i < n; ++i) g[i] = load(grad + u * width + e + i);
      read_lanes(w + e, m + e, m + width + e, x, n);
      if (stale) catch_up(adam, from, x, n);
      dense_step(adam, by, x, g, n);
      write_lanes(w + e, m + e, m + width + e, x, n);
    });
    table.current[row] = static_cast<int32_t>(adam.now + 1);
  }
}

template <typename Id, typename W>
int64_t adam_lookup(const Ids<Id>& ids, const AdamTable<W>& table, W* out, int64_t begin, int64_t end) {
  if (table.width == 8) return adam_lookup_rows<Id, W, 8>(ids, table, out, begin, end);
  return adam_lookup_rows<Id, W, 0>(ids, table, out, begin, end);
}

template <typename W>
void adam_step(const AdamTable<W>& table, const int64_t* rows, const W* grad, double lr, int64_t begin, int64_t end) {
  if (table.width == 8) return adam_step_rows<W, 8>(table, rows, grad, lr, begin, end);
  adam_step_rows<W, 0>(table, rows, grad, lr, begin, end);
}

template <typename W>
void adam_flush(const AdamTable<W>& table, int64_t begin, int64_t end) {
  using T = Compute<W>;
  const Adam<W> adam(table);
  const int64_t width = table.width;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t from = table.current[row];
    table.current[row] = static_cast<int32_t>(adam.now);
    if (!adam.is_stale(from)) continue;
    W* w = table.weight + row * width;
    T* m = table.moments + row * 2 * width;
    for_each_group<0>(width, [&](int64_t e, auto n) {
      Lanes<T> x;
      read_lanes(w + e, m + e, m + width + e, x, n);
      catch_up(adam, from, x, n);
      write_lanes(w + e, m + e, m + width + e, x, n);
    });
  }
}

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

// Adds step `step` to the sums of the rows current to step s: a more missed step for them.
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
constexpr AdamKernels<W> kAdam = {adam_lookup<int32_t, W>, adam_lookup<int64_t, W>, adam_step<W>, adam_flush<W>,
                                  adam_advance<W>};

}  // namespace
}  // namespace adaftr_fast
