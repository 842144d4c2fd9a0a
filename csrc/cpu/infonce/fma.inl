// The products of the sweep (softmax.inl) on the vector units, in the accumulation type: three (3G), and one
// exponential an element. For each block of rows
//   row phase (a thread owns rows): for each block of columns, S = A B^T in cache; the online softmax makes P of it;
//     acc += P B, rescaled when m grows. P stays in memory with the m it was taken at.
//   column phase (a thread owns columns): P is rescaled to the final m where m grew since; d_candidates += P^T A'.
// So threads of a block keep no partial sums of d_candidates, and each of its sums runs over the rows in order.
#pragma once

#include "cpu/infonce/driver.inl"

constexpr int kBlockK = 64;   // S is summed this many products at a time
constexpr int kSliceM = 224;  // rows that d_candidates is summed over at a time: a panel of P this deep stays in L1
constexpr int kBlockN = 448;  // S, B and B^T of a block stay in a 2 MB L2 up to d = 128 in float32

template <class T, class BaseOfLoss = Sweep<T, 1>>
struct FmaSweep : BaseOfLoss {
  using Guard = NoGuard;
  using Base = BaseOfLoss;
  using Base::candidate_power, Base::q, Base::block_m, Base::task_rows, Base::column_panels, Base::width_panels;
  using Base::need_d_anchors, Base::need_d_candidates, Base::first, Base::height, Base::d_candidates, Base::arena;

  static constexpr int kBlockPanels = kBlockN / kPanel<T>;
  int64_t width_tiles, column_blocks;
  int64_t probs_rows;  // of a panel of P: odd, or panels a multiple of 4 KiB apart would alias loads and stores
  T *candidates_transposed, *candidate_panels;  // [column_panels][d][kPanel], [width_panels][N][kPanel]
  T* alpha;  // [column_blocks][block_m]: at first the m that a block of P was taken at, then what rescales it to the
             // final m
  T *probs, *scaled_anchors;  // [column_panels][probs_rows][kPanel], [width_tiles][block_m][kStrip]
  T *task_anchors,
      *task_probs;  // per thread: [width_panels][task_rows][kPanel], and a block of P where not all of it is stored

  FmaSweep(const typename Base::Problem& problem, int64_t threads, char* base) : Base(problem, threads, base, 1) {
    width_tiles = tiles_of(q.width);
    column_blocks = ceil_div(column_panels, kBlockPanels);
    probs_rows = (need_d_candidates ? block_m : task_rows) | 1;
    arena.take(column_panels * q.width * kPanel<T>, candidates_transposed);
    arena.take(need_d_anchors ? width_panels * q.columns * kPanel<T> : 0, candidate_panels);
    arena.take(need_d_candidates ? column_blocks * block_m : 0, alpha);
    arena.take(need_d_candidates ? column_panels * probs_rows * kPanel<T> : 0, probs);
    arena.take(need_d_candidates ? width_tiles * block_m * kStrip : 0, scaled_anchors);
    arena.take(threads * width_panels * task_rows * kPanel<T>, task_anchors);
    arena.take(need_d_candidates ? 0 : threads * kBlockPanels * probs_rows * kPanel<T>, task_probs);
  }

  void run_block() {
    over_rows(*this, [](FmaSweep& s, int64_t task, int64_t begin, int64_t end) { s.sweep_rows(task, begin, end); });
    if (need_d_candidates) over_panels(*this, [](FmaSweep& s, int64_t p) { s.accumulate_column_panel(p); });
  }

  void pack_column_panel(int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(q.columns - j0, kPanel<T>);
    T* out = candidates_transposed + p * q.width * kPanel<T>;
    if (count < kPanel<T>)
      for (int64_t i = 0; i < q.width * kPanel<T>; ++i) out[i] = 0;
    transpose<T>(q.candidates + j0 * q.width, q.width, count, q.width, out, kPanel<T>);
    if (need_d_anchors)
      copy_to_panels(q.candidates + j0 * q.width, count, candidate_panels + j0 * kPanel<T>, q.columns, candidate_power);
  }

  // `rows` rows of a [.., d] matrix, times `factor`, into panels that are `height` rows high.
  void copy_to_panels(const T* in, int64_t rows, T* out, int64_t height, T factor) {
    for (int64_t w = 0; w < width_panels; ++w) {
      const int64_t k0 = w * kPanel<T>, count = at_most(q.width - k0, kPanel<T>);
      for (int64_t r = 0; r < rows; ++r) {
        T* to = out + (w * height + r) * kPanel<T>;
        const T* from = in + r * q.width + k0;
        if (count == kPanel<T>) {
          for (int64_t k = 0; k < kPanel<T>; ++k) to[k] = factor * from[k];
          continue;
        }
        for (int64_t k = 0; k < count; ++k) to[k] = factor * from[k];
        for (int64_t k = count; k < kPanel<T>; ++k) to[k] = 0;
      }
    }
  }

  // Rows [begin, end) of the block, against every block of columns.
  void sweep_rows(int64_t task, int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    T* a = task_anchors + task * width_panels * task_rows * kPanel<T>;
    T* acc = this->acc_of(task);
    copy_to_panels(q.anchors + (first + begin) * q.width, rows, a, task_rows, 1);
    this->start_rows(begin, end);
    this->set_ignore_above(begin, end, [&](int64_t r, int64_t y) {
      alignas(64) T panel[kPanel<T>];
      scores_of_tile(a, r - begin, 1, y / kPanel<T>, panel);
      return panel[y % kPanel<T>];
    });
    for (int64_t c = 0; c < column_blocks; ++c) {
      const int64_t p0 = c * kBlockPanels, panels = at_most(column_panels - p0, kBlockPanels);
      T* block = need_d_candidates ? probs + (p0 * probs_rows + begin) * kPanel<T>
                                   : task_probs + task * kBlockPanels * probs_rows * kPanel<T>;
      scores(a, rows, p0, panels, block);
      for (int64_t r = 0; r < rows; ++r)
        this->template to_probs<true>(begin + r, p0, panels, block + r * kPanel<T>, probs_rows * kPanel<T>,
                                      acc == nullptr ? nullptr : acc + r * kPanel<T>);
      if (need_d_candidates)
        for (int64_t r = begin; r < end; ++r) alpha[c * block_m + r] = this->state[r].m;
      if (need_d_anchors) accumulate_rows(block, rows, c, acc);
    }
    for (int64_t r = begin; r < end; ++r) finish(r, acc == nullptr ? nullptr : acc + (r - begin) * kPanel<T>);
  }

  void finish(int64_t r, const T* acc) {
    this->finish_row(r);
    if (need_d_anchors) this->finish_row_gradient(r, acc);
    if (!need_d_candidates) return;
    const T shift = this->finish_alpha(r, alpha, column_blocks);
    scale_into_strips(r, this->anchor_factor(r, shift));
  }

  void scores(const T* a, int64_t rows, int64_t p0, int64_t panels, T* block) {
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t i = 0; i < tiles_of(rows); ++i) {
        const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
        scores_of_tile(a, r0, r1 - r0, p0 + p, block + (p * probs_rows + r0) * kPanel<T>);
      }
  }

  // Summed kBlockK products at a time: shorter chains of rounding errors in logits that tau may magnify.
  void scores_of_tile(const T* a, int64_t r0, int64_t rows, int64_t p, T* s) {
    const T* b = candidates_transposed + p * q.width * kPanel<T>;
    for (int64_t k = 0; k < q.width; k += kBlockK)
      tile_for<T, 0>(rows, kPanel<T>)({at_most(q.width - k, kBlockK), a + (k / kPanel<T> * task_rows + r0) * kPanel<T>,
                                       task_rows * kPanel<T>, b + k * kPanel<T>, s, k > 0});
  }

  void accumulate_rows(const T* block, int64_t rows, int64_t c, T* acc) {
    const int64_t j0 = c * kBlockN, depth = at_most(q.columns - j0, kBlockN);
    for (int64_t w = 0; w < width_panels; ++w) {
      for (int64_t i = 0; i < tiles_of(rows); ++i) {
        const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
        tile_for<T, 0>(r1 - r0, q.width - w * kPanel<T>)({depth, block + r0 * kPanel<T>, probs_rows * kPanel<T>,
                                                          candidate_panels + (w * q.columns + j0) * kPanel<T>,
                                                          acc + (w * task_rows + r0) * kPanel<T>, c > 0});
      }
    }
  }

  void scale_into_strips(int64_t r, double factor) {
    for (int64_t i = 0; i < width_tiles; ++i) {
      const int64_t k0 = tile_begin(q.width, i), k1 = tile_begin(q.width, i + 1);
      const T* from = q.anchors + (first + r) * q.width + k0;
      T* to = scaled_anchors + (i * block_m + r) * kStrip;
      // Whole strips where the row goes on: no tile reads what lies beyond k1, and a constant length is faster.
      const int64_t count = k0 + kStrip <= q.width ? kStrip : k1 - k0;
      if (factor == 0)
        for (int64_t k = 0; k < kStrip; ++k) to[k] = 0;
      else if (count == kStrip)
        for (int64_t k = 0; k < kStrip; k += kLanes<double>) store_narrow(to + k, factor * load_wide(from + k));
      else
        for (int64_t k = 0; k < count; ++k) to[k] = T(factor * from[k]);
    }
  }

  void accumulate_column_panel(int64_t p) {
    T* panel = probs + p * probs_rows * kPanel<T>;
    const T* alpha_p = alpha + p / kBlockPanels * block_m;
    for (int64_t r = 0; r < height; ++r) {
      T* x = panel + r * kPanel<T>;
      if (alpha_p[r] != 1)
        for (int v = 0; v < 2; ++v)  // 0: all negligible, or the row has no gradient, whatever P holds
          store<T>(x + v * kLanes<T>, alpha_p[r] == 0 ? Vec<T>{} : load(x + v * kLanes<T>) * alpha_p[r]);
      const int64_t j = this->positive_of(first + r) - p * kPanel<T>;
      if (j >= 0 && j < kPanel<T>) x[j] = this->state[r].grad_scale == 0 ? 0 : this->positive_p[r];
    }
    multiply_column_panel(p);
  }

  void multiply_column_panel(int64_t p) {
    const T* panel = probs + p * probs_rows * kPanel<T>;
    for (int64_t r0 = 0; r0 < height; r0 += kSliceM) {
      const int64_t depth = at_most(height - r0, kSliceM);
      for (int64_t i = 0; i < width_tiles; ++i) {
        const int64_t k0 = tile_begin(q.width, i), k1 = tile_begin(q.width, i + 1);
        tile_for<T, kStrip>(k1 - k0,
                            kPanel<T>)({depth, scaled_anchors + (i * block_m + r0) * kStrip, 0, panel + r0 * kPanel<T>,
                                        d_candidates + (p * q.width + k0) * kPanel<T>, first + r0 > 0});
      }
    }
  }
};
