// Operands of products of bfloat16 tiles, accumulated in float32; the products are bf16_tiles_amx.inl's or
// bf16_tiles_avx512.inl's.
//
// kTerms = 1 takes every operand as one bfloat16: exact for bfloat16 inputs. kTerms = 2 takes it as the sum of two,
// hi + lo, and a product as hi hi + hi lo + lo hi: 16 bits of each operand count, as "high" of
// torch.set_float32_matmul_precision asks.
//
// A tile holds 16 rows of 64 bytes. Of a product C = A B, an A tile is 16 rows x 32 k; a B tile is 16 pairs of k x 16
// columns, the two of a pair side by side; a C tile is 16 x 16 floats. Everything is packed so that a tile's KiB is
// contiguous.
#pragma once

#include "cpu/simd/arena.inl"
#include "cpu/simd/bfloat16.inl"
#include "cpu/simd/gemm.inl"

typedef uint16_t Bf16;
constexpr int kTile = 512;  // elements of an A or B tile

// An operand of kTerms bfloat16 terms: term t of tile i starts at data + (i * kTerms + t) * kTile.
template <int kTerms>
inline void put(Bf16* tile, int64_t at, float x) {
  for (int t = 0; t < kTerms; ++t) {
    tile[t * kTile + at] = to_bfloat16(x);
    x -= from_bfloat16(tile[t * kTile + at]);
  }
}
inline int64_t in_a(int64_t row, int64_t k) { return row * 32 + k; }
inline int64_t in_b(int64_t k, int64_t column) { return k / 2 * 32 + column * 2 + k % 2; }

// Where a 32 x 32 panel of float32 goes as bfloat16: `a`, two A tiles a_step apart (its upper and lower 16 rows), and
// `b`, two B tiles b_step apart (its left and right 16 columns; rows are k). Tiles that are not wanted are null.
template <int kTerms>
struct PanelTiles {
  Bf16* a;
  int64_t a_step;
  Bf16* b;
  int64_t b_step;

  // make(row, x) is applied to half a row as it is read.
  template <class Make>
  void fill(const float* from, Make make) const {
    static constexpr uint16_t kLeft[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                           8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i to_left = _mm512_loadu_si512(kLeft), to_right = _mm512_add_epi16(to_left, _mm512_set1_epi16(16));
    for (int r = 0; r < 32; r += 2) {
      __m512 x[4];  // the two rows' halves; after a term is taken, what is left of them
      for (int i = 0; i < 4; ++i) x[i] = make(r + i / 2, _mm512_loadu_ps(from + r * 32 + i * 16));
      for (int t = 0; t < kTerms; ++t) {
        const __m512i row0 = narrow_two(x[0], x[1]), row1 = narrow_two(x[2], x[3]);
        if (a != nullptr) {
          Bf16* rows = a + (r < 16 ? 0 : a_step) + t * kTile + r % 16 * 32;
          _mm512_storeu_si512(rows, row0);
          _mm512_storeu_si512(rows + 32, row1);
        }
        if (b != nullptr) {
          Bf16* pairs = b + t * kTile + r * 16;
          _mm512_storeu_si512(pairs, _mm512_permutex2var_epi16(row0, to_left, row1));
          _mm512_storeu_si512(pairs + b_step, _mm512_permutex2var_epi16(row0, to_right, row1));
        }
        if (t + 1 < kTerms) {
          subtract(x[0], x[1], row0);
          subtract(x[2], x[3], row1);
        }
      }
    }
  }
  // The rest of an operand after a term. Of an infinite one it is NaN, and so is every product with it.
  static void subtract(__m512& low, __m512& high, __m512i taken) {
    low -= widen((HalfLanes)_mm512_castsi512_si256(taken));
    high -= widen((HalfLanes)_mm512_extracti64x4_epi64(taken, 1));
  }
};

// The pairs of a tile transposed: what was an A tile becomes the B tile of the transposed matrix, and the other way.
template <int kTerms>
inline void transpose_pairs(const Bf16* from, Bf16* to) {
  for (int t = 0; t < kTerms; ++t)
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j)
        __builtin_memcpy(to + t * kTile + j * 32 + i * 2, from + t * kTile + i * 32 + j * 2, 4);
}

// 32 x 32 of a matrix of `width` columns from (r0, k0), scaled by rows; zeros beyond its end and where the scale is 0.
template <class Scale>
inline void load_panel(const float* from, int64_t rows, int64_t width, int64_t r0, int64_t k0, float* to, Scale scale) {
  const int64_t count = at_most(width - k0, 32);
  for (int64_t r = 0; r < 32; ++r) {
    const auto factor = r0 + r < rows ? scale(r) : 0;
    const int64_t used = factor == 0 ? 0 : count;
    for (int64_t k = 0; k < used; ++k) to[r * 32 + k] = float(factor * from[(r0 + r) * width + k0 + k]);
    for (int64_t k = used; k < 32; ++k) to[r * 32 + k] = 0;
  }
}

struct TileProduct {
  int64_t depth;        // tiles along k
  const Bf16 *a0, *a1;  // the two rows of A tiles: depth tiles each, one after another
  const Bf16 *b0, *b1;  // the two columns of B tiles
  float* c;             // 32 x 32, rows kPanel<float> apart
  bool accumulate;
};

// Each of these defines Bf16Guard, which a thread holds while it multiplies, and multiply_tiles.
#ifdef AMX_TILES
#include "cpu/simd/bf16_tiles_amx.inl"
#else
#include "cpu/simd/bf16_tiles_avx512.inl"
#endif
