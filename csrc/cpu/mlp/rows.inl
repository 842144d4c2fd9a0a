// Vectors of a row-major matrix that is stored as T or as bfloat16. Included once per instruction set (see
// vectors.inl).
#pragma once

#include "cpu/simd/vectors.inl"

typedef uint16_t HalfLanes __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t WordLanes __attribute__((vector_size(VECTOR_BYTES)));

inline WordLanes to_words(HalfLanes x) {
#if VECTOR_BYTES == 64  // GCC would do it by halves
  return (WordLanes)_mm512_cvtepu16_epi32((__m256i)x);
#else
  return __builtin_convertvector(x, WordLanes);
#endif
}

inline Vec<float> widen(HalfLanes x) { return (Vec<float>)(to_words(x) << 16); }

// Rounds to the nearest, ties to even; rounding could carry a NaN over to infinity. The instruction flushes denormals.
inline HalfLanes narrow(Vec<float> x) {
#ifdef BF16_INSTRUCTIONS
  return (HalfLanes)_mm512_cvtneps_pbh(x);
#else
  const WordLanes bits = (WordLanes)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const WordLanes chosen = (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded;
  return __builtin_convertvector(chosen >> 16, HalfLanes);
#endif
}

// The first `count` elements of a vector at `from`, the others zero; and back. 1 <= count < kLanes.
template <class V, class T>
inline V load_some(const T* from, int64_t count) {
#if VECTOR_BYTES == 64
  const auto mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) return (V)_mm256_maskz_loadu_epi16(mask, from);
  if constexpr (sizeof(T) == 4) return (V)_mm512_maskz_loadu_ps(mask, from);
  if constexpr (sizeof(T) == 8) return (V)_mm512_maskz_loadu_pd(mask, from);
#else
  V some = {};
  for (int64_t i = 0; i < count; ++i) some[i] = from[i];
  return some;
#endif
}

template <class V, class T>
inline void store_some(T* to, int64_t count, V x) {
#if VECTOR_BYTES == 64
  const auto mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(to, mask, (__m256i)x);
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(to, mask, (__m512)x);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(to, mask, (__m512d)x);
#else
  for (int64_t i = 0; i < count; ++i) to[i] = x[i];
#endif
}

// `count` elements from the `at`-th on, 1 <= count; lanes beyond are zero.
template <class T>
inline Vec<T> read(const Rows& m, int64_t at, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    if (m.half) {
      const auto* from = static_cast<const uint16_t*>(m.data) + at;
      return widen(count >= kLanes<T> ? *reinterpret_cast<const HalfLanes*>(from) : load_some<HalfLanes>(from, count));
    }
  }
  const auto* from = static_cast<const T*>(m.data) + at;
  return count >= kLanes<T> ? load(from) : load_some<Vec<T>>(from, count);
}

template <class T>
inline void write(const Rows& m, int64_t at, int64_t count, Vec<T> x) {
  if constexpr (sizeof(T) == 4) {
    if (m.half) {
      auto* to = static_cast<uint16_t*>(m.data) + at;
      const HalfLanes half = narrow(x);
      if (count >= kLanes<T>)
        *reinterpret_cast<HalfLanes*>(to) = half;
      else
        store_some(to, count, half);
      return;
    }
  }
  auto* to = static_cast<T*>(m.data) + at;
  if (count >= kLanes<T>)
    store(to, x);
  else
    store_some(to, count, x);
}
