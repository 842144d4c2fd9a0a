// Products of bfloat16 tiles (bf16_tiles.inl) by AMX. Four C tiles at a time (2 x 2) let each tile loaded serve twice:
// 4 loads per 4 products, which L1 sustains at the full rate of the tile unit (from L2 three quarters of it, from L3 an
// eighth: measured).
#pragma once

struct Bf16Guard {
  Bf16Guard() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~Bf16Guard() { _tile_release(); }
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
