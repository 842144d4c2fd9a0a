// Adaptive InfoNCE, forward and every gradient, in one pass over blocks of rows and O((B + N) d + block_m * N) memory.
// Included once per instruction set (see vectors.inl). The names are FlashAttention's where it has one:
//
//   a_r, b_j            anchor of row r, candidate of column j
//   s_rj                score: a_r . b_j; S is the matrix of scores
//   m_r                 running maximum of the scores, less max_offset at most
//   p_rj                2^((s_rj - m_r) softmax_scale_log2_r) of a negative, not yet divided by l; P is their matrix
//   l_r                 sum of p_rj over the negatives; once a row is finished, with the positive's term
//   alpha               2^((m_old - m_new) softmax_scale_log2): rescales l and acc when m grows
//   acc_r               sum_j p_rj b_j
//   grad_scale_r        scale_r / tau_r: turns p_rj / l_r into the gradient of s_rj
//
//   d_anchors_r    = grad_scale_r / l_r (acc_r - l_negative b_y)
//   d_candidates_j = sum_r p_rj A'_r, where A'_r = grad_scale_r / l_r a_r carries every factor of the row
//
// The positive is left out of l_negative and acc. It enters as its probability less 1, -l_negative / l, in d_candidates
// as a p of -l_negative, so that nothing cancels where the probability nears 1. With a positive_weight w it enters as
// its probability less w, which is rounded to bfloat16 once: rounded as 1 - p, and 1 - w added afterwards, it would err
// by half a unit of 1 where the sum, as p and w themselves, may be a hundredth.
//
// Scaling. Scores are products of the operands as given: softmax_scale_log2 multiplies differences of scores, and never
// an operand, whose quotient with tau may overflow where the logit does not. Only the second and the third product
// scale an operand. Each takes a copy of it that is made anyway, so their inner loops do not change:
//   P B     candidate_power, a power of 2, brings the largest |b| into [2^-40, 2^40]: up to 2^30 terms of p <= 2^58
//           stay finite. finish_row_gradient undoes it.
//   P^T A'  A' is formed in double, whatever scale / tau is, and exponent_shift moves a power of 2 between P and A'
//           where an entry of A' would overflow or underflow.
// Once per row, the finish of a row is in double too. So a row's results overflow only where its scores, its logits or
// the results themselves do. Denormals count as 0.
//
// Here stands what does not depend on how the products are made: the softmax of the rows. The products and their order
// are fma.inl's (vector units), and bf16_stored.inl's and bf16_recomputed.inl's (bfloat16 tiles); driver.inl deals them
// to threads.
#pragma once

#include "cpu/simd/arena.inl"
#include "cpu/simd/gemm.inl"
#include "cpu/simd/transpose.inl"

// Rows x columns of the present blocks of all threads, if that leaves each enough rows. Against eight times as much,
// 1,024 rows alone take as long, but training steps 0.93 of the time, as tables stay in cache, and 4,096 rows 0.92
// (float32, Zen 5).
constexpr int64_t kBlockElements = 512 << 10;
// Threads that sweep rows of their own take half of that, so that more of a training step's tables stay in cache: 0.97
// of its time at 1,024 x 64 in float32 (Zen 5). With more numbers in d_candidates, which every block passes over,
// smaller blocks cost more: 1.15 of the time of the loss at 8,192 x 128.
constexpr int64_t kFewCandidateElements = 128 << 10;
constexpr int64_t kMaxBlockElements = 16 << 20;  // in any case: 64 MiB of P in float32
constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;
constexpr int kMaxOffset = 58;      // p is at most 2^58
constexpr int kCandidateBits = 40;  // candidates between 2^-40 and 2^40 need no candidate_power

// Of one row. In (s - m) softmax_scale_log2 the difference comes first, so that equal scores give exactly 1 however
// large they are.
template <class T>
struct RowState {
  Vec<T> l, sum_pz;                  // sums over the negatives, by lane, of p and of p z, with z = log2(p)
  Vec<T> max_negative;               // the largest score of a negative, by lane
  T m;                               // the score that p is relative to: at most max_offset below the largest so far
  T positive_score;                  // less the margin
  T ignore_above;                    // a score above it is no negative's
  T softmax_scale_log2, max_offset;  // log2(e) / tau; kMaxOffset in units of the score
  double grad_scale;                 // once finished: scale / tau, beyond the range of float for an extreme tau
  T inverse_l;                       // once finished: 1 / (l of negatives and positive)
};

template <class T, int kRowsOfGroup, class ProblemOfLoss = InfoNCEProblem<T>>
struct Sweep {
  using Problem = ProblemOfLoss;
  static constexpr int kGroup = kRowsOfGroup;  // rows are dealt to threads in groups of so many
  static constexpr bool kSharesProbs = true;   // the threads of a block read each other's P
  const Problem& q;
  int64_t threads, block_m, task_rows;  // rows of a block, and of one thread's share of it (multiples of kGroup)
  int64_t column_panels, width_panels;
  bool need_d_anchors, need_d_candidates, need_sum_pz;
  bool d_tau_from_sums;  // from sum_pz, not from the row's gradient
  Arena arena;
  RowState<T>* state;          // [block_m]
  T* panel_max;                // [column_panels] the largest |b| of a panel
  T candidate_power = 1;       // what the candidates of P B are multiplied by
  T* positive_p;               // [block_m] what P holds at the positive, -l_negative or (1 - w) l - l_negative
  T *task_acc, *d_candidates;  // per thread [width_panels][task_rows][kPanel]; [column_panels][d][kPanel]
  int64_t d_padded;            // d, rounded up as the products need
  int64_t first, height;       // the present block: its first row, its number of rows

  Sweep(const Problem& problem, int64_t thread_count, char* base, int64_t width_multiple)
      : q(problem), threads(thread_count), arena{base} {
    need_d_anchors = q.d_anchors != nullptr, need_d_candidates = q.d_candidates != nullptr;
    d_tau_from_sums = q.d_tau != nullptr && !need_d_anchors;
    need_sum_pz = q.entropy != nullptr || d_tau_from_sums;
    const int64_t cut = q.sweeps > 1 && q.columns * q.width <= kFewCandidateElements ? 2 : 1;
    const int64_t few = few_rows(threads) / cut, many = at_least(1024, 64 * threads);
    const int64_t bound = at_least(kMaxBlockElements / at_least(q.columns, threads * q.width), kGroup);
    const int64_t wanted = at_most(at_most(at_least(kBlockElements / (q.columns * q.sweeps * cut), few), many), bound);
    const int64_t groups = ceil_div(ceil_div(q.rows, ceil_div(q.rows, wanted)), kGroup);
    block_m = groups * kGroup;
    task_rows = ceil_div(groups, threads) * kGroup;
    column_panels = ceil_div(q.columns, kPanel<T>);
    width_panels = ceil_div(q.width, kPanel<T>);
    d_padded = ceil_div(q.width, width_multiple) * width_multiple;
    arena.take(block_m, state);
    arena.take(block_m, positive_p);
    arena.take(need_d_anchors ? column_panels : 0, panel_max);
    arena.take(need_d_anchors ? threads * width_panels * task_rows * kPanel<T> : 0, task_acc);
    arena.take(need_d_candidates ? column_panels * d_padded * kPanel<T> : 0, d_candidates);
  }

  // The rows of a block, if there are so many, where the columns are too many for kBlockElements.
  static int64_t few_rows(int64_t threads) { return at_least(256, 64 * threads); }

  int64_t positive_of(int64_t row) const { return q.positive != nullptr ? q.positive[row] : row + q.diagonal; }
  T* acc_of(int64_t task) const {
    return need_d_anchors ? task_acc + task * width_panels * task_rows * kPanel<T> : nullptr;
  }

  static T larger(T x, T y) { return x > y ? x : y; }  // y where x is NaN
  static double smaller(double x, double y) { return x < y ? x : y; }

  static T largest(const T* x, int64_t count) {  // |x|, 0 where all are NaN
    Vec<T> most{};
    int64_t k = 0;
    for (; k + kLanes<T> <= count; k += kLanes<T>) {
      const Vec<T> v = load(x + k);
      most = maximum<T>(maximum<T>(most, v), -v);
    }
    T result = horizontal_max<T>(most);
    for (; k < count; ++k) result = larger(larger(x[k], -x[k]), result);
    return result;
  }

  void measure_column_panel(int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(q.columns - j0, kPanel<T>);
    panel_max[p] = largest(q.candidates + j0 * q.width, count * q.width);
  }

  void choose_candidate_power() { candidate_power = power_of(largest(panel_max, column_panels)); }

  static T power_of(T most) {
    if (!(most > 0 && most < T(__builtin_inff()))) return 1;
    const double bits = __builtin_logb(most), most_bits = smaller(bits, kCandidateBits);
    return T(__builtin_exp2((most_bits > -kCandidateBits ? most_bits : -kCandidateBits) - bits));
  }

  static T scale_log2_of(T tau) {
    const T least = sizeof(T) == 4 ? T(__FLT_MIN__) : T(__DBL_MIN__);  // less is flushed to 0: 0 times -infinity
    return larger(T(kLog2E) / tau, least);
  }

  void start_rows(int64_t begin, int64_t end) {
    const T minus_infinity = -__builtin_inff(), most = __FLT_MAX__;  // infinity must be beyond max_offset
    for (int64_t r = begin; r < end; ++r) {
      const T softmax_scale_log2 = scale_log2_of(q.tau[first + r]);
      const T max_offset = kMaxOffset / softmax_scale_log2 < most ? kMaxOffset / softmax_scale_log2 : most;
      state[r] = RowState<T>{Vec<T>{},
                             Vec<T>{},
                             broadcast(minus_infinity),
                             minus_infinity,
                             T(0),
                             -minus_infinity,
                             softmax_scale_log2,
                             max_offset,
                             0,
                             T(1)};
    }
  }

  bool ignores() const { return q.ignore_above < T(__builtin_inff()); }

  // score_of(r, y): the score of row r with its positive, to the bit as in S, so that equal scores tie.
  template <class ScoreOf>
  void set_ignore_above(int64_t begin, int64_t end, ScoreOf score_of) {
    if (!ignores()) return;
    for (int64_t r = begin; r < end; ++r)
      if (const int64_t y = positive_of(first + r); y != kIgnore)
        state[r].ignore_above = score_of(r, y) + q.ignore_above;
  }

  // Turns one row's scores with a block of columns (panels `step` apart) into P, and brings the row's state
  // and its part of acc (panels task_rows high) to the new maximum. Without kStoreProbs the scores stay as they are.
  template <bool kStoreProbs>
  void to_probs(int64_t r, int64_t p0, int64_t panels, T* s, int64_t step, T* acc) {
    const int64_t row = first + r, positive = positive_of(row);
    RowState<T>& state_r = state[r];
    if (positive == kIgnore) return clear(panels, s, step);
    const T old = state_r.m;
    if (const T* at = find(positive, p0, panels, s, step)) {
      state_r.positive_score = *at - q.margin;
      if (state_r.positive_score - state_r.m > state_r.max_offset) state_r.m = state_r.positive_score;
    }
    mask(row, positive, p0, panels, s, step);
    Vec<T> max_negative[4] = {state_r.max_negative, state_r.max_negative, state_r.max_negative, state_r.max_negative};
    over_vectors(panels, s, step, [&](int i, T* at) { max_negative[i] = maximum<T>(max_negative[i], load(at)); });
    state_r.max_negative =
        maximum<T>(maximum<T>(max_negative[0], max_negative[1]), maximum<T>(max_negative[2], max_negative[3]));
    // m follows the maximum at a distance, so that it moves once or twice a row instead of whenever a block holds a new
    // maximum; a p above 1 is as exact as one below, and far from overflow.
    if (any_above<T>(state_r.max_negative - state_r.m, state_r.max_offset))
      state_r.m = horizontal_max<T>(state_r.max_negative);
    if (state_r.m > old) rescale_acc(state_r, old, p0 > 0 ? acc : nullptr);
    if (need_sum_pz)
      exponentials<kStoreProbs, true>(state_r, panels, s, step);
    else
      exponentials<kStoreProbs, false>(state_r, panels, s, step);
  }

  static void clear(int64_t panels, T* s, int64_t step) {
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t j = 0; j < kPanel<T>; ++j) s[p * step + j] = 0;
  }

  // The row's score with column j, if it is one of the `panels` panels from p0 on.
  static T* find(int64_t j, int64_t p0, int64_t panels, T* s, int64_t step) {
    j -= p0 * kPanel<T>;
    return j < 0 || j >= panels * kPanel<T> ? nullptr : s + j / kPanel<T> * step + j % kPanel<T>;
  }

  // Masks the positive, the row's own group, what is far more similar than the positive, and the padding.
  void mask(int64_t row, int64_t positive, int64_t p0, int64_t panels, T* s, int64_t step) const {
    const T minus_infinity = -__builtin_inff();
    T* at = find(positive, p0, panels, s, step);
    if (at != nullptr && *at == *at) *at = minus_infinity;  // a NaN stays
    const int64_t j0 = p0 * kPanel<T>, count = at_most(q.columns - j0, panels * kPanel<T>);
    if (q.row_group != nullptr)
      for (int64_t j = 0; j < count; ++j)
        if (q.column_group[j0 + j] == q.row_group[row]) *find(j0 + j, p0, panels, s, step) = minus_infinity;
    if (const T bound = state[row - first].ignore_above; ignores())
      over_vectors(panels, s, step, [&](int, T* at) {
        const Vec<T> score = load(at);
        store<T>(at, score > bound ? broadcast(minus_infinity) : score);
      });
    for (int64_t j = count; j < panels * kPanel<T>; ++j) *find(j0 + j, p0, panels, s, step) = minus_infinity;
  }

  void rescale_acc(RowState<T>& state_r, T old, T* acc) {
    const T log2_alpha = (old - state_r.m) * state_r.softmax_scale_log2, alpha = exp2(log2_alpha);
    // All of it underflows with l; -infinity times 0 would be NaN.
    if (need_sum_pz) state_r.sum_pz = alpha > 0 ? alpha * (state_r.sum_pz + state_r.l * log2_alpha) : Vec<T>{};
    state_r.l *= alpha;
    if (acc == nullptr) return;
    for (int64_t w = 0; w < width_panels; ++w)
      for (int v = 0; v < 2; ++v) {
        T* o = acc + w * task_rows * kPanel<T> + v * kLanes<T>;
        store<T>(o, load(o) * alpha);
      }
  }

  template <bool kStoreProbs, bool kSumPz>
  static void exponentials(RowState<T>& state_r, int64_t panels, T* s, int64_t step) {
    const T m = state_r.m == -T(__builtin_inff()) ? 0 : state_r.m;  // all masked so far
    const T softmax_scale_log2 = state_r.softmax_scale_log2;
    Vec<T> l[4] = {state_r.l}, sum_pz[4] = {state_r.sum_pz};
    over_vectors(panels, s, step, [&](int i, T* at) {
      const Vec<T> z = (load(at) - m) * softmax_scale_log2;
      const Vec<T> x = exp2_of<T>(z);
      if (kStoreProbs) store<T>(at, x);
      l[i] += x;
      if (kSumPz) sum_pz[i] += x == 0 ? Vec<T>{} : x * z;
    });
    state_r.l = (l[0] + l[1]) + (l[2] + l[3]);
    state_r.sum_pz = (sum_pz[0] + sum_pz[1]) + (sum_pz[2] + sum_pz[3]);
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

  // log(1 + l e^gap), l the sum over the negatives and -gap the positive's log(p).
  static T loss_of(T l, double gap) {
    const T gap_log2 = T(kLog2E * gap);
    if (gap_log2 < 30) return log1p(l * exp2(gap_log2));
    return T(gap + log1p(l - 1 + exp2(-gap_log2)));
  }

  // Writes the row's loss and statistics, and what its gradients are scaled by. A row of scale 0 has no gradient,
  // whatever it holds.
  void finish_row(int64_t r) {
    const int64_t row = first + r;
    if (positive_of(row) == kIgnore) return ignore_row(r);
    RowState<T>& s = state[r];
    // In double and in natural units: times log2(e), a gap may overflow that is finite.
    const T tau = q.tau[row];
    const double gap = (double(s.m) - double(s.positive_score)) / tau;
    const T p_positive = exp2(T(-kLog2E * gap));
    const T l_negative = horizontal_sum<T>(s.l), l = l_negative + p_positive, log_l = log1p(l - 1);
    s.grad_scale = double(q.scale[row]) / tau;
    s.inverse_l = 1 / l;
    q.loss[row] = loss_of(l_negative, gap);
    q.lse[row] = s.m / tau + log_l;
    q.positive_logit[row] = s.positive_score / tau;
    if (q.top1 != nullptr) q.top1[row] = s.positive_score > horizontal_max<T>(s.max_negative) && l == l;  // no NaN
    const double other_weight = q.positive_weight == nullptr ? 0 : 1 - double(q.positive_weight[row]);
    positive_p[r] = T(other_weight * l - l_negative);
    if (!need_sum_pz) return;
    const T sum_pz = T(kLn2) * horizontal_sum<T>(s.sum_pz);
    if (q.entropy != nullptr) q.entropy[row] = log_l - (sum_pz - (p_positive > 0 ? T(p_positive * gap) : 0)) / l;
    if (d_tau_from_sums)
      q.d_tau[row] =
          s.grad_scale == 0
              ? 0
              : T(-s.grad_scale * ((sum_pz + l_negative * gap) * s.inverse_l + other_weight * q.positive_logit[row]));
  }

  void ignore_row(int64_t r) {
    const int64_t row = first + r;
    q.loss[row] = q.lse[row] = q.positive_logit[row] = positive_p[r] = 0;
    if (q.top1 != nullptr) q.top1[row] = false;
    if (q.entropy != nullptr) q.entropy[row] = 0;
    if (q.d_tau != nullptr) q.d_tau[row] = 0;
  }

  // log2 of what P is multiplied by and A' = grad_scale / l a is divided by: 0 unless A' comes near the ends of T's
  // range though its product with P does not. Where A' is tiny, about log2(1 / l), which makes probabilities of P.
  // Where it is huge, as much as A' needs, and as P allows, whose sum stays below 2^70.
  T exponent_shift(int64_t r) const {
    const T inverse_l = state[r].inverse_l;
    const double size =
        __builtin_fabs(state[r].grad_scale) * inverse_l * largest(q.anchors + (first + r) * q.width, q.width);
    if (!(inverse_l > 0) || !(size < __builtin_inf())) return 0;
    if (size <= 1e-20) return T(__builtin_logb(inverse_l));
    if (size < 1e30) return 0;
    const double most = q.positive_weight == nullptr ? -positive_p[r] : 1 / double(inverse_l);
    const double wanted = __builtin_logb(size) - 60, allowed = 70 - __builtin_logb(most);
    return T(smaller(smaller(wanted, allowed), 126));
  }

  // Turns the m that each block of the row's P was taken at, alpha [blocks][block_m], into what rescales the block to
  // the final m, times 2^exponent_shift; multiplies positive_p by that power, too. Returns exponent_shift.
  T finish_alpha(int64_t r, T* alpha, int64_t blocks) {
    const RowState<T>& row = state[r];
    const T shift = exponent_shift(r);
    const T power = exp2(shift);
    for (int64_t c = 0; c < blocks; ++c) {
      T& a = alpha[c * block_m + r];
      a = row.grad_scale == 0 ? 0 : power * (a == row.m ? 1 : exp2((a - row.m) * row.softmax_scale_log2));
    }
    positive_p[r] *= power;
    return shift;
  }

  // What turns the row's anchor into A', divided by 2^shift.
  double anchor_factor(int64_t r, T shift) const {
    return state[r].grad_scale == 0 ? 0 : state[r].grad_scale * (state[r].inverse_l * double(exp2(-shift)));
  }

  // d_anchors = grad_scale / l (acc + positive_p b_y), and with it d_tau = -(a . d_anchors) / tau plus the margin's
  // term, both from the gradient in double; grad_scale is 0 where the row is ignored or weighs nothing.
  void finish_row_gradient(int64_t r, const T* acc) {
    const int64_t row = first + r;
    const double grad_scale = state[r].grad_scale, inverse_l = state[r].inverse_l,
                 unscale = 1 / double(candidate_power);
    const T *a = q.anchors + row * q.width, *b = q.candidates + at_least(positive_of(row), 0) * q.width;
    T* d = q.d_anchors + row * q.width;
    const double margin = grad_scale * (double(positive_p[r]) * inverse_l) * q.margin;
    Vec<double> dot[2] = {};  // two chains of sums
    const auto whole_panel = [&](const T* a_k, const T* b_k, const T* acc_k, T* d_k) {
      constexpr int64_t n = kLanes<double>;
      for (int64_t k = 0; k < kPanel<T>; k += n) {
        const Vec<double> o = load_wide(acc_k + k) + double(positive_p[r]) * load_wide(b_k + k, candidate_power);
        const Vec<double> wide = grad_scale == 0 ? Vec<double>{} : grad_scale * (o * inverse_l) * unscale;
        store_narrow(d_k + k, wide);
        dot[k / n % 2] += load_wide(a_k + k) * wide;
      }
    };
    int64_t k0 = 0;
    for (; k0 + kPanel<T> <= q.width; k0 += kPanel<T>, acc += task_rows * kPanel<T>)
      whole_panel(a + k0, b + k0, acc, d + k0);
    if (const int64_t count = q.width - k0; count > 0) {
      T padded[4][kPanel<T>] = {};
      for (int64_t k = 0; k < count; ++k) padded[0][k] = a[k0 + k], padded[1][k] = b[k0 + k], padded[2][k] = acc[k];
      whole_panel(padded[0], padded[1], padded[2], padded[3]);
      for (int64_t k = 0; k < count; ++k) d[k0 + k] = padded[3][k];
    }
    if (q.d_tau != nullptr && !d_tau_from_sums)
      q.d_tau[row] = grad_scale == 0 ? 0 : T((margin - horizontal_sum<double>(dot[0] + dot[1])) / q.tau[row]);
  }

  void unpack_column_panel(int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(q.columns - j0, kPanel<T>);
    const T* in = d_candidates + p * d_padded * kPanel<T>;
    transpose<T>(in, kPanel<T>, q.width, count, q.d_candidates + j0 * q.width, q.width);
  }
};
