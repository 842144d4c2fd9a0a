// Products of bfloat16 tiles (bf16_tiles.inl) by AVX512-BF16: VDPBF16PS multiplies a pair of k at once, at twice the
// rate of float32 FMA. 8 rows x 2 vectors of sums hide its latency, with 10 loads per 16 products.
#pragma once

struct Bf16Guard {};

// 8 rows of C, from row `first` of a row of A tiles.
inline void multiply_8_rows(const TileProduct& p, const Bf16* a, int64_t first, float* c) {
  constexpr int kRows = 8;
  __m512 sum[kRows][2];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < 2; ++v)
      sum[i][v] = p.accumulate ? _mm512_loadu_ps(c + i * kPanel<float> + v * 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < p.depth; ++k) {
    const Bf16 *rows = a + k * kTile + in_a(first, 0), *b0 = p.b0 + k * kTile, *b1 = p.b1 + k * kTile;
    for (int64_t pair = 0; pair < 16; ++pair) {
      const auto left = (__m512bh)_mm512_loadu_si512(b0 + pair * 32),
                 right = (__m512bh)_mm512_loadu_si512(b1 + pair * 32);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        int32_t both;
        __builtin_memcpy(&both, rows + in_a(i, 2 * pair), 4);
        const auto x = (__m512bh)_mm512_set1_epi32(both);
        sum[i][0] = _mm512_dpbf16_ps(sum[i][0], x, left);
        sum[i][1] = _mm512_dpbf16_ps(sum[i][1], x, right);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + i * kPanel<float> + v * 16, sum[i][v]);
}

template <int kTerms>
inline void multiply_tiles(const TileProduct& p) {
  static_assert(kTerms == 1, "products of two terms would be slower than float32's");
  for (int64_t r = 0; r < 32; r += 8) multiply_8_rows(p, r < 16 ? p.a0 : p.a1, r % 16, p.c + r * kPanel<float>);
}
