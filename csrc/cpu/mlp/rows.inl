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
