// Pairs of bfloat16 as elements of products (gemm.inl), accumulated in float32 by AVX512-BF16 or NEON: VDPBF16PS and
// BFDOT multiply both numbers of a pair at once, at twice the rate of float32 FMA, and take a pair of A as a broadcast
// of 32 bits.
//
// Measured on a Zen 5 at the widths of AdaFTR over MMoE (184 to 192; 64 to 64, 32, 16, 1), 1,024 rows: tiles run at 91
// to 97 % of that rate, as float32's do; packing the weights, once a call, takes 2 to 7 % of it, and what stands
// between products a fifth to a third, so that all layers, forward and backward, take 0.59 of the time in float32.
#pragma once

#include "cpu/simd/bfloat16.inl"
#include "cpu/simd/factors.inl"

struct Pair {
  uint32_t bits;  // the number of the lower index in the lower half
};

template <>
struct Simd<Pair> {
  typedef uint32_t V __attribute__((vector_size(VECTOR_BYTES)));
  typedef uint32_t U __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
};

template <>
struct SumOf<Pair> {
  using Type = float;
};

template <>
constexpr int kDepth<Pair> = 2;

template <>
constexpr Pair kOne<Pair> = {0x3f803f80};

inline void multiply_add(Vec<float>& sum, Pair x, Vec<Pair> row) {
#if defined(__aarch64__)
  sum = vbfdotq_lane_f32(sum, (bfloat16x8_t)row, vcreate_bf16(x.bits), 0);
#else
  sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(x.bits), (__m512bh)row);
#endif
}

inline void store_along(Pair* to, Vec<float> x, int64_t count) {
  *reinterpret_cast<HalfLanes*>(to) = narrow_some(x, count);
}

inline void store_down(Pair* to, const Vec<float>* rows) {
  store(to, to_words(narrow(rows[0])) | to_words(narrow(rows[1])) << 16);
}
