// The products of the sweep (softmax.inl) on bfloat16 tiles (bf16_tiles.inl): packing and products. bf16_recomputed.inl
// and bf16_stored.inl say when S and P are made. Rows are taken 32 at a time, whose S and P stay in L1 from product to
// product.
#pragma once

#include "cpu/infonce/driver.inl"
#include "cpu/simd/bf16_tiles.inl"

template <int kTerms>
struct Bf16Sweep : Sweep<float, 32> {
  using Guard = Bf16Guard;
  static constexpr int64_t kStep = kTerms * kTile;  // elements from one tile to the next
  // Floats from one panel of S to the next; a multiple of 4 KiB would alias loads and stores.
  static constexpr int64_t kPanelSize = 32 * kPanel<float> + 16;
  static constexpr int64_t kBlockPanels = 7;  // of a block in the row phase: its S, 28 KiB, stays in L1

  int64_t k_tiles;              // d / 32, rounded up
  int64_t row_tiles;            // block_m / 32
  int64_t probs_panels;         // of a block of task_probs
  Bf16* candidates_transposed;  // B tiles [column_panels * 2][k_tiles]: k along d
  Bf16* candidate_tiles;        // B tiles [k_tiles * 2][column_panels]: k along the columns
  Bf16* anchor_tiles;           // A tiles [block_m / 16][k_tiles]
  Bf16* scaled_anchors;         // A tiles [k_tiles * 2][row_tiles]: A' transposed
  float* shift;                 // [block_m] in d_candidates += P^T A', P is multiplied by 2^shift and A' divided by it
  Bf16* stored =
      nullptr;  // B tiles [column_panels * 2][stored_tiles]: all of P, k along the block's rows, if it is stored
  int64_t stored_tiles = 0;
  float* m_of_block = nullptr;  // [column_panels / kBlockPanels][block_m], if P is stored: the m it was taken at
  Bf16* task_probs;             // per thread, A tiles [2][probs_panels]
  float* task_scores;           // per thread, [kBlockPanels][32][kPanel], panels kPanelSize apart

  Bf16Sweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base, int64_t panels)
      : Sweep(problem, threads, base, 32), probs_panels(panels) {
    // The gradient of a row is made of rounded P: a d_tau taken from it errs where its terms nearly cancel.
    d_tau_from_sums = q.d_tau != nullptr;
    need_sum_pz |= d_tau_from_sums;
    k_tiles = ceil_div(q.width, 32);
    row_tiles = block_m / 32;
    arena.take(column_panels * 2 * k_tiles * kStep, candidates_transposed);
    arena.take(need_d_anchors ? k_tiles * 2 * column_panels * kStep : 0, candidate_tiles);
    arena.take(block_m / 16 * k_tiles * kStep, anchor_tiles);
    arena.take(need_d_candidates ? k_tiles * 2 * row_tiles * kStep : 0, scaled_anchors);
    arena.take(need_d_candidates ? block_m : 0, shift);
    arena.take(threads * 2 * probs_panels * kStep, task_probs);
    arena.take(threads * kBlockPanels * kPanelSize, task_scores);
  }

  // Candidates [32 p, 32 p + 32) as B tiles both ways; what lies beyond N or d is 0.
  void pack_column_panel(int64_t p) {
    alignas(64) float panel[32 * 32];
    alignas(64) Bf16 rows[2 * kStep];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.candidates, q.columns, q.width, p * 32, w * 32, panel, [](int64_t) { return 1.f; });
      Bf16* pairs = need_d_anchors ? candidate_tiles + (w * 2 * column_panels + p) * kStep : nullptr;
      const bool apart = pairs != nullptr && candidate_power != 1;
      PanelTiles<kTerms>{rows, kStep, apart ? nullptr : pairs, column_panels * kStep}.fill(panel, unchanged);
      if (apart) {
        const float power = candidate_power;
        PanelTiles<kTerms>{nullptr, 0, pairs, column_panels * kStep}.fill(panel,
                                                                          [power](int, __m512 x) { return x * power; });
      }
      for (int64_t half = 0; half < 2; ++half)
        transpose_pairs<kTerms>(rows + half * kStep, candidates_transposed + ((p * 2 + half) * k_tiles + w) * kStep);
    }
  }

  void pack_rows(int64_t r0) {  // [r0, r0 + 32) of the block; beyond its height: zeros
    alignas(64) float panel[32 * 32];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.anchors + first * q.width, height, q.width, r0, w * 32, panel, [](int64_t) { return 1.f; });
      Bf16* tiles = anchor_tiles + (r0 / 16 * k_tiles + w) * kStep;
      PanelTiles<kTerms>{tiles, k_tiles * kStep, nullptr, 0}.fill(panel, unchanged);
    }
  }

  void scale_into_tiles(int64_t r0) {  // A' of [r0, r0 + 32)
    alignas(64) float panel[32 * 32];
    alignas(64) Bf16 columns[2 * kStep];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.anchors + first * q.width, height, q.width, r0, w * 32, panel,
                 [&](int64_t r) { return anchor_factor(r0 + r, shift[r0 + r]); });
      PanelTiles<kTerms>{nullptr, 0, columns, kStep}.fill(panel, unchanged);
      for (int64_t half = 0; half < 2; ++half)
        transpose_pairs<kTerms>(columns + half * kStep,
                                scaled_anchors + ((w * 2 + half) * row_tiles + r0 / 32) * kStep);
    }
  }

  static __m512 unchanged(int, __m512 x) { return x; }

  // Rows [begin, end) of the block against every block of columns: their state, acc unless it is null, and P where it
  // is stored.
  void sweep_rows(int64_t task, int64_t begin, int64_t end, float* acc) {
    for (int64_t r0 = begin; r0 < end; r0 += 32) pack_rows(r0);
    start_rows(begin, end);
    int64_t r0_of_scores = -1, p_of_scores = -1;  // of the panel of S in the scratch: rows often share it
    set_ignore_above(begin, end, [&](int64_t r, int64_t y) {
      float* s = task_scores + task * kBlockPanels * kPanelSize;
      const int64_t r0 = r / 32 * 32, p = y / 32;
      if (r0 != r0_of_scores || p != p_of_scores) scores_of_panel(r0_of_scores = r0, p_of_scores = p, s);
      return s[r % 32 * kPanel<float> + y % 32];
    });
    for (int64_t p0 = 0; p0 < column_panels; p0 += kBlockPanels) {
      const int64_t panels = at_most(column_panels - p0, kBlockPanels);
      for (int64_t r0 = begin; r0 < end; r0 += 32) {
        float* s = scores(task, r0, p0, panels);
        float* acc_0 = acc == nullptr ? nullptr : acc + (r0 - begin) * kPanel<float>;
        for (int64_t r = r0; r < at_most(end, r0 + 32); ++r) {
          float* row = s + (r - r0) * kPanel<float>;
          if (acc == nullptr && stored == nullptr)
            to_probs<false>(r, p0, panels, row, kPanelSize, nullptr);
          else
            to_probs<true>(r, p0, panels, row, kPanelSize, acc == nullptr ? nullptr : acc_0 + (r - r0) * kPanel<float>);
          if (stored != nullptr) m_of_block[p0 / kBlockPanels * block_m + r] = state[r].m;
        }
        for (int64_t r = at_most(end, r0 + 32); r < r0 + 32; ++r)  // 0 times what a candidate holds may be NaN
          clear(panels, s + (r - r0) * kPanel<float>, kPanelSize);
        pack_probs(task, r0, p0, panels, s, acc != nullptr);
        if (acc != nullptr) accumulate_rows(task, p0, panels, acc_0, task_rows, p0 > 0);
      }
    }
    for (int64_t r = begin; r < end; ++r) {
      finish_row(r);
      if (acc != nullptr) finish_row_gradient(r, acc + (r - begin) * kPanel<float>);
    }
  }

  void pack_probs(int64_t task, int64_t r0, int64_t p0, int64_t panels, const float* s, bool for_rows) {
    if (!for_rows && stored == nullptr) return;
    for (int64_t p = 0; p < panels; ++p)
      PanelTiles<kTerms>{for_rows ? probs_of(task) + p * kStep : nullptr, panels * kStep, stored_tile(p0 + p, r0),
                         stored_tiles * kStep}
          .fill(s + p * kPanelSize, unchanged);
  }

  // Rows [r0, r0 + 32) of a panel of P, the left of two tiles.
  Bf16* stored_tile(int64_t p, int64_t r0) const {
    return stored == nullptr ? nullptr : stored + (p * 2 * stored_tiles + r0 / 32) * kStep;
  }

  // S of 32 rows and a block of columns, in the thread's scratch.
  float* scores(int64_t task, int64_t r0, int64_t p0, int64_t panels) {
    float* s = task_scores + task * kBlockPanels * kPanelSize;
    for (int64_t p = 0; p < panels; ++p) scores_of_panel(r0, p0 + p, s + p * kPanelSize);
    return s;
  }

  void scores_of_panel(int64_t r0, int64_t p, float* s) {
    const Bf16 *a = anchor_tiles + r0 / 16 * k_tiles * kStep, *b = candidates_transposed + p * 2 * k_tiles * kStep;
    multiply_tiles<kTerms>({k_tiles, a, a + k_tiles * kStep, b, b + k_tiles * kStep, s, false});
  }

  Bf16* probs_of(int64_t task) const { return task_probs + task * 2 * probs_panels * kStep; }

  // acc of 32 rows (panels `acc_height` rows high) (+)= P B over a block.
  void accumulate_rows(int64_t task, int64_t p0, int64_t panels, float* acc, int64_t acc_height, bool accumulate) {
    const Bf16* probs = probs_of(task);
    for (int64_t w = 0; w < width_panels; ++w) {
      const Bf16* b = candidate_tiles + (w * 2 * column_panels + p0) * kStep;
      multiply_tiles<kTerms>({panels, probs, probs + panels * kStep, b, b + column_panels * kStep,
                              acc + w * acc_height * kPanel<float>, accumulate});
    }
  }

  // d_candidates of a panel += P^T A' over the block's rows; `probs`, B tiles [2], k along the rows, the two `step`
  // tiles apart.
  void accumulate_columns(int64_t p, const Bf16* probs, int64_t step) {
    for (int64_t w = 0; w < k_tiles; ++w) {
      const Bf16* a = scaled_anchors + w * 2 * row_tiles * kStep;
      multiply_tiles<kTerms>({ceil_div(height, 32), a, a + row_tiles * kStep, probs, probs + step * kStep,
                              d_candidates + (p * d_padded + w * 32) * kPanel<float>, first > 0});
    }
  }
};
