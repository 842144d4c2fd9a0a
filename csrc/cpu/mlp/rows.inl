// Vectors of a row-major matrix that is stored as T or as bfloat16. Included once per instruction set (see
// vectors.inl).
#pragma once

#include "cpu/simd/bfloat16.inl"
#include "cpu/simd/vectors.inl"

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
