// The products of the sweep (softmax.inl) on bfloat16 tiles (bf16_tiles.inl): packing and products. bf16_recomputed.inl
// and bf16_stored.inl say when S and E are made. Rows are taken 32 at a time, whose S and E stay in L1 from product to
// product.
#pragma once

#include "cpu/infonce/softmax.inl"
#include "cpu/simd/bf16_tiles.inl"

template <int kTerms>
struct Bf16Sweep : Sweep<float, 32> {
  using Guard = Bf16Guard;
  static constexpr int64_t kStep = kTerms * kTile;  // elements from one tile to the next
  // Floats from one panel of S to the next; a multiple of 4 KiB would alias loads and stores.
  static constexpr int64_t kPanelSize = 32 * kPanel<float> + 16;
  static constexpr int64_t kRowPanels = 7;  // of a block in the row phase: its S, 28 KiB, stays in L1

  int64_t k_tiles;       // d / 32, rounded up
  int64_t row_tiles;     // stripe / 32
  int64_t e_panels;      // of a block of task_e
  Bf16* b_transposed;    // B tiles [column_panels * 2][k_tiles]: k along d
  Bf16* b_tiles;         // B tiles [k_tiles * 2][column_panels]: k along the columns
  Bf16* a_tiles;         // A tiles [stripe / 16][k_tiles]
  Bf16* scaled_a;        // A tiles [k_tiles * 2][row_tiles]: A' transposed
  float* shift;          // [stripe] E, as the column gradient sees it, is multiplied by 2^shift, and A' divided
  Bf16* kept = nullptr;  // B tiles [column_panels * 2][kept_tiles]: all of E, k along the stripe's rows; if it is kept
  int64_t kept_tiles = 0;
  float* block_m = nullptr;  // [column_panels / kRowPanels][stripe], if E is kept: the m it was taken at
  Bf16* task_e;              // per thread, A tiles [2][e_panels]
  float* task_s;             // per thread, [kRowPanels][32][kPanel], panels kPanelSize apart

  Bf16Sweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base, int64_t panels)
      : Sweep(problem, threads, base, 32), e_panels(panels) {
    k_tiles = ceil_div(q.width, 32);
    row_tiles = stripe / 32;
    arena.take(column_panels * 2 * k_tiles * kStep, b_transposed);
    arena.take(need_row ? k_tiles * 2 * column_panels * kStep : 0, b_tiles);
    arena.take(stripe / 16 * k_tiles * kStep, a_tiles);
    arena.take(need_column ? k_tiles * 2 * row_tiles * kStep : 0, scaled_a);
    arena.take(need_column ? stripe : 0, shift);
    arena.take(threads * 2 * e_panels * kStep, task_e);
    arena.take(threads * kRowPanels * kPanelSize, task_s);
  }

  // Columns [32 p, 32 p + 32) of b as B tiles both ways; what lies beyond N or d is 0.
  void pack_column_panel(int64_t p) {
    alignas(64) float panel[32 * 32];
    alignas(64) Bf16 rows[2 * kStep];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.b, q.columns, q.width, p * 32, w * 32, panel, [](int64_t) { return 1.f; });
      Bf16* pairs = need_row ? b_tiles + (w * 2 * column_panels + p) * kStep : nullptr;
      PanelTiles<kTerms>{rows, kStep, pairs, column_panels * kStep}.fill(panel, unchanged);
      for (int64_t half = 0; half < 2; ++half)
        transpose_pairs<kTerms>(rows + half * kStep, b_transposed + ((p * 2 + half) * k_tiles + w) * kStep);
    }
  }

  void pack_rows(int64_t r0) {  // [r0, r0 + 32) of the stripe; beyond its height: zeros
    alignas(64) float panel[32 * 32];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.a + first * q.width, height, q.width, r0, w * 32, panel, [](int64_t) { return 1.f; });
      Bf16* tiles = a_tiles + (r0 / 16 * k_tiles + w) * kStep;
      PanelTiles<kTerms>{tiles, k_tiles * kStep, nullptr, 0}.fill(panel, unchanged);
    }
  }

  void scale_into_tiles(int64_t r0) {  // A' of [r0, r0 + 32)
    alignas(64) float panel[32 * 32];
    alignas(64) Bf16 columns[2 * kStep];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.a + first * q.width, height, q.width, r0, w * 32, panel, [&](int64_t r) {
        const RowState<float>& row = state[r0 + r];
        return row.slope == 0 ? 0 : row.slope * (row.inverse_l * exp2(-shift[r0 + r]));
      });
      PanelTiles<kTerms>{nullptr, 0, columns, kStep}.fill(panel, unchanged);
      for (int64_t half = 0; half < 2; ++half)
        transpose_pairs<kTerms>(columns + half * kStep, scaled_a + ((w * 2 + half) * row_tiles + r0 / 32) * kStep);
    }
  }

  static __m512 unchanged(int, __m512 x) { return x; }

  // Rows [begin, end) of the stripe against every block of columns: their state, O where `out` is not null, and E where
  // it is kept.
  void sweep_rows(int64_t task, int64_t begin, int64_t end, float* out) {
    for (int64_t r0 = begin; r0 < end; r0 += 32) pack_rows(r0);
    start_rows(begin, end);
    for (int64_t p0 = 0; p0 < column_panels; p0 += kRowPanels) {
      const int64_t panels = at_most(column_panels - p0, kRowPanels);
      for (int64_t r0 = begin; r0 < end; r0 += 32) {
        float* s = similarities(task, r0, p0, panels);
        float* out_0 = out == nullptr ? nullptr : out + (r0 - begin) * kPanel<float>;
        for (int64_t r = r0; r < at_most(end, r0 + 32); ++r) {
          float* row = s + (r - r0) * kPanel<float>;
          if (out == nullptr && kept == nullptr)
            absorb<false>(r, p0, panels, row, kPanelSize, nullptr);
          else
            absorb<true>(r, p0, panels, row, kPanelSize, out == nullptr ? nullptr : out_0 + (r - r0) * kPanel<float>);
          if (kept != nullptr) block_m[p0 / kRowPanels * stripe + r] = state[r].m;
        }
        for (int64_t r = at_most(end, r0 + 32); r < r0 + 32; ++r)  // 0 times what b holds may be NaN
          clear(panels, s + (r - r0) * kPanel<float>, kPanelSize);
        pack_entries(task, r0, p0, panels, s, out != nullptr);
        if (out != nullptr) accumulate_rows(task, p0, panels, out_0, task_rows, p0 > 0);
      }
    }
    for (int64_t r = begin; r < end; ++r) {
      finish_row(r);
      if (out != nullptr) finish_row_gradient(r, out + (r - begin) * kPanel<float>);
    }
  }

  void pack_entries(int64_t task, int64_t r0, int64_t p0, int64_t panels, const float* s, bool for_rows) {
    if (!for_rows && kept == nullptr) return;
    for (int64_t p = 0; p < panels; ++p)
      PanelTiles<kTerms>{for_rows ? e_of(task) + p * kStep : nullptr, panels * kStep, kept_tile(p0 + p, r0),
                         kept_tiles * kStep}
          .fill(s + p * kPanelSize, unchanged);
  }

  // Rows [r0, r0 + 32) of a panel of E, the left of two tiles.
  Bf16* kept_tile(int64_t p, int64_t r0) const {
    return kept == nullptr ? nullptr : kept + (p * 2 * kept_tiles + r0 / 32) * kStep;
  }

  // S of 32 rows and a block of columns, in the thread's scratch.
  float* similarities(int64_t task, int64_t r0, int64_t p0, int64_t panels) {
    float* s = task_s + task * kRowPanels * kPanelSize;
    for (int64_t p = 0; p < panels; ++p) similarities_of_panel(r0, p0 + p, s + p * kPanelSize);
    return s;
  }

  void similarities_of_panel(int64_t r0, int64_t p, float* s) {
    const Bf16 *a = a_tiles + r0 / 16 * k_tiles * kStep, *b = b_transposed + p * 2 * k_tiles * kStep;
    multiply_tiles<kTerms>({k_tiles, a, a + k_tiles * kStep, b, b + k_tiles * kStep, s, false});
  }

  Bf16* e_of(int64_t task) const { return task_e + task * 2 * e_panels * kStep; }

  // O of 32 rows (panels `height_of_out` rows high) (+)= E B over a block.
  void accumulate_rows(int64_t task, int64_t p0, int64_t panels, float* out, int64_t height_of_out, bool accumulate) {
    const Bf16* e = e_of(task);
    for (int64_t w = 0; w < width_panels; ++w) {
      const Bf16* b = b_tiles + (w * 2 * column_panels + p0) * kStep;
      multiply_tiles<kTerms>({panels, e, e + panels * kStep, b, b + column_panels * kStep,
                              out + w * height_of_out * kPanel<float>, accumulate});
    }
  }

  // D of a panel += E^T A' over the stripe; `e`, B tiles [2], k along the rows, the two `step` tiles apart.
  void accumulate_columns(int64_t p, const Bf16* e, int64_t step) {
    for (int64_t w = 0; w < k_tiles; ++w) {
      const Bf16* a = scaled_a + w * 2 * row_tiles * kStep;
      multiply_tiles<kTerms>({ceil_div(height, 32), a, a + row_tiles * kStep, e, e + step * kStep,
                              d_column + (p * d_column_rows + w * 32) * kPanel<float>, first > 0});
    }
  }
};
