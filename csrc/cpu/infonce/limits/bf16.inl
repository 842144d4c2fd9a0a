// The parts of a sweep on bfloat16 tiles alone, from cache (limits.h): the same products of tiles, of the same depths,
// over one set of operands.
#pragma once

#include "cpu/infonce/bf16.inl"
#include "cpu/infonce/limits/exponentials.inl"

// kTimes: how often the sweep makes S and P. The second time it makes P in one go, by the rougher exponential.
template <class S, int kTimes, int64_t kProbsPanels>
struct Bf16FromCache {
  InfoNCEProblem<float> own;  // of this thread, where each sweeps rows of its own
  S sweep;
  int64_t strips;  // of 32 rows, of this thread
  Bf16 *a, *b;
  float* c;

  Bf16FromCache(const InfoNCEProblem<float>& problem, int64_t threads, float* operands)
      : own(problem_of_thread<S>(problem, threads)),
        sweep(own, own.sweeps > 1 ? 1 : threads, nullptr),
        strips(ceil_div(ceil_div(problem.rows, threads), 32)) {
    a = reinterpret_cast<Bf16*>(operands), b = a + kFloatsFromCache / 2, c = operands + kFloatsFromCache / 2;
  }

  // One product of 32 x 32 after another.
  int64_t products(int64_t count, int64_t depth, bool accumulate) {
    for (int64_t i = 0; i < count; ++i)
      multiply_tiles<1>({depth, a, a + depth * kTile, b, b + depth * kTile, c, accumulate});
    return count * depth * 32 * 32 * 32;
  }

  int64_t scores() { return products(kTimes * strips * sweep.column_panels, sweep.k_tiles, false); }

  int64_t row_gradients() {
    int64_t done = 0;
    for (int64_t p = 0; p < sweep.column_panels; p += kProbsPanels)
      done += products(strips * sweep.width_panels, at_most(sweep.column_panels - p, kProbsPanels), p > 0);
    return done;
  }

  int64_t column_gradients() {
    int64_t done = 0;
    const int64_t most = at_most(sweep.row_tiles, 32);  // deeper operands would leave the cache, and their memory
    for (int64_t r = 0; r < strips; r += most)
      done += products(sweep.column_panels * sweep.k_tiles, at_most(strips - r, most), r > 0);
    return done;
  }

  int64_t exponentials() {
    const int64_t rows = strips * 32;
    int64_t done = exponentials_from_cache<S, kTimes == 1>(sweep, rows, S::kBlockPanels, c);
    for (int64_t i = 0; kTimes > 1 && i < strips * sweep.column_panels; ++i) {
      PanelTiles<1>{a, kTile, b, kTile}.fill(
          c, [](int, __m512 x) { return exp2_of<float, true>((x - 1.f) * 1.f + 0.5f); });
      done += 32 * 32;
    }
    return done;
  }

  static int64_t run(Part part, const InfoNCEProblem<float>& problem, int64_t threads, float* operands) {
    const Bf16Guard guard;
    Bf16FromCache limit(problem, threads, operands);
    switch (part) {
      case Part::kScores:
        return limit.scores();
      case Part::kRows:
        return limit.row_gradients();
      case Part::kColumns:
        return limit.column_gradients();
      case Part::kExponentials:
        return limit.exponentials();
    }
    return 0;
  }
};

using RecomputedFromCache = Bf16FromCache<RecomputedSweep<1>, 2, RecomputedSweep<1>::kColumnPhasePanels>;
