// Adaptive InfoNCE, forward and every gradient in one sweep over the similarities: three matrix products (3G), one
// exponential an element, O((B + N) d + stripe * N) memory. Included once per instruction set (see simd.inl).
//
// The rows are taken in stripes. For each stripe
//   row phase (a thread owns rows): for each block of columns, S = A B^T in cache; the running maximum m and the sum of
//     E = exp(S / tau - m); O += E B, rescaled when m grows. E stays in memory with the m it was taken at.
//   column phase (a thread owns columns): E is brought to the final m where it grew since; D += E^T A', where
//     A' = coefficient / (tau l) a carries every per-row factor.
// So no partial sums of the column gradient are kept per thread, each sum runs over the rows in order, and the result
// is bit for bit the same for any number of threads.
//
// The positive is left out of l and O and enters as p - 1 = -l_negative / l, so that nothing cancels as p -> 1.

#include "cpu/tile.inl"

constexpr int kBlockColumns = 224;  // S, B and B^T of a block stay in a 1 MB L2 up to d = 256
constexpr int kWidthChunk = 64;
constexpr int kDepthChunk = 224;  // one panel of E this deep stays in L1

constexpr int64_t kStripeElements = 4 << 20;  // of E, where that leaves a stripe rows enough for its threads

template <class T>
constexpr int kBlockPanels = kBlockColumns / kPanel<T>;

template <class T>
struct RowState {
  Vec<T> l, weighted;    // sums over the negatives, by lane, of e and of e (z - m), where e = exp(z - m)
  T m;                   // running maximum
  T positive, negative;  // the positive's logit; the largest negative's
  T inverse_tau;
};

inline int64_t at_most(int64_t x, int64_t bound) { return x < bound ? x : bound; }
inline int64_t at_least(int64_t x, int64_t bound) { return x > bound ? x : bound; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct Sweep {
  const InfoNCEProblem<T>& q;
  int64_t threads, stripe, task_rows;  // rows of a stripe, and of one thread's share of it
  int64_t column_panels, column_blocks, width_panels, width_tiles;
  bool need_row, need_column, need_weighted;
  T *b_transposed, *b_panels;           // [column_panels][d][kPanel], [width_panels][N][kPanel]
  T *e, *factor, *scaled_a, *d_column;  // [column_panels][stripe][kPanel], [column_blocks][stripe],
                                        // [width_tiles][stripe][kStrip], [column_panels][d][kPanel]
  T* positive_entry;                    // [stripe]: what E holds at the positive, -l_negative
  T *task_a, *task_out, *task_e;        // per thread: [width_panels][task_rows][kPanel] twice, a block of E
  RowState<T>* state;                   // [stripe]
  int64_t first;                        // the stripe's first row
  int64_t height;                       // and its rows

  size_t bytes;  // length of the workspace

  // Sets the sizes and lays the workspace out from `base` on.
  Sweep(const InfoNCEProblem<T>& problem, int64_t thread_count, char* base) : q(problem), threads(thread_count) {
    need_row = q.d_row != nullptr, need_column = q.d_column != nullptr;
    need_weighted = q.entropy != nullptr || (q.d_tau != nullptr && !need_row);
    const int64_t wanted = at_least(kStripeElements / q.columns, at_least(256, 64 * threads));
    stripe = ceil_div(q.rows, ceil_div(q.rows, at_most(wanted, at_least(1024, 64 * threads))));
    task_rows = ceil_div(stripe, threads);
    column_panels = ceil_div(q.columns, kPanel<T>);
    column_blocks = ceil_div(column_panels, kBlockPanels<T>);
    width_panels = ceil_div(q.width, kPanel<T>);
    width_tiles = tiles_of(q.width);
    size_t used = 0;
    auto take = [&](int64_t count, auto*& pointer) {
      using P = __typeof__(pointer);
      pointer = (P)(base + used);
      used += (count * sizeof(*pointer) + 63) / 64 * 64;
    };
    take(column_panels * q.width * kPanel<T>, b_transposed);
    take(need_row ? width_panels * q.columns * kPanel<T> : 0, b_panels);
    take(need_column ? column_panels * stripe * kPanel<T> : 0, e);
    take(need_column ? column_blocks * stripe : 0, factor);
    take(need_column ? width_tiles * stripe * kStrip : 0, scaled_a);
    take(need_column ? column_panels * q.width * kPanel<T> : 0, d_column);
    take(stripe, positive_entry);
    take(threads * width_panels * task_rows * kPanel<T>, task_a);
    take(need_row ? threads * width_panels * task_rows * kPanel<T> : 0, task_out);
    take(need_column ? 0 : threads * kBlockPanels<T> * task_rows * kPanel<T>, task_e);
    take(stripe, state);
    bytes = used;
  }

  int64_t positive_of(int64_t row) const { return q.positive != nullptr ? q.positive[row] : row; }

  // --- packing -------------------------------------------------------------------------------------------------

  void pack_column_panel(int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(q.columns - j0, kPanel<T>);
    T* out = b_transposed + p * q.width * kPanel<T>;
    for (int64_t k = 0; k < q.width; ++k, out += kPanel<T>) {
      const T* in = q.b + j0 * q.width + k;
      for (int64_t j = 0; j < count; ++j) out[j] = in[j * q.width];
      for (int64_t j = count; j < kPanel<T>; ++j) out[j] = 0;
    }
    if (need_row) copy_to_panels(q.b + j0 * q.width, count, b_panels + j0 * kPanel<T>, q.columns);
  }

  // `rows` rows of a [.., d] matrix into panels that are `height` rows high.
  void copy_to_panels(const T* in, int64_t rows, T* out, int64_t height) {
    for (int64_t w = 0; w < width_panels; ++w) {
      const int64_t k0 = w * kPanel<T>, count = at_most(q.width - k0, kPanel<T>);
      for (int64_t r = 0; r < rows; ++r) {
        T* to = out + (w * height + r) * kPanel<T>;
        for (int64_t k = 0; k < count; ++k) to[k] = in[r * q.width + k0 + k];
        for (int64_t k = count; k < kPanel<T>; ++k) to[k] = 0;
      }
    }
  }

  // --- row phase -----------------------------------------------------------------------------------------------

  // Rows [begin, end) of the stripe, against every block of columns.
  void sweep_rows(int64_t task, int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    T* a = task_a + task * width_panels * task_rows * kPanel<T>;
    T* out = need_row ? task_out + task * width_panels * task_rows * kPanel<T> : nullptr;
    copy_to_panels(q.a + (first + begin) * q.width, rows, a, task_rows);
    for (int64_t r = begin; r < end; ++r) {
      const T minus_infinity = -__builtin_inff();
      state[r] = RowState<T>{Vec<T>{}, Vec<T>{}, minus_infinity, T(0), minus_infinity, T(1) / q.tau[first + r]};
    }
    for (int64_t c = 0; c < column_blocks; ++c) {
      const int64_t p0 = c * kBlockPanels<T>, panels = at_most(column_panels - p0, kBlockPanels<T>);
      // The block of E: panel p of it starts at block + p * height * kPanel.
      const int64_t panel_rows = need_column ? stripe : task_rows;
      T* block =
          need_column ? e + (p0 * stripe + begin) * kPanel<T> : task_e + task * kBlockPanels<T> * task_rows * kPanel<T>;
      similarities(a, rows, p0, panels, block, panel_rows);
      for (int64_t r = 0; r < rows; ++r)
        absorb(begin + r, c, p0, panels, block + r * kPanel<T>, panel_rows * kPanel<T>,
               out == nullptr ? nullptr : out + r * kPanel<T>);
      if (need_row) accumulate_rows(block, panel_rows, rows, c, out);
    }
    for (int64_t r = 0; r < rows; ++r) finish_row(begin + r, out == nullptr ? nullptr : out + r * kPanel<T>);
  }

  // Summed kWidthChunk products at a time: shorter chains of rounding errors in logits that tau may magnify.
  void similarities(const T* a, int64_t rows, int64_t p0, int64_t panels, T* block, int64_t panel_rows) {
    for (int64_t p = 0; p < panels; ++p) {
      const T* b = b_transposed + (p0 + p) * q.width * kPanel<T>;
      for (int64_t i = 0; i < tiles_of(rows); ++i) {
        const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
        T* s = block + (p * panel_rows + r0) * kPanel<T>;
        for (int64_t k = 0; k < q.width; k += kWidthChunk)
          tile_for<T, false>(
              r1 - r0, kPanel<T>)({at_most(q.width - k, kWidthChunk), a + (k / kPanel<T> * task_rows + r0) * kPanel<T>,
                                   task_rows * kPanel<T>, b + k * kPanel<T>, s, k > 0});
      }
    }
  }

  void accumulate_rows(const T* block, int64_t panel_rows, int64_t rows, int64_t c, T* out) {
    const int64_t j0 = c * kBlockColumns, depth = at_most(q.columns - j0, kBlockColumns);
    for (int64_t w = 0; w < width_panels; ++w) {
      for (int64_t i = 0; i < tiles_of(rows); ++i) {
        const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
        tile_for<T, false>(r1 - r0, q.width - w * kPanel<T>)({depth, block + r0 * kPanel<T>, panel_rows * kPanel<T>,
                                                              b_panels + (w * q.columns + j0) * kPanel<T>,
                                                              out + (w * task_rows + r0) * kPanel<T>, c > 0});
      }
    }
  }

  // Turns one row's similarities with a block of columns (panels `step` apart) into E, and brings the row's state
  // and its part of O (panels task_rows high) to the new maximum.
  void absorb(int64_t r, int64_t c, int64_t p0, int64_t panels, T* s, int64_t step, T* out) {
    const int64_t row = first + r, positive = positive_of(row);
    RowState<T>& state_r = state[r];
    if (positive == kIgnore) {
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t j = 0; j < kPanel<T>; ++j) s[p * step + j] = 0;
      if (need_column) factor[c * stripe + r] = 0;
      return;
    }
    const T old = state_r.m;
    mask(row, positive, p0, panels, s, step, state_r);
    Vec<T> greatest = broadcast(-T(__builtin_inff()));
    for (int64_t p = 0; p < panels; ++p)
      for (int v = 0; v < 2; ++v) greatest = maximum<T>(greatest, load(s + p * step + v * kLanes<T>));
    const T block_max = horizontal_max<T>(greatest) * state_r.inverse_tau;
    if (block_max > state_r.negative) state_r.negative = block_max;
    if (block_max > state_r.m) state_r.m = block_max;
    if (state_r.m > old) rescale(state_r, old, c > 0 ? out : nullptr);
    exponentials(state_r, panels, s, step);
    if (need_column) factor[c * stripe + r] = state_r.m;
  }

  // Reads the positive's logit, and takes it, the row's own group and the padding out of the similarities.
  void mask(int64_t row, int64_t positive, int64_t p0, int64_t panels, T* s, int64_t step, RowState<T>& state_r) {
    const T minus_infinity = -__builtin_inff();
    const int64_t j0 = p0 * kPanel<T>, padded = panels * kPanel<T>, count = at_most(q.columns - j0, padded);
    auto at = [&](int64_t j) -> T& { return s[j / kPanel<T> * step + j % kPanel<T>]; };
    if (positive >= j0 && positive < j0 + count) {
      state_r.positive = at(positive - j0) * state_r.inverse_tau;
      if (state_r.positive > state_r.m) state_r.m = state_r.positive;
      at(positive - j0) = state_r.positive == state_r.positive ? minus_infinity : state_r.positive;  // keep a NaN
    }
    if (q.row_group != nullptr)
      for (int64_t j = 0; j < count; ++j)
        if (q.column_group[j0 + j] == q.row_group[row]) at(j) = minus_infinity;
    for (int64_t j = count; j < padded; ++j) at(j) = minus_infinity;
  }

  void rescale(RowState<T>& state_r, T old, T* out) {
    const T shrink = exponential(old - state_r.m);
    if (need_weighted && old > -T(__builtin_inff()))
      state_r.weighted = shrink * (state_r.weighted + state_r.l * (old - state_r.m));
    state_r.l *= shrink;
    if (out == nullptr) return;
    for (int64_t w = 0; w < width_panels; ++w)
      for (int v = 0; v < 2; ++v) {
        T* o = out + w * task_rows * kPanel<T> + v * kLanes<T>;
        store<T>(o, load(o) * shrink);
      }
  }

  void exponentials(RowState<T>& state_r, int64_t panels, T* s, int64_t step) {
    const T m = state_r.m == -T(__builtin_inff()) ? 0 : state_r.m;  // all masked so far
    const T inverse_tau = state_r.inverse_tau;
    Vec<T> total = state_r.l, weighted = state_r.weighted;
    for (int64_t p = 0; p < panels; ++p)
      for (int v = 0; v < 2; ++v) {
        T* at = s + p * step + v * kLanes<T>;
        const Vec<T> z = load(at) * inverse_tau - m;
        const Vec<T> x = exp_nonpositive<T>(z);
        store<T>(at, x);
        total += x;
        if (need_weighted) weighted += x == 0 ? Vec<T>{} : x * z;
      }
    state_r.l = total;
    state_r.weighted = weighted;
  }

  static T exponential(T x) {
    if constexpr (sizeof(T) == 4)
      return __builtin_expf(x);
    else
      return __builtin_exp(x);
  }
  static T log1p(T x) {
    if constexpr (sizeof(T) == 4)
      return __builtin_log1pf(x);
    else
      return __builtin_log1p(x);
  }

  // log(1 + l exp(m - z)), l the sum over the negatives and z <= m the positive's logit.
  static T loss_of(T l, T m, T z) {
    const T gap = m - z;
    if (gap < 20) return log1p(l * exponential(gap));
    return gap + log1p(l - 1 + exponential(-gap));
  }

  void finish_row(int64_t r, T* out) {
    const int64_t row = first + r, positive = positive_of(row);
    const RowState<T>& s = state[r];
    const bool ignored = positive == kIgnore;
    const T e_positive = ignored ? 0 : exponential(s.positive - s.m);
    const T l_negative = ignored ? 0 : horizontal_sum<T>(s.l), l = ignored ? 1 : l_negative + e_positive;
    const T weighted = need_weighted ? horizontal_sum<T>(s.weighted) : 0;
    const T slope = ignored ? 0 : q.coefficient[row] * s.inverse_tau / l;
    q.loss[row] = ignored ? 0 : loss_of(l_negative, s.m, s.positive);
    q.lse[row] = ignored ? 0 : s.positive + q.loss[row];
    q.positive_logit[row] = s.positive;
    if (q.top1 != nullptr) q.top1[row] = !ignored && s.positive > s.negative;
    if (q.entropy != nullptr) {
      const T z = e_positive > 0 ? e_positive * (s.positive - s.m) : 0;
      q.entropy[row] = ignored ? 0 : log1p(l - 1) - (weighted + z) / l;
    }
    positive_entry[r] = -l_negative;
    if (need_row) finish_row_gradient(row, ignored, slope, l_negative, ignored ? 0 : positive, out);
    if (q.d_tau != nullptr) {
      const T from_sums = -slope * (weighted - l_negative * (s.positive - s.m));
      q.d_tau[row] = ignored ? 0 : need_row ? tau_gradient(row) : from_sums;
    }
    if (need_column) {
      for (int64_t c = 0; c < column_blocks; ++c) {
        T& f = factor[c * stripe + r];
        f = ignored || f == s.m ? 1 : exponential(f - s.m);
      }
      scale_into_strips(r, row, ignored, slope);
    }
  }

  void finish_row_gradient(int64_t row, bool ignored, T slope, T l, int64_t positive, const T* out) {
    T* d = q.d_row + row * q.width;
    const T* b = q.b + positive * q.width;
    for (int64_t k = 0; k < q.width; ++k) {
      const T o = out[k / kPanel<T> * task_rows * kPanel<T> + k % kPanel<T>];
      d[k] = ignored ? 0 : slope * (o - l * b[k]);
    }
  }

  T tau_gradient(int64_t row) const {  // -(a . d_row) / tau
    T dot = 0;
    for (int64_t k = 0; k < q.width; ++k) dot += q.a[row * q.width + k] * q.d_row[row * q.width + k];
    return -dot / q.tau[row];
  }

  void scale_into_strips(int64_t r, int64_t row, bool ignored, T slope) {
    for (int64_t i = 0; i < width_tiles; ++i) {
      const int64_t k0 = tile_begin(q.width, i), k1 = tile_begin(q.width, i + 1);
      T* to = scaled_a + (i * stripe + r) * kStrip;
      for (int64_t k = k0; k < k1; ++k) to[k - k0] = ignored ? 0 : slope * q.a[row * q.width + k];
    }
  }

  // --- column phase --------------------------------------------------------------------------------------------

  void accumulate_column_panel(int64_t p) {
    T* panel = e + p * stripe * kPanel<T>;
    const T* factor_p = factor + p / kBlockPanels<T> * stripe;
    for (int64_t r = 0; r < height; ++r) {
      T* x = panel + r * kPanel<T>;
      if (factor_p[r] != 1)
        for (int v = 0; v < 2; ++v) store<T>(x + v * kLanes<T>, load(x + v * kLanes<T>) * factor_p[r]);
      const int64_t j = positive_of(first + r) - p * kPanel<T>;
      if (j >= 0 && j < kPanel<T>) x[j] = positive_entry[r];
    }
    for (int64_t r0 = 0; r0 < height; r0 += kDepthChunk) {
      const int64_t depth = at_most(height - r0, kDepthChunk);
      for (int64_t i = 0; i < width_tiles; ++i) {
        const int64_t k0 = tile_begin(q.width, i), k1 = tile_begin(q.width, i + 1);
        tile_for<T, true>(k1 - k0, kPanel<T>)({depth, scaled_a + (i * stripe + r0) * kStrip, 0, panel + r0 * kPanel<T>,
                                               d_column + (p * q.width + k0) * kPanel<T>, first + r0 > 0});
      }
    }
  }

  void unpack_column_panel(int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(q.columns - j0, kPanel<T>);
    const T* in = d_column + p * q.width * kPanel<T>;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t k = 0; k < q.width; ++k) q.d_column[(j0 + j) * q.width + k] = in[k * kPanel<T> + j];
  }
};

// Cuts [0, n) into at most `threads` runs and gives each to a thread: body(sweep, task, begin, end).
template <class T, class Body>
void in_parallel(Sweep<T>& sweep, int64_t n, Parallel parallel, Body body) {
  struct Context {
    Sweep<T>* sweep;
    int64_t n, tasks;
    Body* body;
  } context{&sweep, n, at_most(parallel.threads, n), &body};
  parallel.run(
      context.tasks,
      [](void* opaque, int64_t task) {
        const FlushDenormals guard;
        const Context& c = *static_cast<Context*>(opaque);
        (*c.body)(*c.sweep, task, c.n* task / c.tasks, c.n * (task + 1) / c.tasks);
      },
      &context);
}

template <class T>
size_t workspace_bytes(const InfoNCEProblem<T>& problem, int64_t threads) {
  return Sweep<T>(problem, threads, nullptr).bytes;
}

template <class T>
void run_infonce(const InfoNCEProblem<T>& problem, void* workspace, Parallel parallel) {
  Sweep<T> sweep(problem, parallel.threads, static_cast<char*>(workspace));
  const auto each_panel = [&](auto work) {
    in_parallel(sweep, sweep.column_panels, parallel, [work](Sweep<T>& s, int64_t, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) work(s, p);
    });
  };
  each_panel([](Sweep<T>& s, int64_t p) { s.pack_column_panel(p); });
  for (int64_t first = 0; first < problem.rows; first += sweep.stripe) {
    sweep.first = first;
    sweep.height = at_most(problem.rows - first, sweep.stripe);
    in_parallel(sweep, sweep.height, parallel,
                [](Sweep<T>& s, int64_t task, int64_t begin, int64_t end) { s.sweep_rows(task, begin, end); });
    if (sweep.need_column) each_panel([](Sweep<T>& s, int64_t p) { s.accumulate_column_panel(p); });
  }
  if (sweep.need_column) each_panel([](Sweep<T>& s, int64_t p) { s.unpack_column_panel(p); });
}

InfoNCEKernel<float> infonce_f32() { return {workspace_bytes<float>, run_infonce<float>}; }
InfoNCEKernel<double> infonce_f64() { return {workspace_bytes<double>, run_infonce<double>}; }
