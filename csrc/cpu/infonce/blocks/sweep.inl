// Adaptive InfoNCE within blocks of up to kMaxBlock consecutive rows (ops/infonce/blocks.py), forward and every
// gradient. The names are those of softmax.inl. A tile of whole blocks is done at a time, in the nearest cache:
//
//   scores     each row with the rows of its block
//   softmax    rows in lanes: S, and P in its place, stand as [k][kTile], so that no maximum and no sum crosses lanes
//   gradients  d_anchors = W B and d_candidates = W^T A in each block, with W = scale / tau P / l, and the positive's
//              entry as in softmax.inl
//
// The bits of a block depend on nothing but its rows.
//
// Scaling. Scores are never divided before their difference, and p is at most 1. Where all magnitudes in a block are
// moderate, a power of 2 brings the largest scale / tau near 1, and sums are of T. Otherwise sums are of double, and a
// row whose scale is 0 has no part in them, whatever it holds.
#pragma once

#include "cpu/infonce/sigmoid/sweep.inl"

constexpr int64_t kTile = 64;  // rows
static_assert(kTile >= kMaxBlock);

// log(1 + x) for x in [0, kMaxBlock].
template <class T>
inline Vec<T> log1p_beyond_one(Vec<T> x) {
  using I = typename Simd<T>::I;
  constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
  const Vec<T> y = x + T(1);
  const I exponent = ((I)y >> Simd<T>::kMantissa) - kBias;
  const Vec<T> power = (Vec<T>)((kBias - exponent) << Simd<T>::kMantissa);
  const Vec<T> rest = exponent == 0 ? x : y * power - T(1);
  return __builtin_convertvector(exponent, Vec<T>) * T(kLn2) + log1p_of<T>(rest);
}

// The sum of |x|; NaN where one is.
template <class T>
inline T absolute_sum(const T* x, int64_t count) {
  constexpr int64_t n = kLanes<T>;
  const auto absolute = [](Vec<T> v) { return v > 0 ? v : -v; };
  Vec<T> sum[2] = {};
  int64_t k = 0;
  for (; k + 2 * n <= count; k += 2 * n)
    for (int i = 0; i < 2; ++i) sum[i] += absolute(load(x + k + i * n));
  for (; k + n <= count; k += n) sum[0] += absolute(load(x + k));
  if (k < count) sum[1] += absolute(load_some<Vec<T>>(x + k, count - k));
  return horizontal_sum<T>(sum[0] + sum[1]);
}

template <class T>
struct BlockTile {
  // Rows and columns of S that are formed at a time. There are always several sums (see tile_for), and always as many,
  // so that equal scores are equal to the bit.
  static constexpr int kDotRows = VECTOR_BYTES == 64 ? 4 : 2, kDotColumns = 4;
  static constexpr double kModerate = 0x1p30;                          // of sums of |a| and |b|, or the inverse
  static constexpr double kMostRatio = 0x1p20, kMostFactor = 0x1p100;  // of |scale / tau|

  const InfoNCEProblem<T>& q;
  int64_t block, first, rows;  // k; the tile's first row, and its number of rows
  bool need_sum_pz;
  alignas(64) T s[kMaxBlock * kTile];  // [k][kTile] scores, then p of the negatives; at the positive, -l_negative
  alignas(64) T tau[kTile], positive_score[kTile], inverse_l[kTile];
  alignas(64) T slope[kTile];  // d L / d tau, times -tau
  double grad_scale[kTile];    // scale / tau

  BlockTile(const InfoNCEProblem<T>& problem, int64_t rows_of_block, int64_t begin, int64_t count)
      : q(problem), block(rows_of_block), first(begin), rows(count) {
    need_sum_pz = q.entropy != nullptr || q.d_tau != nullptr;
  }

  void run() {
    start();
    for (int64_t r0 = 0; r0 < rows; r0 += block) {
      const int64_t n = at_most(rows - r0, block);
      for (int64_t i = 0; i < n; i += kDotRows)
        for (int64_t j = 0; j < n; j += kDotColumns) scores(r0, n, i, j);
      for (int64_t i = 0; i < n; ++i) {
        T& own = s[i * kTile + r0 + i];
        positive_score[r0 + i] = own;
        own = -T(__builtin_inff());
      }
    }
    for (int64_t r = 0; r < rows; r += kLanes<T>) softmax(r);
    finish_tau();
    if (q.d_anchors == nullptr && q.d_candidates == nullptr) return;
    for (int64_t r0 = 0; r0 < rows; r0 += block) gradients(r0, at_most(rows - r0, block));
  }

  // What no score overwrites: lanes beyond the rows, and columns beyond a smaller last block.
  void start() {
    for (int64_t i = 0; i < block * kTile; ++i) s[i] = -T(__builtin_inff());
    for (int64_t r = 0; r < kTile; ++r) {
      tau[r] = r < rows ? q.tau[first + r] : T(1);
      positive_score[r] = 0;
      grad_scale[r] = r < rows ? double(q.scale[first + r]) / tau[r] : 0;
    }
  }

  const T* anchor(int64_t r) const { return q.anchors + (first + r) * q.width; }
  const T* candidate(int64_t r) const { return q.candidates + (first + r) * q.width; }

  // Scores of rows i.. with columns j.. of the n of a block. Beyond n, the last row or column takes their place.
  void scores(int64_t r0, int64_t n, int64_t i, int64_t j) {
    const T *a[kDotRows], *b[kDotColumns];
    for (int x = 0; x < kDotRows; ++x) a[x] = anchor(r0 + at_most(i + x, n - 1));
    for (int y = 0; y < kDotColumns; ++y) b[y] = candidate(r0 + at_most(j + y, n - 1));
    Vec<T> sum[kDotRows][kDotColumns] = {};
    const auto add = [&](auto load_at) {
      Vec<T> of_b[kDotColumns];
#pragma GCC unroll 4
      for (int y = 0; y < kDotColumns; ++y) of_b[y] = load_at(b[y]);
#pragma GCC unroll 4
      for (int x = 0; x < kDotRows; ++x) {
        const Vec<T> of_a = load_at(a[x]);
#pragma GCC unroll 4
        for (int y = 0; y < kDotColumns; ++y) sum[x][y] += of_a * of_b[y];
      }
    };
    int64_t k = 0;
    for (; k + kLanes<T> <= q.width; k += kLanes<T>) add([k](const T* x) { return load(x + k); });
    if (k < q.width) add([k, this](const T* x) { return load_some<Vec<T>>(x + k, q.width - k); });
#pragma GCC unroll 4
    for (int x = 0; x < kDotRows; ++x)
#pragma GCC unroll 4
      for (int y = 0; y < kDotColumns; ++y)
        if (i + x < n && j + y < n) s[(j + y) * kTile + r0 + i + x] = horizontal_sum<T>(sum[x][y]);
  }

  // The loss and statistics of the rows in a vector, and what their gradients take.
  void softmax(int64_t r) {
    const T minus_infinity = -__builtin_inff(), least = sizeof(T) == 4 ? T(__FLT_MIN__) : T(__DBL_MIN__);
    const Vec<T> tau_r = load(tau + r), positive = load(positive_score + r);
    Vec<T> max_negative = broadcast(minus_infinity);
    for (int64_t j = 0; j < block; ++j) max_negative = maximum<T>(max_negative, load(s + j * kTile + r));
    const Vec<T> m = maximum<T>(positive, max_negative);
    const Vec<T> scale_log2 = maximum<T>(broadcast(least), T(kLog2E) / tau_r);  // 0 times -infinity would be NaN
    Vec<T> l_negative{}, sum_pz{};
    for (int64_t j = 0; j < block; ++j) {
      T* at = s + j * kTile + r;
      const Vec<T> z = (load(at) - m) * scale_log2, p = exp2_of<T>(z);
      store<T>(at, p);
      l_negative += p;
      if (need_sum_pz) sum_pz += p == 0 ? Vec<T>{} : p * z;
    }
    const Vec<T> gap = (m - positive) / tau_r, p_positive = exp2_of<T>((positive - m) * scale_log2);
    const Vec<T> l = l_negative + p_positive;
    // l - 1, in which a small l_negative keeps its digits: the larger of the positive and the negatives has p = 1.
    const Vec<T> log_l = log1p_beyond_one<T>(max_negative > positive ? (l_negative - T(1)) + p_positive : l_negative);
    put(q.loss, r, gap + log_l);
    put(q.lse, r, m / tau_r + log_l);
    put(q.positive_logit, r, positive / tau_r);
    if (q.top1 != nullptr) {
      T is_top[kLanes<T>];
      store<T>(is_top, (positive > max_negative) & (l_negative == l_negative) ? broadcast(T(1)) : Vec<T>{});  // no NaN
      for (int64_t i = 0; i < at_most(rows - r, kLanes<T>); ++i) q.top1[first + r + i] = is_top[i] == 1;
    }
    if (q.entropy != nullptr) {
      const Vec<T> of_positive = p_positive > 0 ? p_positive * gap : Vec<T>{};
      put(q.entropy, r, log_l - (T(kLn2) * sum_pz - of_positive) / l);
    }
    store<T>(inverse_l + r, T(1) / l);
    store<T>(slope + r, (T(kLn2) * sum_pz + l_negative * gap) / l);
    const int64_t count = at_most(rows - r, kLanes<T>);
    T at_positive[kLanes<T>];
    store<T>(at_positive, -l_negative);
    for (int64_t i = 0; i < count; ++i) s[(r + i) % block * kTile + r + i] = at_positive[i];
  }

  void put(T* out, int64_t r, Vec<T> x) const {
    const int64_t count = rows - r;
    if (count >= kLanes<T>)
      store<T>(out + first + r, x);
    else
      store_some(out + first + r, count, x);
  }

  void finish_tau() {
    if (q.d_tau == nullptr) return;
    for (int64_t r = 0; r < rows; ++r) q.d_tau[first + r] = grad_scale[r] == 0 ? 0 : T(-grad_scale[r] * slope[r]);
  }

  // Of the n rows of a block.
  void gradients(int64_t r0, int64_t n) {
    const double unit = unit_of(r0, n);
    if (unit == 0) return any_gradients(r0, n);
    for (int64_t i = 0; i < n; ++i) inverse_l[r0 + i] = T(unit * grad_scale[r0 + i] * inverse_l[r0 + i]);
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = r0; i < r0 + n; ++i) s[j * kTile + i] *= inverse_l[i];
    const T* w = s + r0;
    if (q.d_anchors != nullptr)
      multiply(n, w, 1, kTile, candidate(r0), T(1 / unit), q.d_anchors + (first + r0) * q.width);
    if (q.d_candidates != nullptr)
      multiply(n, w, kTile, 1, anchor(r0), T(1 / unit), q.d_candidates + (first + r0) * q.width);
  }

  // The power of 2 that brings the largest |scale / tau| of the block near 1, or 1 if all are 0; 0 where a magnitude is
  // not moderate.
  double unit_of(int64_t r0, int64_t n) const {
    double least = kMostFactor, most = 0;
    for (int64_t i = r0; i < r0 + n; ++i) {
      const double size = __builtin_fabs(grad_scale[i]);
      if (size == 0) continue;
      if (!(size < kMostFactor)) return 0;
      least = size < least ? size : least;
      most = size > most ? size : most;
    }
    if (!is_moderate(anchor(r0), n) || !is_moderate(candidate(r0), n)) return 0;
    if (most == 0) return 1;
    if (most < 1 / kMostFactor || most > kMostRatio * least) return 0;
    return __builtin_exp2(-__builtin_logb(most));
  }

  bool is_moderate(const T* x, int64_t n) const {
    const double sum = absolute_sum(x, n * q.width);
    return sum == 0 || (sum > 1 / kModerate && sum < kModerate);
  }

  // out[i] = unscale sum_j w[i i_step + j j_step] x[j] for i < n, j < n: rows of d numbers.
  void multiply(int64_t n, const T* w, int64_t i_step, int64_t j_step, const T* x, T unscale, T* out) const {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) multiply_rows<4>(n, w + i * i_step, i_step, j_step, x, unscale, out + i * q.width);
    for (; i + 2 <= n; i += 2) multiply_rows<2>(n, w + i * i_step, i_step, j_step, x, unscale, out + i * q.width);
    if (i < n) multiply_rows<1>(n, w + i * i_step, i_step, j_step, x, unscale, out + i * q.width);
  }

  template <int M>
  void multiply_rows(int64_t n, const T* w, int64_t i_step, int64_t j_step, const T* x, T unscale, T* out) const {
    constexpr int64_t lanes = kLanes<T>;
    int64_t k = 0;
    for (; k + 2 * lanes <= q.width; k += 2 * lanes)
      multiply_part<M, 2>(n, w, i_step, j_step, x + k, lanes, unscale, out + k);
    for (; k + lanes <= q.width; k += lanes) multiply_part<M, 1>(n, w, i_step, j_step, x + k, lanes, unscale, out + k);
    if (k < q.width) multiply_part<M, 1>(n, w, i_step, j_step, x + k, q.width - k, unscale, out + k);
  }

  // The first NV vectors of M rows; of a single vector only `count` lanes.
  template <int M, int NV>
  void multiply_part(int64_t n, const T* w, int64_t i_step, int64_t j_step, const T* x, int64_t count, T unscale,
                     T* out) const {
    constexpr int64_t lanes = kLanes<T>;
    Vec<T> sum[M][NV] = {};
    for (int64_t j = 0; j < n; ++j) {
      Vec<T> row[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const T* at = x + j * q.width + v * lanes;
        row[v] = count == lanes ? load(at) : load_some<Vec<T>>(at, count);
      }
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[i][v] += w[i * i_step + j * j_step] * row[v];
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        T* at = out + i * q.width + v * lanes;
        if (count == lanes)
          store<T>(at, sum[i][v] * unscale);
        else
          store_some(at, count, sum[i][v] * unscale);
      }
  }

  // The gradients for magnitudes of any kind.
  void any_gradients(int64_t r0, int64_t n) const {
    const auto weight = [&](int64_t i, int64_t j) {
      return grad_scale[r0 + i] * inverse_l[r0 + i] * s[j * kTile + r0 + i];
    };
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < q.width; ++k) {
        double d_anchor = 0, d_candidate = 0;
        for (int64_t j = 0; j < n; ++j) {
          if (grad_scale[r0 + i] != 0) d_anchor += weight(i, j) * candidate(r0 + j)[k];
          if (grad_scale[r0 + j] != 0) d_candidate += weight(j, i) * anchor(r0 + j)[k];
        }
        const int64_t at = (first + r0 + i) * q.width + k;
        if (q.d_anchors != nullptr) q.d_anchors[at] = T(d_anchor);
        if (q.d_candidates != nullptr) q.d_candidates[at] = T(d_candidate);
      }
  }
};

constexpr int64_t kProductsOfThread = 64 << 10;  // that are worth another thread

template <class T>
void run_blocks(const InfoNCEProblem<T>& problem, int64_t block) {
  const int64_t tile = kTile / block * block;
  const int64_t grain = ceil_div(kProductsOfThread, tile * block * problem.width);
  parallel_for(ceil_div(problem.rows, tile), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      BlockTile<T>(problem, block, t * tile, at_most(problem.rows - t * tile, tile)).run();
  });
}
