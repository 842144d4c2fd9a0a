// bfloat16, the upper half of a float, and the one place that rounds to it. Included once per instruction set (see
// vectors.inl).
#pragma once

#include "cpu/simd/vectors.inl"

// Rounds the bits of floats to those of bfloat16, in the lower halves: to the nearest, ties to even. Rounding could
// turn a NaN into infinity, so a NaN is truncated and made quiet. `Bits` is uint32_t or a vector of it.
template <class Bits>
inline Bits rounded_to_bfloat16(Bits bits) {
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return ((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16;
}

inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(x));
  return static_cast<uint16_t>(rounded_to_bfloat16(bits));
}

inline float from_bfloat16(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// The same of vectors. Those that are less aligned than vectors are go by reference: GCC 14 stops at one by value when
// it compiles for aarch64.
typedef uint16_t HalfLanes __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t WordLanes __attribute__((vector_size(VECTOR_BYTES)));

inline WordLanes to_words(const HalfLanes& x) {
#if VECTOR_BYTES == 64  // GCC would do it by halves
  return (WordLanes)_mm512_cvtepu16_epi32((__m256i)x);
#else
  return __builtin_convertvector(x, WordLanes);
#endif
}

inline Vec<float> widen(const HalfLanes& x) { return (Vec<float>)(to_words(x) << 16); }

#if defined(BF16_INSTRUCTIONS) && defined(__aarch64__)
// The instruction rounds like rounded_to_bfloat16.
inline HalfLanes narrow(Vec<float> x) { return (HalfLanes)vcvt_bf16_f32(x); }

// The first `count` lanes, the others zero. 1 <= count.
inline HalfLanes narrow_some(Vec<float> x, int64_t count) {
  HalfLanes half = narrow(x);
  for (int64_t i = count; i < kLanes<float>; ++i) half[i] = 0;
  return half;
}
#elif defined(BF16_INSTRUCTIONS)
// The instructions round like rounded_to_bfloat16, and flush denormals to zero.
inline HalfLanes narrow(Vec<float> x) { return (HalfLanes)_mm512_cvtneps_pbh(x); }

// The first `count` lanes, the others zero. 1 <= count.
inline HalfLanes narrow_some(Vec<float> x, int64_t count) {
  const __mmask16 mask = count < kLanes<float> ? (1u << count) - 1 : 0xffff;
  return (HalfLanes)_mm512_maskz_cvtneps_pbh(mask, x);
}

inline __m512i narrow_two(Vec<float> low, Vec<float> high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
#else
inline HalfLanes narrow(Vec<float> x) { return __builtin_convertvector(rounded_to_bfloat16((WordLanes)x), HalfLanes); }
#endif
