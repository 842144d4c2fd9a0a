// Adaptive InfoNCE, forward and every gradient, in one pass over stripes of rows and O((B + N) d + stripe * N) memory.
// Included once per instruction set (see vectors.inl).
//
// With e_rj = exp(z_rj) / exp(m_r) over the negatives, l_r their sum plus the positive's, a sweep makes
//   O_r = sum_j e_rj b_j             d_row_r = slope_r / l_r (O_r - l_negative b_y),  slope = coefficient / tau
//   D_j = sum_r e_rj A'_r            A'_r = slope_r / l_r a_r carries every per-row factor
// The positive is left out of l_negative and O, and enters as p - 1 = -l_negative / l, in D as an e of -l_negative, so
// that nothing cancels as p -> 1.
//
// Here stands what does not depend on how the products are made: the softmax of the rows, and the driver. The products
// and their order are fma.inl's (vector units), and bf16_stored.inl's and bf16_recomputed.inl's (bfloat16 tiles).
#pragma once

#include "cpu/simd/arena.inl"
#include "cpu/simd/gemm.inl"

// Rows x columns of a stripe, if that leaves each thread some 64 rows. Against eight times as much, 1,024 rows alone
// take as long, but training steps 0.93 of the time, as tables stay in cache, and 4,096 rows 0.92 (float32, Zen 5).
constexpr int64_t kStripeElements = 512 << 10;
constexpr int64_t kMostElements = 16 << 20;  // in any case: 64 MiB of E in float32
constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;
constexpr int kHeadroom = 58;  // e stays below 2^58

// e = exp(z - m / tau) is computed as 2^((s - m) scale) from similarities s = a . b, with scale = log2(e) / tau: the
// difference comes first, so that equal similarities give exactly 1 however large they are.
template <class T>
struct RowState {
  Vec<T> l, weighted;  // sums over the negatives, by lane, of e and of e log2(e)
  Vec<T> greatest;     // the greatest negative's similarity, by lane
  T m;                 // the similarity that e is relative to: at most `reach` below the greatest so far
  T positive;          // the positive's similarity
  T scale, reach;      // log2(e) / tau; kHeadroom / scale
  T slope, inverse_l;  // once finished: coefficient / tau; 1 / (l of negatives and positive)
};

template <class T, int kRowsOfGroup>
struct Sweep {
  using Scalar = T;
  static constexpr int kGroup = kRowsOfGroup;  // rows are dealt to threads in groups of so many
  const InfoNCEProblem<T>& q;
  int64_t threads, stripe, task_rows;  // rows of a stripe, and of one thread's share of it (multiples of kGroup)
  int64_t column_panels, width_panels;
  bool need_row, need_column, need_weighted;
  Arena arena;
  RowState<T>* state;      // [stripe]
  T* positive_entry;       // [stripe] what E holds at the positive, -l_negative
  T *task_out, *d_column;  // per thread [width_panels][task_rows][kPanel]; [column_panels][d][kPanel]
  int64_t d_column_rows;   // d, rounded up as the products need
  int64_t first, height;   // the present stripe

  Sweep(const InfoNCEProblem<T>& problem, int64_t thread_count, char* base, int64_t width_multiple)
      : q(problem), threads(thread_count), arena{base} {
    need_row = q.d_row != nullptr, need_column = q.d_column != nullptr;
    need_weighted = q.entropy != nullptr || (q.d_tau != nullptr && !need_row);
    const int64_t few = at_least(256, 64 * threads), many = at_least(1024, 64 * threads);
    const int64_t bound = at_least(kMostElements / at_least(q.columns, threads * q.width), kGroup);
    const int64_t wanted = at_most(at_most(at_least(kStripeElements / q.columns, few), many), bound);
    const int64_t groups = ceil_div(ceil_div(q.rows, ceil_div(q.rows, wanted)), kGroup);
    stripe = groups * kGroup;
    task_rows = ceil_div(groups, threads) * kGroup;
    column_panels = ceil_div(q.columns, kPanel<T>);
    width_panels = ceil_div(q.width, kPanel<T>);
    d_column_rows = ceil_div(q.width, width_multiple) * width_multiple;
    arena.take(stripe, state);
    arena.take(stripe, positive_entry);
    arena.take(need_row ? threads * width_panels * task_rows * kPanel<T> : 0, task_out);
    arena.take(need_column ? column_panels * d_column_rows * kPanel<T> : 0, d_column);
  }

  int64_t positive_of(int64_t row) const { return q.positive != nullptr ? q.positive[row] : row; }
  T* out_of(int64_t task) const { return need_row ? task_out + task * width_panels * task_rows * kPanel<T> : nullptr; }

  void start_rows(int64_t begin, int64_t end) {
    const T minus_infinity = -__builtin_inff(), most = __FLT_MAX__;    // infinity must be beyond reach
    const T least = sizeof(T) == 4 ? T(__FLT_MIN__) : T(__DBL_MIN__);  // less is flushed to 0: 0 times -infinity
    for (int64_t r = begin; r < end; ++r) {
      const T quotient = T(kLog2E) / q.tau[first + r], scale = quotient > least ? quotient : least;
      const T reach = kHeadroom / scale < most ? kHeadroom / scale : most;
      state[r] =
          RowState<T>{Vec<T>{}, Vec<T>{}, broadcast(minus_infinity), minus_infinity, T(0), scale, reach, T(0), T(1)};
    }
  }

  // Turns one row's similarities with a block of columns (panels `step` apart) into E, and brings the row's state
  // and its part of O (panels task_rows high) to the new maximum. Without kKeepE the similarities stay as they are.
  template <bool kKeepE>
  void absorb(int64_t r, int64_t p0, int64_t panels, T* s, int64_t step, T* out) {
    const int64_t row = first + r, positive = positive_of(row);
    RowState<T>& state_r = state[r];
    if (positive == kIgnore) return clear(panels, s, step);
    const T old = state_r.m;
    if (const T* at = find(positive, p0, panels, s, step)) {
      state_r.positive = *at;
      if (state_r.positive - state_r.m > state_r.reach) state_r.m = state_r.positive;
    }
    hide(row, positive, p0, panels, s, step);
    Vec<T> greatest[4] = {state_r.greatest, state_r.greatest, state_r.greatest, state_r.greatest};
    over_vectors(panels, s, step, [&](int i, T* at) { greatest[i] = maximum<T>(greatest[i], load(at)); });
    state_r.greatest = maximum<T>(maximum<T>(greatest[0], greatest[1]), maximum<T>(greatest[2], greatest[3]));
    // m follows the maximum at a distance, so that it moves once or twice a row instead of whenever a block holds a new
    // maximum; e above 1 is as exact as one below, and far from overflow.
    if (any_above<T>(state_r.greatest - state_r.m, state_r.reach)) state_r.m = horizontal_max<T>(state_r.greatest);
    if (state_r.m > old) rescale(state_r, old, p0 > 0 ? out : nullptr);
    exponentials<kKeepE>(state_r, panels, s, step);
  }

  static void clear(int64_t panels, T* s, int64_t step) {
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t j = 0; j < kPanel<T>; ++j) s[p * step + j] = 0;
  }

  // The row's similarity with column j, if it is one of the `panels` panels from p0 on.
  static T* find(int64_t j, int64_t p0, int64_t panels, T* s, int64_t step) {
    j -= p0 * kPanel<T>;
    return j < 0 || j >= panels * kPanel<T> ? nullptr : s + j / kPanel<T> * step + j % kPanel<T>;
  }

  // Takes the positive, the row's own group and the padding out of the similarities.
  void hide(int64_t row, int64_t positive, int64_t p0, int64_t panels, T* s, int64_t step) const {
    const T minus_infinity = -__builtin_inff();
    T* at = find(positive, p0, panels, s, step);
    if (at != nullptr && *at == *at) *at = minus_infinity;  // a NaN stays
    const int64_t j0 = p0 * kPanel<T>, count = at_most(q.columns - j0, panels * kPanel<T>);
    if (q.row_group != nullptr)
      for (int64_t j = 0; j < count; ++j)
        if (q.column_group[j0 + j] == q.row_group[row]) *find(j0 + j, p0, panels, s, step) = minus_infinity;
    for (int64_t j = count; j < panels * kPanel<T>; ++j) *find(j0 + j, p0, panels, s, step) = minus_infinity;
  }

  void rescale(RowState<T>& state_r, T old, T* out) {
    const T distance = (old - state_r.m) * state_r.scale, shrink = exp2(distance);
    // All of it underflows with l; -infinity times 0 would be NaN.
    if (need_weighted) state_r.weighted = shrink > 0 ? shrink * (state_r.weighted + state_r.l * distance) : Vec<T>{};
    state_r.l *= shrink;
    if (out == nullptr) return;
    for (int64_t w = 0; w < width_panels; ++w)
      for (int v = 0; v < 2; ++v) {
        T* o = out + w * task_rows * kPanel<T> + v * kLanes<T>;
        store<T>(o, load(o) * shrink);
      }
  }

  template <bool kKeepE>
  void exponentials(RowState<T>& state_r, int64_t panels, T* s, int64_t step) {
    const T m = state_r.m == -T(__builtin_inff()) ? 0 : state_r.m;  // all masked so far
    const T scale = state_r.scale;
    Vec<T> total[4] = {state_r.l}, weighted[4] = {state_r.weighted};
    over_vectors(panels, s, step, [&](int i, T* at) {
      const Vec<T> z = (load(at) - m) * scale;
      const Vec<T> x = exp2_of<T>(z);
      if (kKeepE) store<T>(at, x);
      total[i] += x;
      if (need_weighted) weighted[i] += x == 0 ? Vec<T>{} : x * z;
    });
    state_r.l = (total[0] + total[1]) + (total[2] + total[3]);
    state_r.weighted = (weighted[0] + weighted[1]) + (weighted[2] + weighted[3]);
  }

  // body(i, pointer) over a row's vectors; i counts round 0..3, so that sums can run in four independent chains.
  template <class Body>
  static void over_vectors(int64_t panels, T* s, int64_t step, Body body) {
    int64_t p = 0;
    for (; p + 2 <= panels; p += 2) {
      body(0, s + p * step);
      body(1, s + p * step + kLanes<T>);
      body(2, s + (p + 1) * step);
      body(3, s + (p + 1) * step + kLanes<T>);
    }
    if (p == panels) return;
    body(0, s + p * step);
    body(1, s + p * step + kLanes<T>);
  }

  static T exp2(T x) { return sizeof(T) == 4 ? __builtin_exp2f(x) : __builtin_exp2(x); }
  static T log1p(T x) { return sizeof(T) == 4 ? __builtin_log1pf(x) : __builtin_log1p(x); }

  // log(1 + l 2^gap), l the sum over the negatives and -gap the positive's log2(e).
  static T loss_of(T l, T gap) {
    if (gap < 30) return log1p(l * exp2(gap));
    return T(kLn2) * gap + log1p(l - 1 + exp2(-gap));
  }

  // Writes the row's loss and statistics, and what its gradients are scaled by. A row of coefficient 0 has no gradient,
  // whatever it holds.
  void finish_row(int64_t r) {
    const int64_t row = first + r;
    if (positive_of(row) == kIgnore) return ignore_row(r);
    RowState<T>& s = state[r];
    const T gap = (s.m - s.positive) * s.scale, e_positive = exp2(-gap), tau = q.tau[row];
    const T l_negative = horizontal_sum<T>(s.l), l = l_negative + e_positive, log_l = log1p(l - 1);
    s.slope = q.coefficient[row] / tau;
    s.inverse_l = 1 / l;
    q.loss[row] = loss_of(l_negative, gap);
    q.lse[row] = s.m / tau + log_l;
    q.positive_logit[row] = s.positive / tau;
    if (q.top1 != nullptr) q.top1[row] = s.positive > horizontal_max<T>(s.greatest) && l == l;  // no NaN
    positive_entry[r] = -l_negative;
    if (!need_weighted) return;
    const T weighted = T(kLn2) * horizontal_sum<T>(s.weighted), z = -T(kLn2) * gap;
    if (q.entropy != nullptr) q.entropy[row] = log_l - (weighted + (e_positive > 0 ? e_positive * z : 0)) / l;
    if (q.d_tau != nullptr && !need_row)
      q.d_tau[row] = s.slope == 0 ? 0 : -s.slope * ((weighted - l_negative * z) * s.inverse_l);
  }

  void ignore_row(int64_t r) {
    const int64_t row = first + r;
    q.loss[row] = q.lse[row] = q.positive_logit[row] = positive_entry[r] = 0;
    if (q.top1 != nullptr) q.top1[row] = false;
    if (q.entropy != nullptr) q.entropy[row] = 0;
    if (q.d_tau != nullptr) q.d_tau[row] = 0;
  }

  // log2 of what E is multiplied by, and A' = slope / l a is divided by: 0, or about log2(1 / l) where slope / l would
  // come near the smallest normal number though its product with E does not.
  T e_shift(int64_t r) const {
    const T inverse_l = state[r].inverse_l, size = state[r].slope * inverse_l;
    return size > T(1e-20) || size < T(-1e-20) || !(inverse_l > 0) ? 0 : T(__builtin_logb(inverse_l));
  }

  // d_row = slope / l (O - l_negative b_y), and with it d_tau; slope is 0 where the row is ignored or weighs nothing.
  void finish_row_gradient(int64_t r, const T* out) {
    const int64_t row = first + r;
    const T slope = state[r].slope, inverse_l = state[r].inverse_l;
    T* d = q.d_row + row * q.width;
    const T* b = q.b + at_least(positive_of(row), 0) * q.width;
    for (int64_t k = 0; k < q.width; ++k) {
      const T o = out[k / kPanel<T> * task_rows * kPanel<T> + k % kPanel<T>];
      d[k] = slope == 0 ? 0 : slope * ((o + positive_entry[r] * b[k]) * inverse_l);
    }
    if (q.d_tau != nullptr) q.d_tau[row] = slope == 0 ? 0 : tau_gradient(row);
  }

  T tau_gradient(int64_t row) const {  // -(a . d_row) / tau
    T dot = 0;
    for (int64_t k = 0; k < q.width; ++k) dot += q.a[row * q.width + k] * q.d_row[row * q.width + k];
    return -dot / q.tau[row];
  }

  void unpack_column_panel(int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(q.columns - j0, kPanel<T>);
    const T* in = d_column + p * d_column_rows * kPanel<T>;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t k = 0; k < q.width; ++k) q.d_column[(j0 + j) * q.width + k] = in[k * kPanel<T> + j];
  }
};

// Cuts [0, n) into at most `threads` runs and gives each to a thread: body(sweep, task, begin, end).
template <class S, class Body>
void in_parallel(S& sweep, int64_t n, Body body) {
  const int64_t tasks = at_most(sweep.threads, n);
  parallel_for(tasks, 1, [&](int64_t first, int64_t last) {
    const typename S::Guard guard;
    for (int64_t task = first; task < last; ++task) body(sweep, task, n * task / tasks, n * (task + 1) / tasks);
  });
}

// S: a Sweep with its products.
template <class S>
size_t workspace_bytes(const InfoNCEProblem<typename S::Scalar>& problem, int64_t threads) {
  return S(problem, threads, nullptr).arena.used;
}

// body(sweep, task, begin, end) over the stripe's rows, dealt in groups.
template <class S, class Body>
void over_rows(S& sweep, Body body) {
  in_parallel(sweep, ceil_div(sweep.height, S::kGroup), [body](S& s, int64_t task, int64_t begin, int64_t end) {
    body(s, task, begin * S::kGroup, at_most(end * S::kGroup, s.height));
  });
}

// body(sweep, panel) over the panels of columns.
template <class S, class Body>
void over_panels(S& sweep, Body body) {
  in_parallel(sweep, sweep.column_panels, [body](S& s, int64_t, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) body(s, p);
  });
}

template <class S>
void run_infonce(const InfoNCEProblem<typename S::Scalar>& problem, void* workspace, int64_t threads) {
  S sweep(problem, threads, static_cast<char*>(workspace));
  over_panels(sweep, [](S& s, int64_t p) { s.pack_column_panel(p); });
  for (int64_t first = 0; first < problem.rows; first += sweep.stripe) {
    sweep.first = first;
    sweep.height = at_most(problem.rows - first, sweep.stripe);
    sweep.run_stripe();
  }
  if (sweep.need_column) over_panels(sweep, [](S& s, int64_t p) { s.unpack_column_panel(p); });
}

template <class S>
constexpr InfoNCEKernel<typename S::Scalar> kernel_of() {
  return {workspace_bytes<S>, run_infonce<S>};
}
