// Adaptive InfoNCE in both directions, where row r and column r are each other's positive, with four products instead
// of the six of two sweeps (softmax.inl): S serves the rows' softmax and that of the columns. With the columns' values
// marked ', and both losses of row r weighing scale_r / 2,
//
//   W_rj         = weight_r p_rj + weight'_j p'_jr,  weight = scale / (2 tau l)
//   W_rr         = -(weight_r l_negative_r + weight'_r l_negative'_r)
//   d_anchors    = W B
//   d_candidates = W^T A
//   d_tau_r      = -scale_r / (2 tau_r l_r) sum_j p_rj (z_rj - z_rr), over the negatives; d_tau'_j likewise
//
// First pass, for blocks of rows: S, from which each row's m and l follow, and each column's so far. A thread keeps its
// own m and l of the columns, which are joined in the order of the threads. Second pass: S again, to the bit; W takes
// its place; then the row and the column phase of fma.inl. No B x B matrix is stored, only a block of rows of W.
//
// Scaling. Scores are never divided before their difference, and p is at most 2^max_offset, as in softmax.inl.
// weight_unit, a power of 2, brings the largest scale / (2 tau) near 1: its op (op.cpp) takes two sweeps where
// the others are so much smaller that W would underflow. candidate_power and anchor_power bring the largest |b| and |a|
// into [2^-40, 2^40]. The results are formed in double.
#pragma once

#include "cpu/infonce/fma.inl"

constexpr int kTileM = 96;  // rows of S in cache at a time

// Of the rows, or of the columns.
template <class T>
struct Softmaxes {
  T* m;                   // the score that p is relative to
  T* softmax_scale_log2;  // log2(e) / tau
  T* l_negative;          // sum of p over the negatives
  T* weight;              // weight_unit scale / (2 tau l)
  double* gap;            // (m - the positive's score) / tau

  void take(Arena& arena, int64_t count) {
    arena.take(count, m), arena.take(count, softmax_scale_log2), arena.take(count, l_negative);
    arena.take(count, weight), arena.take(count, gap);
  }
};

template <class T>
struct SymmetricSweep : FmaSweep<T, Sweep<T, 1, SymmetricProblem<T>>> {
  using Base = FmaSweep<T, Sweep<T, 1, SymmetricProblem<T>>>;
  using Base::acc_of, Base::arena, Base::block_m, Base::candidate_power, Base::column_blocks, Base::column_panels;
  using Base::d_candidates, Base::first, Base::height, Base::kBlockPanels, Base::need_d_anchors;
  using Base::need_d_candidates, Base::probs, Base::probs_rows, Base::q, Base::state, Base::task_anchors;
  using Base::task_probs, Base::task_rows, Base::threads, Base::width_panels;

  int64_t padded;            // columns, of whole panels
  bool need_tau;             // the gradient of a temperature
  Softmaxes<T> row, column;  // [B], [padded]
  T* positive_score;         // [B]
  T *task_m, *task_l;        // [threads][padded] of the columns, over the negatives among a thread's rows
  T* task_sum_wz;            // [threads][padded] sum of weight p z, z = log2(p), as row_sum_wz
  double* row_sum_wz;        // [B]
  T anchor_power = 1;        // what the anchors of W^T A are multiplied by

  SymmetricSweep(const SymmetricProblem<T>& problem, int64_t thread_count, char* base)
      : Base(problem, thread_count, base) {
    this->need_sum_pz = false;
    need_tau = q.d_tau != nullptr || q.d_tau_column != nullptr;
    padded = column_panels * kPanel<T>;
    row.take(arena, q.rows);
    column.take(arena, padded);
    arena.take(q.rows, positive_score);
    arena.take(threads * padded, task_m);
    arena.take(threads * padded, task_l);
    arena.take(need_tau ? threads * padded : 0, task_sum_wz);
    arena.take(need_tau ? q.rows : 0, row_sum_wz);
  }

  // The rows' share of a block of S: W takes its place in the second pass.
  T* block_of(int64_t task, int64_t begin, int64_t p0) const {
    return need_d_candidates ? probs + (p0 * probs_rows + begin) * kPanel<T>
                             : task_probs + task * kBlockPanels * probs_rows * kPanel<T>;
  }

  // body(r0, rows, a) over tiles of the rows [begin, end) of the block, whose anchors stand in panels at a.
  template <class Body>
  void over_tiles(int64_t task, int64_t begin, int64_t end, Body body) {
    T* a = task_anchors + task * width_panels * task_rows * kPanel<T>;
    this->copy_to_panels(q.anchors + (first + begin) * q.width, end - begin, a, task_rows, 1);
    const int64_t rows = end - begin, tiles = ceil_div(rows, kTileM);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t r0 = rows * i / tiles;
      body(begin + r0, rows * (i + 1) / tiles - r0, a + r0 * kPanel<T>);
    }
  }

  void start_columns(int64_t p) {
    for (int64_t j = p * kPanel<T>; j < (p + 1) * kPanel<T>; ++j) {
      column.softmax_scale_log2[j] = j < q.columns ? Base::scale_log2_of(q.tau_column[j]) : T(1);
      for (int64_t task = 0; task < threads; ++task) {
        task_m[task * padded + j] = -T(__builtin_inff());
        task_l[task * padded + j] = 0;
        if (need_tau) task_sum_wz[task * padded + j] = 0;
      }
    }
  }

  void measure_rows(int64_t task, int64_t begin, int64_t end) {
    this->start_rows(begin, end);
    over_tiles(task, begin, end, [&](int64_t r0, int64_t rows, const T* a) {
      for (int64_t c = 0; c < column_blocks; ++c) {
        const int64_t p0 = c * kBlockPanels, panels = at_most(column_panels - p0, kBlockPanels);
        T* block = block_of(task, r0, 0);
        this->scores(a, rows, p0, panels, block);
        for (int64_t r = 0; r < rows; ++r)
          this->template to_probs<false>(r0 + r, p0, panels, block + r * kPanel<T>, probs_rows * kPanel<T>, nullptr);
        for (int64_t p = 0; p < panels; ++p)
          measure_columns(task * padded + (p0 + p) * kPanel<T>, (p0 + p) * kPanel<T>,
                          block + p * probs_rows * kPanel<T>, rows);
      }
      for (int64_t r = r0; r < r0 + rows; ++r) finish_row(r);
    });
  }

  // Brings the m and l of a panel of columns, at `at` among the threads', up to date with `rows` rows of masked scores.
  void measure_columns(int64_t at, int64_t j, const T* s, int64_t rows) {
    constexpr int kChains = 2;
    for (int v = 0; v < 2; ++v, at += kLanes<T>, j += kLanes<T>, s += kLanes<T>) {
      const Vec<T> old = load(task_m + at), scale_log2 = load(column.softmax_scale_log2 + j);
      Vec<T> most[kChains] = {old, old}, l[kChains] = {};
      over_chains<kChains>(rows, [&](int i, int64_t r) { most[i] = maximum<T>(most[i], load(s + r * kPanel<T>)); });
      const Vec<T> m = maximum<T>(most[0], most[1]);
      const Vec<T> center = m == -T(__builtin_inff()) ? Vec<T>{} : m;  // all masked so far
      over_chains<kChains>(
          rows, [&](int i, int64_t r) { l[i] += exp2_of<T>((load(s + r * kPanel<T>) - center) * scale_log2); });
      store<T>(task_l + at, load(task_l + at) * exp2_of<T>((old - center) * scale_log2) + (l[0] + l[1]));
      store<T>(task_m + at, m);
    }
  }

  template <int kChains, class Body>
  static void over_chains(int64_t rows, Body body) {
    int64_t r = 0;
    for (; r + kChains <= rows; r += kChains)
      for (int i = 0; i < kChains; ++i) body(i, r + i);
    for (; r < rows; ++r) body(0, r);
  }

  void finish_row(int64_t r) {
    const RowState<T>& s = state[r];
    const int64_t i = first + r;
    positive_score[i] = s.positive_score;
    row.softmax_scale_log2[i] = s.softmax_scale_log2;
    q.loss[i] = finish(row, i, s.m, horizontal_sum<T>(s.l), q.tau[i]);
  }

  // Joins what the threads found, and adds the columns' losses to the rows'.
  void finish_columns(int64_t p) {
    for (int64_t j = p * kPanel<T>; j < (p + 1) * kPanel<T>; ++j) {
      if (j >= q.columns) {  // padding
        column.m[j] = column.weight[j] = 0;
        continue;
      }
      T m = task_m[j], l = 0;
      for (int64_t task = 1; task < threads; ++task) m = Base::larger(task_m[task * padded + j], m);
      const T scale_log2 = column.softmax_scale_log2[j], positive = positive_score[j];
      if ((positive - m) * scale_log2 > kMaxOffset) m = positive;  // as in to_probs
      for (int64_t task = 0; task < threads; ++task)
        l += task_l[task * padded + j] * Base::exp2((task_m[task * padded + j] - m) * scale_log2);
      q.loss[j] = T(0.5 * q.loss[j] + 0.5 * finish(column, j, m, l, q.tau_column[j]));
    }
  }

  // The loss of a softmax, from the l over its negatives relative to m, and what W takes of it.
  double finish(Softmaxes<T>& of, int64_t i, T m, T l, T tau) {
    const double grad_scale = 0.5 * double(q.scale[i]) / tau, gap = (double(m) - positive_score[i]) / tau;
    const double inverse_l = 1 / (double(l) + Base::exp2(T(-kLog2E * gap)));
    of.m[i] = m;
    of.gap[i] = gap;
    of.l_negative[i] = l;
    of.weight[i] = grad_scale == 0 ? 0 : T(q.weight_unit * grad_scale * inverse_l);
    return Base::loss_of(l, gap);
  }

  void differentiate_rows(int64_t task, int64_t begin, int64_t end) {
    over_tiles(task, begin, end, [&](int64_t r0, int64_t rows, const T* a) {
      T* acc = need_d_anchors ? acc_of(task) + (r0 - begin) * kPanel<T> : nullptr;
      if (need_tau)
        for (int64_t r = r0; r < r0 + rows; ++r) row_sum_wz[first + r] = 0;
      for (int64_t c = 0; c < column_blocks; ++c) {
        const int64_t p0 = c * kBlockPanels, panels = at_most(column_panels - p0, kBlockPanels);
        T* block = block_of(task, r0, p0);
        this->scores(a, rows, p0, panels, block);
        for (int64_t r = 0; r < rows; ++r)
          (need_tau ? &SymmetricSweep::template to_weights<true>
                    : &SymmetricSweep::template to_weights<false>)(*this, task, first + r0 + r, p0, panels,
                                                                   block + r * kPanel<T>);
        if (need_d_anchors) this->accumulate_rows(block, rows, c, acc);
      }
      for (int64_t r = r0; r < r0 + rows; ++r)
        finish_gradients(r, acc == nullptr ? nullptr : acc + (r - r0) * kPanel<T>);
    });
  }

  // Turns row i's scores with a block of columns into W. A weight of 0 has no gradient, whatever the scores hold.
  template <bool kTau>
  static void to_weights(SymmetricSweep& t, int64_t task, int64_t i, int64_t p0, int64_t panels, T* s) {
    const int64_t step = t.probs_rows * kPanel<T>;
    t.mask(i, i, p0, panels, s, step);
    const T m = t.row.m[i], scale_log2 = t.row.softmax_scale_log2[i];
    const Vec<T> weight = broadcast(t.row.weight[i]), none{};
    const Softmaxes<T>& column = t.column;
    T* sum_wz = kTau ? t.task_sum_wz + task * t.padded : nullptr;
    Vec<T> sum[2] = {};
    for (int64_t p = 0; p < panels; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        T* at = s + p * step + v * kLanes<T>;
        const int64_t j = (p0 + p) * kPanel<T> + v * kLanes<T>;
        const Vec<T> score = load(at), weight_j = load(column.weight + j);
        const Vec<T> z = (score - m) * scale_log2;
        const Vec<T> z_j = (score - load(column.m + j)) * load(column.softmax_scale_log2 + j);
        const Vec<T> x = weight == 0 ? none : exp2_of<T>(z) * weight;
        const Vec<T> y = weight_j == 0 ? none : exp2_of<T>(z_j) * weight_j;
        store<T>(at, x + y);
        if constexpr (kTau) {
          sum[v] += x == 0 ? none : x * z;
          store<T>(sum_wz + j, load(sum_wz + j) + (y == 0 ? none : y * z_j));
        }
      }
    if (kTau) t.row_sum_wz[i] += horizontal_sum<T>(sum[0] + sum[1]);
    if (T* at = Base::find(i, p0, panels, s, step)) *at = T(t.positive_weight(t.row, i) + t.positive_weight(column, i));
  }

  static double positive_weight(const Softmaxes<T>& of, int64_t i) {
    return of.weight[i] == 0 ? 0 : -double(of.weight[i]) * of.l_negative[i];
  }

  void finish_gradients(int64_t r, const T* acc) {
    const int64_t i = first + r;
    if (q.d_tau != nullptr) q.d_tau[i] = d_tau_of(row, i, row_sum_wz[i]);
    if (!need_d_anchors) return;
    const double unscale = 1 / (q.weight_unit * candidate_power);
    T* d = q.d_anchors + i * q.width;
    for (int64_t k = 0; k < q.width; ++k)
      d[k] = T(acc[k / kPanel<T> * task_rows * kPanel<T> + k % kPanel<T>] * unscale);
  }

  T d_tau_of(const Softmaxes<T>& of, int64_t i, double sum_wz) const {
    if (of.weight[i] == 0) return 0;
    return T((positive_weight(of, i) * of.gap[i] - kLn2 * sum_wz) / q.weight_unit);
  }

  void finish_column_gradients(int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(q.columns - j0, kPanel<T>);
    const double unscale = 1 / (q.weight_unit * anchor_power);
    for (int64_t j = 0; j < count; ++j) {
      if (q.d_tau_column != nullptr) {
        double sum = 0;
        for (int64_t task = 0; task < threads; ++task) sum += task_sum_wz[task * padded + j0 + j];
        q.d_tau_column[j0 + j] = d_tau_of(column, j0 + j, sum);
      }
      if (need_d_candidates)
        for (int64_t k = 0; k < q.width; ++k)
          q.d_candidates[(j0 + j) * q.width + k] = T(d_candidates[(p * q.width + k) * kPanel<T> + j] * unscale);
    }
  }

  // body(sweep, task, begin, end) over the rows of each block, then after(sweep).
  template <class Body, class After>
  void over_blocks(Body body, After after) {
    for (first = 0; first < q.rows; first += block_m) {
      height = at_most(q.rows - first, block_m);
      over_rows(*this, body);
      after();
    }
  }

  void run() {
    if (need_d_anchors) {
      over_panels(*this, [](SymmetricSweep& s, int64_t p) { s.measure_column_panel(p); });
      this->choose_candidate_power();
    }
    if (need_d_candidates) anchor_power = Base::power_of(Base::largest(q.anchors, q.rows * q.width));
    over_panels(*this, [](SymmetricSweep& s, int64_t p) { s.pack_column_panel(p), s.start_columns(p); });
    over_blocks([](SymmetricSweep& s, int64_t task, int64_t begin, int64_t end) { s.measure_rows(task, begin, end); },
                [] {});
    over_panels(*this, [](SymmetricSweep& s, int64_t p) { s.finish_columns(p); });
    if (!need_d_anchors && !need_d_candidates && !need_tau) return;
    over_blocks(
        [](SymmetricSweep& s, int64_t task, int64_t begin, int64_t end) {
          s.differentiate_rows(task, begin, end);
          if (s.need_d_candidates)
            for (int64_t r = begin; r < end; ++r) s.scale_into_strips(r, s.anchor_power);
        },
        [this] {
          if (need_d_candidates) over_panels(*this, [](SymmetricSweep& s, int64_t p) { s.multiply_column_panel(p); });
        });
    over_panels(*this, [](SymmetricSweep& s, int64_t p) { s.finish_column_gradients(p); });
  }
};

template <class T>
void run_symmetric(const SymmetricProblem<T>& problem, void* workspace, int64_t threads) {
  SymmetricSweep<T>(problem, threads, static_cast<char*>(workspace)).run();
}
