// Transposes matrices in registers, a square of one vector's lanes at a time. Included once per instruction set (see
// vectors.inl).
#pragma once

#include "cpu/simd/arena.inl"
#include "cpu/simd/gemm.inl"

// Of two rows `kStep` apart in a square, exchanges the lanes of the upper right and of the lower left.
template <class T, int kStep, int... kLane>
inline void exchange(Vec<T>& x, Vec<T>& y, IntegerList<kLane...>) {
  constexpr int n = kLanes<T>;
  const Vec<T> low = __builtin_shufflevector(x, y, ((kLane & kStep) == 0 ? kLane : n + kLane - kStep)...);
  const Vec<T> high = __builtin_shufflevector(x, y, ((kLane & kStep) == 0 ? kLane + kStep : n + kLane)...);
  x = low, y = high;
}

template <class T, int kStep = kLanes<T> / 2>
inline void transpose_square(Vec<T> (&rows)[kLanes<T>]) {
  if constexpr (kStep > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i)
      if ((i & kStep) == 0) exchange<T, kStep>(rows[i], rows[i + kStep], Iota<kLanes<T>>{});
    transpose_square<T, kStep / 2>(rows);
  }
}

// The sum of each row of a square, in the order of horizontal_sum.
template <class T, int kStep = kLanes<T> / 2>
inline Vec<T> sums_of_rows(Vec<T> (&rows)[kLanes<T>]) {
  if constexpr (kStep == 0) {
    return rows[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kStep; ++i) {
      exchange<T, kStep>(rows[i], rows[i + kStep], Iota<kLanes<T>>{});
      rows[i] += rows[i + kStep];
    }
    return sums_of_rows<T, kStep / 2>(rows);
  }
}

// to[c][r] = from[r][c] for r < rows, c < columns; rows of `from` and of `to` are that many elements apart.
template <class T>
void transpose(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
  constexpr int64_t n = kLanes<T>;
  for (int64_t r = 0; r < rows; r += n)
    for (int64_t c = 0; c < columns; c += n) {
      if (r + n <= rows && c + n <= columns) {
        Vec<T> square[n];
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) square[i] = load(from + (r + i) * from_step + c);
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) store<T>(to + (c + i) * to_step + r, square[i]);
        continue;
      }
      for (int64_t i = r; i < at_most(r + n, rows); ++i)
        for (int64_t k = c; k < at_most(c + n, columns); ++k) to[k * to_step + i] = from[i * from_step + k];
    }
}
