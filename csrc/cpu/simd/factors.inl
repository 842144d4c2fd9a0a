// The factors F of the layers' products: numbers T, or pairs of numbers (bf16_pairs.inl). A block of them lies
//   along: side by side in a row, [panels of kPanel factors][kBlockRows][kPanel], as gemm.inl takes A; or
//   down: one below the other, [panels of kPanel columns][rows / kDepth][kPanel], as it takes B, and A as a strip.
// Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/simd/arena.inl"
#include "cpu/simd/gemm.inl"

template <class T>
int64_t panels_of(int64_t width) {
  return ceil_div(width, kPanel<T>);
}

template <class F>
constexpr int kDepth = 1;  // numbers in a factor
template <class F>
constexpr F kOne = 1;  // times a factor: the sum of its numbers

// Of x the first `count` lanes; the next could share a factor with the last of them, and then must not be NaN.
template <class T>
inline void store_along(T* to, Vec<T> x, int64_t count) {
  store(to, x);
}
// Vectors of kDepth rows of one matrix, as one vector of factors.
template <class T>
inline void store_down(T* to, const Vec<T>* rows) {
  store(to, rows[0]);
}
