// The sweep where a product costs more than the memory of its result: S and P are computed once, in the row phase,
// which also sums acc; P is stored in bfloat16, 2 bytes an element, for the column phase, d_candidates += P^T A'. P was
// taken at the m of its block; before the column phase the few rows whose m has grown since are rescaled to the final
// m.
#pragma once

#include "cpu/infonce/bf16.inl"

struct StoredSweep : Bf16Sweep<1> {
  StoredSweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base)
      : Bf16Sweep<1>(problem, threads, base, kBlockPanels) {
    if (!need_d_candidates) return;
    stored_tiles = row_tiles | 1;  // odd, or tiles of neighbouring panels would alias
    arena.take(column_panels * 2 * stored_tiles * kStep, stored);
    arena.take(ceil_div(column_panels, kBlockPanels) * block_m, m_of_block);
  }

  void run_block() {
    over_rows(*this, [](StoredSweep& s, int64_t task, int64_t begin, int64_t end) {
      s.sweep_rows(task, begin, end, s.acc_of(task));
      if (!s.need_d_candidates) return;
      for (int64_t r = begin; r < end; r += 2) s.rescale_to_final_m(r);
      for (int64_t r0 = begin; r0 < end; r0 += 32) s.scale_into_tiles(r0);
    });
    if (need_d_candidates)
      over_panels(*this,
                  [](StoredSweep& s, int64_t p) { s.accumulate_columns(p, s.stored_tile(p, 0), s.stored_tiles); });
  }

  // Rescales P of rows r and r + 1 to their final m and shift, and enters the positive, as its probability less 1.
  void rescale_to_final_m(int64_t r) {
    const int64_t rows = at_most(height - r, 2);
    for (int64_t i = r; i < r + rows; ++i) shift[i] = state[i].grad_scale == 0 ? 0 : exponent_shift(i);
    for (int64_t c = 0; c * kBlockPanels < column_panels; ++c) {
      const float even = alpha_of(c, r), odd = rows == 2 ? alpha_of(c, r + 1) : 1;
      if (even == 1 && odd == 1) continue;
      for (int64_t p = c * kBlockPanels; p < at_most((c + 1) * kBlockPanels, column_panels); ++p)
        for (int64_t half = 0; half < 2; ++half)
          scale_pair(stored_tile(p, r) + half * stored_tiles * kStep + in_b(r % 32, 0), even, odd);
    }
    for (int64_t i = r; i < r + rows; ++i) place_positive(i);
  }

  // What a block of P is multiplied by; 0 where the row has no gradient, whatever P holds.
  float alpha_of(int64_t block, int64_t r) const {
    const RowState<float>& row = state[r];
    if (row.grad_scale == 0) return 0;
    const float m = m_of_block[block * block_m + r];
    return exp2(m == row.m ? shift[r] : (m - row.m) * row.softmax_scale_log2 + shift[r]);
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
    put<1>(stored_tile(j / 32, r) + j % 32 / 16 * stored_tiles * kStep, in_b(r % 32, j % 16),
           state[r].grad_scale == 0 ? 0 : positive_p[r] * exp2(shift[r]));
  }
};
