// The exponentials of a sweep alone (limits.h).
#pragma once

#include "cpu/infonce/softmax.inl"

// One row's exponentials of a block of columns, again and again: p = 2^(p - 1) stays in [0, 2]. Kept out of line, as in
// the sweep, so that the rows do not merge into one loop.
template <class S, bool kStoreProbs>
__attribute__((noinline)) void exponentials_of_row(RowState<float>& row, int64_t panels, float* s) {
  S::template exponentials<kStoreProbs, false>(row, panels, s, kPanel<float>);
}

template <class S, bool kStoreProbs>
int64_t exponentials_from_cache(S& sweep, int64_t rows, int64_t block_panels, float* s) {
  RowState<float> row{};
  row.m = 1, row.softmax_scale_log2 = 1;
  int64_t count = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t p0 = 0; p0 < sweep.column_panels; p0 += block_panels) {
      const int64_t panels = at_most(sweep.column_panels - p0, block_panels);
      exponentials_of_row<S, kStoreProbs>(row, panels, s);
      count += panels * kPanel<float>;
    }
  s[0] = horizontal_sum<float>(row.l);
  return count;
}
