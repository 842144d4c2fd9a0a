// Vectors of a row-major matrix that is stored as T or as bfloat16. Included once per instruction set (see simd.inl).

#include "cpu/tile.inl"

typedef uint16_t HalfLanes __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t WordLanes __attribute__((vector_size(VECTOR_BYTES)));

inline Vec<float> widen(HalfLanes x) { return (Vec<float>)(__builtin_convertvector(x, WordLanes) << 16); }

// Rounds to the nearest, ties to even; rounding could carry a NaN over to infinity.
inline HalfLanes narrow(Vec<float> x) {
  const WordLanes bits = (WordLanes)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const WordLanes chosen = (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded;
  return __builtin_convertvector(chosen >> 16, HalfLanes);
}

// `count` elements from the `at`-th on, 1 <= count; lanes beyond are zero.
template <class T>
inline Vec<T> read(const Rows& m, int64_t at, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    if (m.half) {
      const auto* from = static_cast<const uint16_t*>(m.data) + at;
      if (count >= kLanes<T>) return widen(*reinterpret_cast<const HalfLanes*>(from));
      uint16_t some[kLanes<T>] = {};
      for (int64_t i = 0; i < count; ++i) some[i] = from[i];
      return widen(*reinterpret_cast<const HalfLanes*>(some));
    }
  }
  const auto* from = static_cast<const T*>(m.data) + at;
  if (count >= kLanes<T>) return load(from);
  T some[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = from[i];
  return load(some);
}

template <class T>
inline void write(const Rows& m, int64_t at, int64_t count, Vec<T> x) {
  if constexpr (sizeof(T) == 4) {
    if (m.half) {
      auto* to = static_cast<uint16_t*>(m.data) + at;
      const HalfLanes half = narrow(x);
      if (count >= kLanes<T>) {
        *reinterpret_cast<HalfLanes*>(to) = half;
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = half[i];
      }
      return;
    }
  }
  auto* to = static_cast<T*>(m.data) + at;
  if (count >= kLanes<T>) return store(to, x);
  for (int64_t i = 0; i < count; ++i) to[i] = x[i];
}
