// torch.ops.adaftr_fast.infonce_blocks on CPU: checks, dispatch by instruction set, and the launch.

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/launch.h"
#include "cpu/infonce/one_direction.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

constexpr KernelTables<BlockKernels> kTables = {&generic::kBlocks,
#if defined(__x86_64__)
                                                &avx2::kBlocks, &avx512::kBlocks
#elif defined(__aarch64__)
                                                &neon::kBlocks
#endif
};

template <class T>
void check_values(const Tensor& tau) {
  const T* t = data_of<T>(tau);
  const int64_t rows = tau.size(0);
  for (int64_t r = 0; r < rows; ++r) check_tau(t[r], r);
}

// The block of rows [first, end) of a problem, against the candidates of the same numbers.
template <class T>
InfoNCEProblem<T> block_of(const InfoNCEProblem<T>& problem, int64_t first, int64_t end) {
  InfoNCEProblem<T> block = problem.rows_of(first, end);
  block.diagonal = 0;
  block.columns = block.rows;
  block.candidates += first * problem.width;
  if (block.d_candidates != nullptr) block.d_candidates += first * problem.width;
  return block;
}

// `inputs` is the type that the products of larger blocks follow, as infonce does.
template <class T>
OneDirection run(ScalarType inputs, bool ieee, const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                 const Tensor& scale, Needs need, int64_t block) {
  SweepOutputs<T> out(anchors, candidates, need);
  InfoNCEProblem<T> problem{};
  problem.rows = anchors.size(0);
  problem.columns = anchors.size(0);
  problem.width = anchors.size(1);
  problem.anchors = data_of<T>(anchors);
  problem.candidates = data_of<T>(candidates);
  problem.tau = data_of<T>(tau);
  problem.scale = data_of<T>(scale);
  problem.ignore_above = std::numeric_limits<T>::infinity();
  out.point(problem, need);
  if (block > kMaxBlock) {
    const auto kernel = infonce_kernel<T>(inputs, ieee);
    for (int64_t first = 0; first < problem.rows; first += block)
      launch(kernel, block_of(problem, first, std::min(first + block, problem.rows)));
  } else if constexpr (std::is_same_v<T, double>) {
    best_kernel(kTables, &BlockKernels::f64)(problem, block);
  } else {
    best_kernel(kTables, &BlockKernels::f32)(problem, block);
  }
  return out.results(scale);
}

OneDirection infonce_blocks(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale,
                            bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,
                            int64_t block, bool ieee) {
  ADAFTR_CHECK(same_sizes(candidates, anchors), "adaptive_infonce: anchors and candidates must both be [B, d], got ",
               shape(anchors), " and ", shape(candidates));
  check_inputs(anchors, candidates, tau, scale);
  ADAFTR_CHECK(block >= 1, "adaptive_infonce: block must be at least 1, got ", block);
  const auto dtype = anchors.scalar_type() == kDouble ? kDouble : kFloat;
  const auto widen = [&](const Tensor& x) { return as_contiguous(x, dtype); };
  const Tensor wide_tau = widen(tau), wide_scale = widen(scale);
  const auto check = dtype == kDouble ? check_values<double> : check_values<float>;
  check(wide_tau);
  const Needs need{need_d_anchors, need_d_candidates, need_d_tau, need_stats};
  block = std::min(block, std::max<int64_t>(anchors.size(0), 1));
  const auto go = dtype == kDouble ? run<double> : run<float>;
  return go(anchors.scalar_type(), ieee, widen(anchors), widen(candidates), wide_tau, wide_scale, need, block);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("infonce_blocks", TORCH_BOX(&infonce_blocks)); }

}  // namespace adaftr_fast
