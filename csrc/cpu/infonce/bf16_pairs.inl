// The products of the sweep (softmax.inl) on pairs of bfloat16 (simd/bf16_pairs.inl), in the order of fma.inl: S and P
// are computed once, in the row phase, which also sums acc. P stays in memory in float32, for the column phase, where
// it is rescaled to the final m and rounded to bfloat16.
//
// Operands stand along or down, as simd/factors.inl says: pairs of k along d for S, of columns for P B, of rows for P^T
// A'.
#pragma once

#include "cpu/infonce/driver.inl"
#include "cpu/simd/bf16_pairs.inl"

struct PairSweep : Sweep<float, 2> {
  using Guard = NoGuard;
  static constexpr int64_t kAlong = 2 * kPanel<Pair>;           // numbers in a row of a panel of pairs along
  static constexpr int64_t kBlockPanels = 448 / kPanel<float>;  // as in fma.inl; whole panels along

  int64_t pairs_of_width, width_along, width_tiles, column_blocks, column_depth;
  int64_t probs_rows;                              // of a panel of P: odd, see fma.inl
  Pair *candidates_transposed, *candidate_panels;  // [column_panels][pairs_of_width][8], [width_panels][N / 2][8]
  float *alpha, *probs;                            // [column_blocks][block_m], [column_panels][probs_rows][8]
  Pair* scaled_anchors;                            // [width_tiles][block_m / 2][kStrip]
  Pair *task_anchors, *task_along, *task_down;     // per thread: [width_along][task_rows][8], a block of P, a panel
  int64_t anchors_size, along_size, down_size, block_size;
  float* task_probs;  // per thread, a block of P where not all of it is stored

  PairSweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base) : Sweep(problem, threads, base, 1) {
    // The gradient of a row is made of rounded P: a d_tau taken from it errs where its terms nearly cancel.
    d_tau_from_sums = q.d_tau != nullptr;
    need_sum_pz |= d_tau_from_sums;
    pairs_of_width = ceil_div(q.width, 2);
    width_along = ceil_div(q.width, kAlong);
    width_tiles = tiles_of(q.width);
    column_blocks = ceil_div(column_panels, kBlockPanels);
    column_depth = column_panels * (kPanel<float> / 2);
    probs_rows = (need_d_candidates ? block_m : task_rows) | 1;
    anchors_size = width_along * task_rows * kPanel<Pair>;
    along_size = kBlockPanels / 2 * task_rows * kPanel<Pair>;
    down_size = block_m / 2 * kPanel<Pair>;
    block_size = kBlockPanels * probs_rows * kPanel<float>;
    arena.take(column_panels * pairs_of_width * kPanel<Pair>, candidates_transposed);
    arena.take(need_d_anchors ? width_panels * column_depth * kPanel<Pair> : 0, candidate_panels);
    arena.take(need_d_candidates ? column_blocks * block_m : 0, alpha);
    arena.take(need_d_candidates ? column_panels * probs_rows * kPanel<float> : 0, probs);
    arena.take(need_d_candidates ? width_tiles * block_m / 2 * kStrip : 0, scaled_anchors);
    arena.take(threads * anchors_size, task_anchors);
    arena.take(need_d_anchors ? threads * along_size : 0, task_along);
    arena.take(need_d_candidates ? threads * down_size : 0, task_down);
    arena.take(need_d_candidates ? 0 : threads * block_size, task_probs);
  }

  void run_block() {
    over_rows(*this, [](PairSweep& s, int64_t task, int64_t begin, int64_t end) { s.sweep_rows(task, begin, end); });
    if (!need_d_candidates) return;
    in_parallel(*this, column_panels, [](PairSweep& s, int64_t task, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) s.accumulate_column_panel(task, p);
    });
  }

  // Of row r of a [.., d] matrix from column k on; zeros beyond `rows` and d.
  Vec<float> read(const float* from, int64_t rows, int64_t r, int64_t k) const {
    if (r >= rows || k >= q.width) return Vec<float>{};
    const float* at = from + r * q.width + k;
    return k + kLanes<float> <= q.width ? load(at) : load_some<Vec<float>>(at, q.width - k);
  }

  // A row as pairs along; its panels stand `step` pairs apart.
  void copy_along(const float* from, int64_t rows, int64_t r, int64_t width, Pair* to, int64_t step) const {
    for (int64_t k = 0; k < width; k += kLanes<float>)
      store_along(to + k / kAlong * step + k % kAlong / 2, read(from, rows, r, k), at_least(q.width - k, 1));
  }

  void pack_column_panel(int64_t p) {
    const int64_t j0 = p * kPanel<float>;
    Pair* out = candidates_transposed + p * pairs_of_width * kPanel<Pair>;
    for (int64_t k = 0; k < pairs_of_width; k += kLanes<Pair>) {
      Pair rows[kPanel<Pair> * kLanes<Pair>];
      for (int64_t j = 0; j < kPanel<Pair>; ++j)
        for (int64_t v = 0; v < 2; ++v) {
          const int64_t at = 2 * k + v * kLanes<float>;
          store_along(rows + j * kLanes<Pair> + v * kLanes<Pair> / 2, read(q.candidates, q.columns, j0 + j, at),
                      at_least(q.width - at, 1));
        }
      transpose<Pair>(rows, kLanes<Pair>, kPanel<Pair>, at_most(pairs_of_width - k, kLanes<Pair>),
                      out + k * kPanel<Pair>, kPanel<Pair>);
    }
    if (!need_d_anchors) return;
    for (int64_t w = 0; w < width_panels; ++w)
      for (int64_t j = 0; j < kPanel<float>; j += 2)
        for (int64_t v = 0; v < 2; ++v) {
          const int64_t k = w * kPanel<float> + v * kLanes<float>;
          const Vec<float> two[2] = {read(q.candidates, q.columns, j0 + j, k) * candidate_power,
                                     read(q.candidates, q.columns, j0 + j + 1, k) * candidate_power};
          store_down(candidate_panels + (w * column_depth + (j0 + j) / 2) * kPanel<Pair> + v * kLanes<Pair>, two);
        }
  }

  void sweep_rows(int64_t task, int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    Pair *a = task_anchors + task * anchors_size, *along = task_along + task * along_size;
    float* acc = acc_of(task);
    for (int64_t r = 0; r < rows; ++r)
      copy_along(q.anchors + (first + begin) * q.width, rows, r, q.width, a + r * kPanel<Pair>,
                 task_rows * kPanel<Pair>);
    start_rows(begin, end);
    set_ignore_above(begin, end, [&](int64_t r, int64_t y) {
      alignas(64) float panel[kPanel<float>];
      scores_of_tile(a, r - begin, 1, y / kPanel<float>, panel);
      return panel[y % kPanel<float>];
    });
    for (int64_t c = 0; c < column_blocks; ++c) {
      const int64_t p0 = c * kBlockPanels, panels = at_most(column_panels - p0, kBlockPanels);
      float* block =
          need_d_candidates ? probs + (p0 * probs_rows + begin) * kPanel<float> : task_probs + task * block_size;
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t i = 0; i < tiles_of(rows); ++i) {
          const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
          scores_of_tile(a, r0, r1 - r0, p0 + p, block + (p * probs_rows + r0) * kPanel<float>);
        }
      for (int64_t r = 0; r < rows; ++r) {
        float* row = block + r * kPanel<float>;
        to_probs<true>(begin + r, p0, panels, row, probs_rows * kPanel<float>,
                       acc == nullptr ? nullptr : acc + r * kPanel<float>);
        if (need_d_candidates) alpha[c * block_m + begin + r] = state[begin + r].m;
        if (need_d_anchors) pack_probs(row, panels, along + r * kPanel<Pair>);
      }
      if (need_d_anchors) accumulate_rows(along, rows, p0, panels, acc);
    }
    for (int64_t r = begin; r < end; ++r) finish(r, acc == nullptr ? nullptr : acc + (r - begin) * kPanel<float>);
    if (need_d_candidates && end % 2 == 1) scale_into_strips(end, 0);  // shares pairs with the last row
  }

  void scores_of_tile(const Pair* a, int64_t r0, int64_t rows, int64_t p, float* s) {
    tile_for<Pair, 0>(rows, kPanel<float>)({pairs_of_width, a + r0 * kPanel<Pair>, task_rows * kPanel<Pair>,
                                            candidates_transposed + p * pairs_of_width * kPanel<Pair>, s, false});
  }

  // A row of a block of P as pairs along.
  void pack_probs(const float* row, int64_t panels, Pair* to) {
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t v = 0; v < 2; ++v)
        store_along(to + p / 2 * task_rows * kPanel<Pair> + (p % 2 * 2 + v) * (kLanes<float> / 2),
                    load(row + p * probs_rows * kPanel<float> + v * kLanes<float>), kLanes<float>);
  }

  void accumulate_rows(const Pair* along, int64_t rows, int64_t p0, int64_t panels, float* acc) {
    constexpr int64_t kPairs = kPanel<float> / 2;
    for (int64_t w = 0; w < width_panels; ++w)
      for (int64_t i = 0; i < tiles_of(rows); ++i) {
        const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
        tile_for<Pair, 0>(
            r1 - r0, q.width - w * kPanel<float>)({panels * kPairs, along + r0 * kPanel<Pair>, task_rows * kPanel<Pair>,
                                                   candidate_panels + (w * column_depth + p0 * kPairs) * kPanel<Pair>,
                                                   acc + (w * task_rows + r0) * kPanel<float>, p0 > 0});
      }
  }

  void finish(int64_t r, const float* acc) {
    finish_row(r);
    if (need_d_anchors) finish_row_gradient(r, acc);
    if (!need_d_candidates) return;
    const float shift = finish_alpha(r, alpha, column_blocks);
    scale_into_strips(r, anchor_factor(r, shift));
  }

  // A' of row r; zeros where the factor is 0.
  void scale_into_strips(int64_t r, double factor) {
    const float* from = q.anchors + (first + r) * q.width;
    for (int64_t i = 0; i < width_tiles; ++i) {
      const int64_t k0 = tile_begin(q.width, i), count = tile_begin(q.width, i + 1) - k0;
      auto* to = reinterpret_cast<HalfOfPair*>(scaled_anchors + (i * block_m / 2 + r / 2) * kStrip) + r % 2;
      for (int64_t k = 0; k < count; ++k) to[2 * k] = factor == 0 ? 0 : to_bfloat16(float(factor * from[k0 + k]));
    }
  }
  typedef uint16_t HalfOfPair __attribute__((may_alias));

  // Rows [r, r + 2) of a panel of P at their final m, as pairs down.
  void rescale(int64_t p, int64_t r, Pair* to) {
    const float* alpha_p = alpha + p / kBlockPanels * block_m;
    float rows[2][kPanel<float>] = {};
    for (int64_t i = 0; i < at_most(height - r, 2); ++i) {
      const float a = alpha_p[r + i];
      const float* x = probs + (p * probs_rows + r + i) * kPanel<float>;
      if (a != 0)  // 0: all negligible, or the row has no gradient, whatever P holds
        for (int64_t j = 0; j < kPanel<float>; ++j) rows[i][j] = x[j] * a;
      const int64_t j = positive_of(first + r + i) - p * kPanel<float>;
      if (j >= 0 && j < kPanel<float>) rows[i][j] = state[r + i].grad_scale == 0 ? 0 : positive_p[r + i];
    }
    for (int64_t v = 0; v < 2; ++v) {
      const Vec<float> two[2] = {load(rows[0] + v * kLanes<float>), load(rows[1] + v * kLanes<float>)};
      store_down(to + v * kLanes<Pair>, two);
    }
  }

  void accumulate_column_panel(int64_t task, int64_t p) {
    Pair* down = task_down + task * down_size;
    for (int64_t r = 0; r < height; r += 2) rescale(p, r, down + r / 2 * kPanel<Pair>);
    for (int64_t i = 0; i < width_tiles; ++i) {
      const int64_t k0 = tile_begin(q.width, i), k1 = tile_begin(q.width, i + 1);
      tile_for<Pair, kStrip>(k1 - k0,
                             kPanel<float>)({ceil_div(height, 2), scaled_anchors + i * block_m / 2 * kStrip, 0, down,
                                             d_candidates + (p * q.width + k0) * kPanel<float>, first > 0});
    }
  }
};
