// The matrix-product micro-kernel: C[M, P] (+)= A[M, K] B[K, P], M <= kTileRows rows, P = one panel.
//
// All matrices stand in panels: columns are cut into panels of kPanel = two vectors, and a panel's rows follow one
// another, so that a row of a panel is 2 aligned loads and every stride inside the kernel is a constant. A is read
// one broadcast element at a time, either along the rows of panels as well, or from strips: K slices of M neighbouring
// elements, kStep apart. A panel of a matrix is a strip of its transpose, with kStep = kPanel.
#pragma once

#include "cpu/simd/vectors.inl"

template <class T>
constexpr int kPanel = 2 * kLanes<T>;
constexpr int kStrip = (TILE_ROWS + 7) / 8 * 8;
constexpr int kTileRows = TILE_ROWS;

// The type of a sum of products of T. An element may also be a Pair of numbers (bf16_pairs.inl).
template <class T>
struct SumOf {
  using Type = T;
};
template <class T>
using Sum = typename SumOf<T>::Type;

template <class T>
inline void multiply_add(Vec<Sum<T>>& sum, T x, Vec<T> row) {
  sum += x * row;
}

template <class T>
struct Operands {
  int64_t depth;     // K
  const T* a;        // panels: [K/kPanel] at a_stride, each [.., kPanel]; strips: [K][kStep]
  int64_t a_stride;  // elements between two panels of A (panels only)
  const T* b;        // [K][kPanel]
  Sum<T>* c;         // [M][kPanel]
  bool accumulate;   // C += instead of C =
};

// Sums over one panel of A (kStep = 0), or over all of a strip, kept in M * NV registers.
template <class T, int M, int NV, int kStep>
inline __attribute__((always_inline)) void multiply(Vec<Sum<T>> (&sum)[M][NV], int64_t depth, const T* a, const T* b) {
#if defined(__aarch64__)
#pragma GCC unroll 1  // GCC would unroll the loop over a narrow panel, and spill what it loads ahead
#endif
  for (int64_t k = 0; k < depth; ++k, b += kPanel<T>) {
    Vec<T> row[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) row[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const T x = kStep > 0 ? a[k * kStep + i] : a[i * kPanel<T> + k];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) multiply_add(sum[i][v], x, row[v]);
    }
  }
}

template <class T, int M, int NV, int kStep>
void tile(const Operands<T>& o) {
  Vec<Sum<T>> sum[M][NV] = {};
  if constexpr (kStep > 0) {
    multiply<T, M, NV, kStep>(sum, o.depth, o.a, o.b);
  } else {
    const T *a = o.a, *b = o.b;
    int64_t left = o.depth;
    for (; left >= kPanel<T>; left -= kPanel<T>, a += o.a_stride, b += kPanel<T> * kPanel<T>)
      multiply<T, M, NV, 0>(sum, kPanel<T>, a, b);
    multiply<T, M, NV, 0>(sum, left, a, b);
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      Sum<T>* c = o.c + i * kPanel<T> + v * kLanes<T>;
      store(c, o.accumulate ? load(c) + sum[i][v] : sum[i][v]);
    }
}

template <class T>
using TileFunction = void (*)(const Operands<T>&);

template <class T, int NV, int kStep, int... kRows>
TileFunction<T> pick(int64_t rows, IntegerList<kRows...>) {
  static constexpr TileFunction<T> table[] = {tile<T, kRows + 1, NV, kStep>...};
  return table[rows - 1];
}

// rows in [1, kTileRows], columns in [1, kPanel]. A single sum would be a chain that GCC takes apart into products and
// additions, which round otherwise; the bits of a row must not depend on how many share its tile.
template <class T, int kStep>
TileFunction<T> tile_for(int64_t rows, int64_t columns) {
  return columns > kLanes<T> || rows == 1 ? pick<T, 2, kStep>(rows, Iota<kTileRows>{})
                                          : pick<T, 1, kStep>(rows, Iota<kTileRows>{});
}

// Cuts n rows into ceil(n / kTileRows) tiles of nearly equal height: where the i-th begins.
inline int64_t tiles_of(int64_t n) { return (n + kTileRows - 1) / kTileRows; }
inline int64_t tile_begin(int64_t n, int64_t i) { return n * i / tiles_of(n); }
