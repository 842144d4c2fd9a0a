// The kernels of the deferred Adam. Included once per instruction set (see vectors.inl). adam.h has the formulas.
#pragma once

#include "cpu/embedding/groups.inl"
#include "cpu/embedding/lookup/lookup.inl"

// w, m and v of one group of elements.
template <typename T>
struct AdamGroup {
  Group<T> w, m, v;
};

template <typename T>
struct StepScalars {
  T step_size, inverse_bias2, decay;
};

// What the kernels of one call share.
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

  // The step that a row is current to. One before the schedule begins is noted, and indexes nothing.
  int64_t since(int64_t row) const {
    const int64_t from = table.current[row];
    if (__builtin_expect(from >= base, 1)) return from;
    __atomic_store_n(table.strays, true, __ATOMIC_RELAXED);
    return now;
  }

  // Whether a row current to step `from` has changed since: a row that never had a gradient only decays.
  bool is_stale(int64_t from) const { return (from < now) & ((from > 0) | couples | decays); }

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
inline Group<T> closed_form(const SeriesRow<T>& s, T epsilon, T decay, const AdamGroup<T>& x) {
  const Group<T> deviation = square_root(x.v), y = T(1) / (deviation * s.mean + epsilon), z = deviation * y;
  const Group<T> series = T(1) + z * z * (s.moment[0] - z * (s.moment[1] - z * s.moment[2]));
  return decay * (x.w - s.sum * x.m * y * series);
}

// Applies the missed steps one by one; only w changes on the way.
template <typename W, typename T = Compute<W>>
Group<T> replay(const Adam<W>& adam, int64_t from, const AdamGroup<T>& x) {
  const int64_t to = adam.now - from < adam.horizon ? adam.now : from + adam.horizon;
  const Group<T> deviation = square_root(x.v);
  Group<T> w = x.w;
  T power1 = 1, power2 = 1;
  for (int64_t k = from + 1; k <= to; ++k) {
    const SeriesRow<T>& at = adam.table.series[k - adam.base];
    power1 *= adam.keep1;
    power2 *= adam.root2;
    const T rate = at.step_size * power1, scale = power2 * at.inverse_bias2;
    w = at.decay * w - rate * x.m / (deviation * scale + adam.epsilon);
  }
  return w * adam.decay_between(to, adam.now);
}

// One step of Adam on elements that are current to the step before; g is the gradient without weight decay.
template <typename W, typename T = Compute<W>>
inline void dense_step(const Adam<W>& adam, const StepScalars<T>& by, AdamGroup<T>& x, const Group<T>& g) {
  const Group<T> w = by.decay * x.w, slope = g + adam.l2 * w;
  x.m += adam.take1 * (slope - x.m);
  x.v = adam.keep2 * x.v + adam.take2 * slope * slope;
  x.w = w - by.step_size * x.m / (square_root(x.v) * by.inverse_bias2 + adam.epsilon);
}

// Coupled weight decay gives every missed step a gradient, so that w, m and v change step by step.
template <typename W, typename T = Compute<W>>
void replay_coupled(const Adam<W>& adam, int64_t from, AdamGroup<T>& x) {
  for (int64_t k = from + 1; k <= adam.now; ++k) {
    const SeriesRow<T>& at = adam.table.series[k - adam.base];
    dense_step(adam, {at.step_size, at.inverse_bias2, at.decay}, x, Group<T>{});
  }
}

// w of elements current to step `from`, brought to now.
template <typename W, typename T = Compute<W>>
inline Group<T> present_weight(const Adam<W>& adam, int64_t from, const AdamGroup<T>& x) {
  const SeriesRow<T>& s = adam.table.series[from - adam.base];
  if (__builtin_expect(adam.couples, 0)) {
    AdamGroup<T> moved = x;
    replay_coupled(adam, from, moved);
    return moved.w;
  }
  if (sizeof(T) == sizeof(float) && s.mean > 0) {
    return closed_form(s, adam.epsilon, adam.decay_between(from, adam.now), x);
  }
  return replay(adam, from, x);
}

template <typename W, typename T = Compute<W>>
inline void catch_up(const Adam<W>& adam, int64_t from, AdamGroup<T>& x) {
  if (__builtin_expect(adam.couples, 0)) return replay_coupled(adam, from, x);
  x.w = present_weight(adam, from, x);
  x.m *= adam.power(0, adam.now - from);
  x.v *= adam.power(1, adam.now - from);
}

template <typename W>
inline void prefetch_row(const AdamTable<W>& table, int64_t row, int64_t width) {
  prefetch(table.weight + row * width, width * sizeof(W));
  prefetch(table.moments + row * 2 * width, 2 * width * sizeof(Compute<W>));
}

template <typename Id, typename W, int64_t kWidth>
int64_t adam_lookup_rows(const Ids<Id>& ids, const AdamTable<W>& table, W* out, int64_t begin, int64_t end) {
  using T = Compute<W>;
  const Adam<W> adam(table);
  const int64_t width = kWidth ? kWidth : table.width;
  return for_each_lookup(
      ids, begin, end, [&](int64_t row) { __builtin_prefetch(table.current + row); },
      [&](int64_t row) {
        const W* w = table.weight + row * width;
        const T* m = table.moments + row * 2 * width;
        prefetch(w, width * sizeof(W));
        // Fetches the moments of stale rows; of others, the weight again.
        const bool stale = adam.is_stale(table.current[row]);
        prefetch(stale ? static_cast<const void*>(m) : w, stale ? 2 * width * sizeof(T) : 1);
      },
      [&](int64_t i, int64_t row) {
        const W* w = table.weight + row * width;
        copy_row<kWidth* static_cast<int64_t>(sizeof(W))>(out + i * width, w, width * sizeof(W));
        const int64_t from = adam.since(row);
        if (!adam.is_stale(from)) return;
        const T* m = table.moments + row * 2 * width;
        for_each_group<kWidth>(width, [&](int64_t e, auto n) {
          const AdamGroup<T> x{load_group(w + e, n), load_group(m + e, n), load_group(m + width + e, n)};
          store_group(out + i * width + e, present_weight(adam, from, x), n);
        });
      });
}

template <typename W, int64_t kWidth>
void adam_step_rows(const AdamTable<W>& table, const int64_t* rows, const W* grad, double lr, int64_t begin,
                    int64_t end) {
  using T = Compute<W>;
  const Adam<W> adam(table);
  const StepScalars<T> by = adam.scalars(lr);
  const int64_t width = kWidth ? kWidth : table.width;
  for (int64_t u = begin; u < end && u < begin + 2 * kChunk; ++u) __builtin_prefetch(table.current + rows[u]);
  for (int64_t u = begin; u < end && u < begin + kChunk; ++u) prefetch_row(table, rows[u], width);
  for (int64_t u = begin; u < end; ++u) {
    // One row for each that is updated: a chunk's at once would wait for one another.
    prefetch_row(table, rows[u + kChunk < end ? u + kChunk : end - 1], width);
    __builtin_prefetch(table.current + rows[u + 2 * kChunk < end ? u + 2 * kChunk : end - 1]);
    const int64_t row = rows[u];
    W* w = table.weight + row * width;
    T* m = table.moments + row * 2 * width;
    // A row at a time: wrong predictions of which rows are stale cost less than a second pass over the rows.
    const int64_t from = adam.since(row);
    const bool stale = adam.is_stale(from);
    for_each_group<kWidth>(width, [&](int64_t e, auto n) {
      AdamGroup<T> x{load_group(w + e, n), load_group(m + e, n), load_group(m + width + e, n)};
      if (stale) catch_up(adam, from, x);
      dense_step(adam, by, x, load_group(grad + u * width + e, n));
      store_group(w + e, x.w, n);
      store_group(m + e, x.m, n);
      store_group(m + width + e, x.v, n);
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
    const int64_t from = adam.since(row);
    table.current[row] = static_cast<int32_t>(adam.now);
    if (!adam.is_stale(from)) continue;
    W* w = table.weight + row * width;
    T* m = table.moments + row * 2 * width;
    for_each_group<0>(width, [&](int64_t e, auto n) {
      AdamGroup<T> x{load_group(w + e, n), load_group(m + e, n), load_group(m + width + e, n)};
      catch_up(adam, from, x);
      store_group(w + e, x.w, n);
      store_group(m + e, x.m, n);
      store_group(m + width + e, x.v, n);
    });
  }
}

template <typename W>
void adam_dense(const AdamClock& clock, double lr, W* weight, Compute<W>* m, Compute<W>* v, const W* grad,
                int64_t count) {
  using T = Compute<W>;
  const AdamTable<W> none{nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, &clock, 0, nullptr};
  const Adam<W> adam(none);
  const StepScalars<T> by = adam.scalars(lr);
  for_each_group<0>(count, [&](int64_t e, auto n) {
    AdamGroup<T> x{load_group(weight + e, n), load_group(m + e, n), load_group(v + e, n)};
    dense_step(adam, by, x, load_group(grad + e, n));
    store_group(weight + e, x.w, n);
    store_group(m + e, x.m, n);
    store_group(v + e, x.v, n);
  });
}
