// The products of the sweep (infonce_rows.inl) on AMX bfloat16 tiles, accumulated in float32.
//
// kTerms = 1 takes every operand as one bfloat16: exact for bfloat16 inputs. kTerms = 2 takes it as the sum of two,
// hi + lo, and a product as hi hi + hi lo + lo hi: 16 bits of each operand count, as "high" of
// torch.set_float32_matmul_precision asks.
//
// A tile holds 16 rows of 64 bytes. Of a product C = A B, an A tile is 16 rows x 32 k; a B tile is 16 pairs of k x 16
// columns, the two of a pair side by side; a C tile is 16 x 16 floats. Everything is packed so that a tile's KiB is
// contiguous, and four C tiles at a time (2 x 2) let each tile loaded serve twice: 4 loads per 4 products, which L1
// sustains at the full rate of the tile unit (from L2 three quarters of it, from L3 an eighth: measured).

#include "cpu/infonce_rows.inl"

typedef uint16_t Bf16;
constexpr int kTile = 512;  // elements of an A or B tile

struct AmxGuard {
  FlushDenormals flush;
  AmxGuard() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~AmxGuard() { _tile_release(); }
};

inline Bf16 to_bf16(float x) {  // round to nearest even; a NaN stays one
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16) | 0x40;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
inline float to_float(Bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// An operand of kTerms bfloat16 terms: term t of tile i starts at data + (i * kTerms + t) * kTile.
template <int kTerms>
inline void put(Bf16* tile, int64_t at, float x) {
  for (int t = 0; t < kTerms; ++t) {
    tile[t * kTile + at] = to_bf16(x);
    x -= to_float(tile[t * kTile + at]);
  }
}
template <int kTerms>
inline float get(const Bf16* tile, int64_t at) {
  float x = 0;
  for (int t = 0; t < kTerms; ++t) x += to_float(tile[t * kTile + at]);
  return x;
}
inline int64_t in_a(int64_t row, int64_t k) { return row * 32 + k; }
inline int64_t in_b(int64_t k, int64_t column) { return k / 2 * 32 + column * 2 + k % 2; }

struct TileProduct {
  int64_t depth;        // tiles along k
  const Bf16 *a0, *a1;  // the two rows of A tiles: depth tiles each, one after another
  const Bf16 *b0, *b1;  // the two columns of B tiles
  float* c;             // 32 x 32, rows kPanel<float> apart
  bool accumulate;
};

#define MULTIPLY_2X2       \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7);

template <int kTerms>
inline void multiply_tiles(const TileProduct& p) {
  constexpr int kRowBytes = 32 * sizeof(float);
  float *const c01 = p.c + 16, *const c10 = p.c + 16 * 32, *const c11 = c10 + 16;
  if (p.accumulate) {
    _tile_loadd(0, p.c, kRowBytes);
    _tile_loadd(1, c01, kRowBytes);
    _tile_loadd(2, c10, kRowBytes);
    _tile_loadd(3, c11, kRowBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < p.depth; ++k) {
    const int64_t at = k * kTerms * kTile;
    _tile_loadd(4, p.a0 + at, 64);
    _tile_loadd(5, p.a1 + at, 64);
    if constexpr (kTerms == 2) {  // hi lo first: the small terms, then hi hi, then lo hi
      _tile_loadd(6, p.b0 + at + kTile, 64);
      _tile_loadd(7, p.b1 + at + kTile, 64);
      MULTIPLY_2X2
    }
    _tile_loadd(6, p.b0 + at, 64);
    _tile_loadd(7, p.b1 + at, 64);
    MULTIPLY_2X2
    if constexpr (kTerms == 2) {
      _tile_loadd(4, p.a0 + at + kTile, 64);
      _tile_loadd(5, p.a1 + at + kTile, 64);
      MULTIPLY_2X2
    }
  }
  _tile_stored(0, p.c, kRowBytes);
  _tile_stored(1, c01, kRowBytes);
  _tile_stored(2, c10, kRowBytes);
  _tile_stored(3, c11, kRowBytes);
}
#undef MULTIPLY_2X2

// A thread's rows are taken 32 at a time, so that their block of S and E stays in L1 from product to product.
template <int kTerms>
struct AmxSweep : Sweep<float, 32> {
  using Guard = AmxGuard;
  static constexpr int kGroup = 32;
  static constexpr int64_t kStep = kTerms * kTile;  // elements from one tile to the next
  static constexpr int64_t kPanelSize =
      32 * kPanel<float> + 16;  // of S; a multiple of 4 KiB would alias loads and stores

  int64_t k_tiles;     // d / 32, rounded up
  int64_t row_tiles;   // stripe / 32
  Bf16* b_transposed;  // B tiles [column_panels * 2][k_tiles]: k along d
  Bf16* b_tiles;       // B tiles [k_tiles * 2][column_panels]: k along the columns
  Bf16* e;             // B tiles [column_panels * 2][row_tiles]: k along the stripe's rows
  Bf16* scaled_a;      // A tiles [k_tiles * 2][row_tiles]: A' transposed
  Bf16* task_a;        // per thread, A tiles [task_rows / 16][k_tiles]
  Bf16* task_e;        // per thread, A tiles [2][kBlockPanels]
  float* task_s;       // per thread, [kBlockPanels][32][kPanel]

  AmxSweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base) : Sweep(problem, threads, base, 32) {
    k_tiles = ceil_div(q.width, 32);
    row_tiles = stripe / 32;
    arena.take(column_panels * 2 * k_tiles * kStep, b_transposed);
    arena.take(need_row ? k_tiles * 2 * column_panels * kStep : 0, b_tiles);
    arena.take(need_column ? column_panels * 2 * row_tiles * kStep : 0, e);
    arena.take(need_column ? k_tiles * 2 * row_tiles * kStep : 0, scaled_a);
    arena.take(threads * task_rows / 16 * k_tiles * kStep, task_a);
    arena.take(threads * 2 * kBlockPanels<float> * kStep, task_e);
    arena.take(threads * kBlockPanels<float> * kPanelSize, task_s);
  }

  // Columns [32 p, 32 p + 32) of b as B tiles both ways; what lies beyond N or d is 0.
  void pack_column_panel(int64_t p) {
    for (int64_t j = 0; j < 32; ++j) {
      const int64_t column = p * 32 + j;
      const float* b = column < q.columns ? q.b + column * q.width : nullptr;
      for (int64_t k = 0; k < k_tiles * 32; ++k) {
        const float x = b != nullptr && k < q.width ? b[k] : 0.f;
        put<kTerms>(b_transposed + ((p * 2 + j / 16) * k_tiles + k / 32) * kStep, in_b(k % 32, j % 16), x);
        if (need_row) put<kTerms>(b_tiles + (k / 16 * column_panels + p) * kStep, in_b(j, k % 16), x);
      }
    }
  }

  void pack_rows(int64_t begin, int64_t end, Bf16* a) {
    for (int64_t r = 0; r < ceil_div(end - begin, 32) * 32; ++r)
      for (int64_t k = 0; k < k_tiles * 32; ++k) {
        const bool inside = begin + r < end && k < q.width;
        const float x = inside ? q.a[(first + begin + r) * q.width + k] : 0.f;
        put<kTerms>(a + (r / 16 * k_tiles + k / 32) * kStep, in_a(r % 16, k % 32), x);
      }
  }

  void sweep_rows(int64_t task, int64_t begin, int64_t end) {
    Bf16* a = task_a + task * task_rows / 16 * k_tiles * kStep;
    float* out = out_of(task);
    pack_rows(begin, end, a);
    start_rows(begin, end);
    for (int64_t c = 0; c < column_blocks; ++c)
      for (int64_t r = begin; r < end; r += 32)
        sweep_block(task, c, r, at_most(end, r + 32), a + (r - begin) / 16 * k_tiles * kStep,
                    out == nullptr ? nullptr : out + (r - begin) * kPanel<float>);
    for (int64_t r = begin; r < end; ++r) {
      const float slope = finish_row(r, out == nullptr ? nullptr : out + (r - begin) * kPanel<float>);
      if (need_column) scale_into_tiles(r, slope);
    }
    if (need_column)
      for (int64_t r = end; r < ceil_div(end, 32) * 32; ++r) scale_into_tiles(r, 0);
  }

  // Rows [r0, r1), at most 32, against block c: S, its softmax, E kept as B tiles, O += E B.
  void sweep_block(int64_t task, int64_t c, int64_t r0, int64_t r1, const Bf16* a, float* out) {
    const int64_t p0 = c * kBlockPanels<float>, panels = at_most(column_panels - p0, kBlockPanels<float>);
    float* s = task_s + task * kBlockPanels<float> * kPanelSize;
    Bf16* e_rows = task_e + task * 2 * kBlockPanels<float> * kStep;
    for (int64_t p = 0; p < panels; ++p) {
      const Bf16* b = b_transposed + (p0 + p) * 2 * k_tiles * kStep;
      multiply_tiles<kTerms>({k_tiles, a, a + k_tiles * kStep, b, b + k_tiles * kStep, s + p * kPanelSize, false});
    }
    for (int64_t r = r0; r < r1; ++r)
      absorb(r, c, p0, panels, s + (r - r0) * kPanel<float>, kPanelSize,
             out == nullptr ? nullptr : out + (r - r0) * kPanel<float>);
    if (!need_row && !need_column) return;
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t r = r1 - r0; r < 32; ++r)
        for (int64_t j = 0; j < 32; ++j) s[p * kPanelSize + r * 32 + j] = 0;
      Bf16* kept = need_column ? e + ((p0 + p) * 2 * row_tiles + r0 / 32) * kStep : nullptr;
      narrow(s + p * kPanelSize, e_rows + p * kStep, e_rows + (panels + p) * kStep, kept);
    }
    if (!need_row) return;
    for (int64_t w = 0; w < width_panels; ++w) {
      const Bf16* b = b_tiles + (w * 2 * column_panels + p0) * kStep;
      multiply_tiles<kTerms>({panels, e_rows, e_rows + panels * kStep, b, b + column_panels * kStep,
                              out + w * task_rows * kPanel<float>, c > 0});
    }
  }

  // A 32 x 32 panel of E in float32 to bfloat16: as two A tiles (its upper and lower 16 rows), and where wanted as two
  // B tiles (its left and right 16 columns; rows are k).
  void narrow(const float* s, Bf16* upper, Bf16* lower, Bf16* kept) {
    static constexpr uint16_t kLeft[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                           8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i left = _mm512_loadu_si512(kLeft), right = _mm512_add_epi16(left, _mm512_set1_epi16(16));
    for (int r = 0; r < 32; r += 2) {
      __m512 x[4];  // the two rows' halves; after a term is taken, what is left of them
      for (int i = 0; i < 4; ++i) x[i] = _mm512_loadu_ps(s + r * 32 + i * 16);
      for (int t = 0; t < kTerms; ++t) {
        const __m512i row0 = (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]), row1 = (__m512i)_mm512_cvtne2ps_pbh(x[3], x[2]);
        Bf16* rows = (r < 16 ? upper : lower) + t * kTile + r % 16 * 32;
        _mm512_storeu_si512(rows, row0);
        _mm512_storeu_si512(rows + 32, row1);
        if (kept != nullptr) {
          _mm512_storeu_si512(kept + t * kTile + r * 16, _mm512_permutex2var_epi16(row0, left, row1));
          _mm512_storeu_si512(kept + row_tiles * kStep + t * kTile + r * 16,
                              _mm512_permutex2var_epi16(row0, right, row1));
        }
        if (t + 1 < kTerms) {
          subtract(x[0], x[1], row0);
          subtract(x[2], x[3], row1);
        }
      }
    }
  }
  static void subtract(__m512& low, __m512& high, __m512i taken) {
    const auto widen = [](__m256i half) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    };
    low -= widen(_mm512_castsi512_si256(taken));
    high -= widen(_mm512_extracti64x4_epi64(taken, 1));
  }

  void scale_into_tiles(int64_t r, float slope) {
    const float* a = q.a + (first + r) * q.width;
    for (int64_t k = 0; k < k_tiles * 32; ++k) {
      const float x = slope == 0 || k >= q.width ? 0.f : slope * a[k];
      put<kTerms>(scaled_a + (k / 16 * row_tiles + r / 32) * kStep, in_a(k % 16, r % 32), x);
    }
  }

  // Multiplies a pair of rows of a B tile (16 columns, the rows side by side) by f0 and f1.
  static void rescale_pair(Bf16* at, float f0, float f1) {
    __m512 x0 = _mm512_setzero_ps(), x1 = x0;
    for (int t = 0; t < kTerms; ++t) {
      const __m512i pair = _mm512_loadu_si512(at + t * kTile);
      x0 += _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
      x1 += _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(0xffff0000)));
    }
    x0 *= f0;
    x1 *= f1;
    for (int t = 0; t < kTerms; ++t) {
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x0));
      const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x1)), 16);
      _mm512_storeu_si512(at + t * kTile, _mm512_or_si512(low, high));
      x0 -= _mm512_castsi512_ps(_mm512_slli_epi32(low, 16));
      x1 -= _mm512_castsi512_ps(high);
    }
  }

  void accumulate_column_panel(int64_t p) {
    Bf16* panel = e + p * 2 * row_tiles * kStep;
    const float* factor_p = factor + p / kBlockPanels<float> * stripe;
    for (int64_t r = 0; r < height; r += 2) {
      const float f0 = factor_p[r], f1 = r + 1 < height ? factor_p[r + 1] : 1;
      if (f0 != 1 || f1 != 1)
        for (int64_t half = 0; half < 2; ++half)
          rescale_pair(panel + (half * row_tiles + r / 32) * kStep + in_b(r % 32, 0), f0, f1);
    }
    for (int64_t r = 0; r < height; ++r) {
      const int64_t j = positive_of(first + r) - p * 32;
      if (j >= 0 && j < 32)
        put<kTerms>(panel + (j / 16 * row_tiles + r / 32) * kStep, in_b(r % 32, j % 16), positive_entry[r]);
    }
    for (int64_t w = 0; w < k_tiles; ++w) {
      const Bf16* a = scaled_a + w * 2 * row_tiles * kStep;
      multiply_tiles<kTerms>({ceil_div(height, 32), a, a + row_tiles * kStep, panel, panel + row_tiles * kStep,
                              d_column + (p * d_column_rows + w * 32) * kPanel<float>, first > 0});
    }
  }
};

InfoNCEKernel<float> infonce_bf16() { return {workspace_bytes<AmxSweep<1>>, run_infonce<AmxSweep<1>>}; }
InfoNCEKernel<float> infonce_bf16x2() { return {workspace_bytes<AmxSweep<2>>, run_infonce<AmxSweep<2>>}; }
