// The parts of FmaSweep alone, from cache (limits.h): the same tiles, of the same depths, over one set of operands.
#pragma once

#include "cpu/infonce/fma.inl"
#include "cpu/infonce/limits/exponentials.inl"

struct FmaFromCache {
  InfoNCEProblem<float> own;  // of this thread, where each sweeps rows of its own
  FmaSweep<float> sweep;
  int64_t rows;  // of this thread
  float *a, *b, *c;

  FmaFromCache(const InfoNCEProblem<float>& problem, int64_t threads, float* operands)
      : own(problem_of_thread<FmaSweep<float>>(problem, threads)),
        sweep(own, own.sweeps > 1 ? 1 : threads, nullptr),
        rows(ceil_div(problem.rows, threads)) {
    a = operands, b = a + kFloatsFromCache / 4, c = b + kFloatsFromCache / 2;
  }

  // One tile after another; strips (kStep > 0) are read by their width, panels row by row.
  template <int kStep>
  int64_t tiles(int64_t count, int64_t tile_rows, int64_t depth, bool accumulate) {
    for (int64_t i = 0; i < count; ++i)
      tile_for<float, kStep>(tile_rows,
                             kPanel<float>)({depth, a, kTileRows * kPanel<float>, b, c, accumulate || i % 2 > 0});
    return count * tile_rows * depth * kPanel<float>;
  }

  int64_t scores() {
    int64_t done = 0;
    for (int64_t i = 0; i < tiles_of(rows); ++i)
      for (int64_t k = 0; k < sweep.q.width; k += kBlockK)
        done += tiles<0>(sweep.column_panels, tile_begin(rows, i + 1) - tile_begin(rows, i),
                         at_most(sweep.q.width - k, kBlockK), k > 0);
    return done;
  }

  int64_t row_gradients() {
    int64_t done = 0;
    for (int64_t j = 0; j < sweep.q.columns; j += kBlockN)
      for (int64_t i = 0; i < tiles_of(rows); ++i)
        done += tiles<0>(sweep.width_panels, tile_begin(rows, i + 1) - tile_begin(rows, i),
                         at_most(sweep.q.columns - j, kBlockN), j > 0);
    return done;
  }

  int64_t column_gradients() {
    int64_t done = 0;
    for (int64_t r = 0; r < rows; r += kSliceM)
      for (int64_t i = 0; i < sweep.width_tiles; ++i)
        done += tiles<kStrip>(sweep.column_panels, tile_begin(sweep.q.width, i + 1) - tile_begin(sweep.q.width, i),
                              at_most(rows - r, kSliceM), r > 0);
    return done;
  }

  static int64_t run(Part part, const InfoNCEProblem<float>& problem, int64_t threads, float* operands) {
    const FlushDenormals guard;
    FmaFromCache limit(problem, threads, operands);
    switch (part) {
      case Part::kScores:
        return limit.scores();
      case Part::kRows:
        return limit.row_gradients();
      case Part::kColumns:
        return limit.column_gradients();
      case Part::kExponentials:
        return exponentials_from_cache<FmaSweep<float>, true>(limit.sweep, limit.rows, FmaSweep<float>::kBlockPanels,
                                                              limit.c);
    }
    return 0;
  }
};

constinit const LimitKernels kLimits = {.f32 = FmaFromCache::run, .bf16 = nullptr};
