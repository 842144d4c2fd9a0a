// The sweep where a product costs more than the memory of its result: S and E are made once, in the row phase, which
// also makes O; E is kept in bfloat16, 2 bytes an element, for the column phase, D += E^T A'. E was taken at the m of
// its block; the few rows whose m has moved since are brought to the last one before that.
#pragma once

#include "cpu/infonce/bf16.inl"

struct KeptSweep : Bf16Sweep<1> {
  KeptSweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base)
      : Bf16Sweep<1>(problem, threads, base, kRowPanels) {
    if (!need_column) return;
    kept_tiles = row_tiles | 1;  // odd, or tiles of neighbouring panels would alias
    arena.take(column_panels * 2 * kept_tiles * kStep, kept);
    arena.take(ceil_div(column_panels, kRowPanels) * stripe, block_m);
  }

  void run_stripe() {
    over_rows(*this, [](KeptSweep& s, int64_t task, int64_t begin, int64_t end) {
      s.sweep_rows(task, begin, end, s.out_of(task));
      if (!s.need_column) return;
      for (int64_t r = begin; r < end; r += 2) s.settle(r);
      for (int64_t r0 = begin; r0 < end; r0 += 32) s.scale_into_tiles(r0);
    });
    if (need_column)
      over_panels(*this, [](KeptSweep& s, int64_t p) { s.accumulate_columns(p, s.kept_tile(p, 0), s.kept_tiles); });
  }

  // Brings E of rows r and r + 1 to their final m and shift, and puts the positive in, as p - 1.
  void settle(int64_t r) {
    const int64_t rows = at_most(height - r, 2);
    for (int64_t i = r; i < r + rows; ++i) shift[i] = state[i].slope == 0 ? 0 : e_shift(i);
    for (int64_t c = 0; c * kRowPanels < column_panels; ++c) {
      const float even = factor_of(c, r), odd = rows == 2 ? factor_of(c, r + 1) : 1;
      if (even == 1 && odd == 1) continue;
      for (int64_t p = c * kRowPanels; p < at_most((c + 1) * kRowPanels, column_panels); ++p)
        for (int64_t half = 0; half < 2; ++half)
          scale_pair(kept_tile(p, r) + half * kept_tiles * kStep + in_b(r % 32, 0), even, odd);
    }
    for (int64_t i = r; i < r + rows; ++i) place_positive(i);
  }

  // What a block of E is off by; 0 where the row has no gradient, whatever E holds.
  float factor_of(int64_t block, int64_t r) const {
    const RowState<float>& row = state[r];
    if (row.slope == 0) return 0;
    const float m = block_m[block * stripe + r];
    return exp2(m == row.m ? shift[r] : (m - row.m) * row.scale + shift[r]);
  }

  // Two rows of a B tile, side by side pair by pair.
  static void scale_pair(Bf16* pairs, float even, float odd) {
    const __m512i both = _mm512_loadu_si512(pairs), high = _mm512_set1_epi32(0xffff0000);
    const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
                 top = _mm512_castsi512_ps(_mm512_and_si512(both, high));
    const __m512 zero = _mm512_setzero_ps();
    const WordLanes x = to_words(narrow(even == 0 ? zero : low * even)),
                    y = to_words(narrow(odd == 0 ? zero : top * odd));
    _mm512_storeu_si512(pairs, (__m512i)(x | y << 16));
  }

  void place_positive(int64_t r) {
    const int64_t j = positive_of(first + r);
    if (j == kIgnore) return;
    put<1>(kept_tile(j / 32, r) + j % 32 / 16 * kept_tiles * kStep, in_b(r % 32, j % 16),
           state[r].slope == 0 ? 0 : positive_entry[r] * exp2(shift[r]));
  }
};
