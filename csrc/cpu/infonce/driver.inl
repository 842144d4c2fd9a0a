// How a sweep is dealt to threads. S: a Sweep with its products.
//
// Together (run_together): the threads share each block of rows. In the column phase a thread reads what the others
// have written of P, from cache to cache, and twice a block all wait for the slowest.
//
// By rows (RowPartition): each thread sweeps rows of its own, with its own packed candidates and d_candidates. At the
// end d_candidates is summed, in the order of the threads. That is chosen where P is shared otherwise, each thread has
// rows enough to make up for packing all candidates, and all workspaces together stay within kPartitionBytes. On two
// virtual cores of a Zen 5 it takes 0.78 (float32) and 0.64 (bfloat16) of the time at 1,024 x 64 and 0.92 and 0.77 at
// 8,192 x 128 in most hours. In others, perhaps while both cores share a cache, float32 takes as long either way.
#pragma once

#include "cpu/infonce/softmax.inl"

// Where a thread holds nothing while it multiplies.
struct NoGuard {};

// Cuts [0, n) into at most `threads` runs and gives each to a thread: body(sweep, task, begin, end).
template <class S, class Body>
void in_parallel(S& sweep, int64_t n, Body body) {
  const int64_t tasks = at_most(sweep.threads, n);
  parallel_for(tasks, 1, [&](int64_t first, int64_t last) {
    [[maybe_unused]] const typename S::Guard guard;
    for (int64_t task = first; task < last; ++task) body(sweep, task, n * task / tasks, n * (task + 1) / tasks);
  });
}

// S: a Sweep with its products.
template <class S>
size_t workspace_bytes(const typename S::Problem& problem, int64_t threads) {
  return S(problem, threads, nullptr).arena.used;
}

// body(sweep, task, begin, end) over the block's rows, dealt in groups.
template <class S, class Body>
void over_rows(S& sweep, Body body) {
  in_parallel(sweep, ceil_div(sweep.height, S::kGroup), [body](S& s, int64_t task, int64_t begin, int64_t end) {
    body(s, task, begin * S::kGroup, at_most(end * S::kGroup, s.height));
  });
}

// body(sweep, panel) over the panels of columns.
template <class S, class Body>
void over_panels(S& sweep, Body body) {
  in_parallel(sweep, sweep.column_panels, [body](S& s, int64_t, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) body(s, p);
  });
}

template <class S>
void run_together(const typename S::Problem& problem, char* workspace, int64_t threads) {
  S sweep(problem, threads, workspace);
  over_panels(sweep, [](S& s, int64_t p) {
    if (s.need_d_anchors) s.measure_column_panel(p);
    s.pack_column_panel(p);
  });
  if (sweep.need_d_anchors) sweep.choose_candidate_power();
  if (sweep.candidate_power != 1)
    over_panels(sweep, [](S& s, int64_t p) { s.pack_column_panel(p); });  // extreme inputs
  for (int64_t first = 0; first < problem.rows; first += sweep.block_m) {
    sweep.first = first;
    sweep.height = at_most(problem.rows - first, sweep.block_m);
    sweep.run_block();
  }
  if (sweep.need_d_candidates) over_panels(sweep, [](S& s, int64_t p) { s.unpack_column_panel(p); });
}

constexpr int64_t kPartitionRows = 256;               // of each thread, at least
constexpr size_t kPartitionBytes = size_t{64} << 20;  // of all threads, at most: about what a last-level cache holds

template <class S>
struct RowPartition {
  using Problem = typename S::Problem;
  const Problem& problem;
  int64_t threads;
  int64_t elements;                       // of d_candidates
  size_t partial_bytes, sweep_bytes = 0;  // of a thread's d_candidates, and of the workspace of its sweep

  RowPartition(const Problem& whole, int64_t count)
      : problem(whole), threads(count), elements(whole.columns * whole.width) {
    partial_bytes = (elements * sizeof(*whole.d_candidates) + 63) / 64 * 64;
    for (int64_t task = 0; task < threads; ++task)
      if (const size_t bytes = workspace_bytes<S>(part(task), 1); bytes > sweep_bytes) sweep_bytes = bytes;
  }

  // The first thread sums into the op's own d_candidates.
  size_t bytes() const { return threads * sweep_bytes + (threads - 1) * partial_bytes; }

  static bool suits(const Problem& problem, int64_t threads) {
    return S::kSharesProbs && threads > 1 && problem.d_candidates != nullptr &&
           problem.rows >= kPartitionRows * threads && RowPartition(problem, threads).bytes() <= kPartitionBytes;
  }

  Problem part(int64_t task) const {
    const int64_t groups = ceil_div(problem.rows, S::kGroup);
    Problem own = problem.rows_of(groups * task / threads * S::kGroup,
                                  at_most(groups * (task + 1) / threads * S::kGroup, problem.rows));
    own.sweeps = threads;
    return own;
  }

  auto* partial(int64_t task, char* base) const {
    char* const at = base + threads * sweep_bytes + (task - 1) * partial_bytes;
    return task == 0 ? problem.d_candidates : reinterpret_cast<decltype(problem.d_candidates)>(at);
  }

  void run(char* base) const {
    parallel_for(threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        Problem own = part(task);
        own.d_candidates = partial(task, base);
        run_together<S>(own, base + task * sweep_bytes, 1);
      }
    });
    parallel_for(elements, 1 << 12, [&](int64_t begin, int64_t end) {
      auto* d = problem.d_candidates;
      for (int64_t task = 1; task < threads; ++task) {
        const auto* more = partial(task, base);
        for (int64_t k = begin; k < end; ++k) d[k] += more[k];
      }
    });
  }
};

template <class S>
size_t bytes_of(const typename S::Problem& problem, int64_t threads) {
  return RowPartition<S>::suits(problem, threads) ? RowPartition<S>(problem, threads).bytes()
                                                  : workspace_bytes<S>(problem, threads);
}

template <class S>
void run_sweep(const typename S::Problem& problem, void* workspace, int64_t threads) {
  char* base = static_cast<char*>(workspace);
  if (RowPartition<S>::suits(problem, threads)) return RowPartition<S>(problem, threads).run(base);
  run_together<S>(problem, base, threads);
}

template <class S>
constexpr SweepKernel<typename S::Problem> kernel_of() {
  return {bytes_of<S>, run_sweep<S>};
}
