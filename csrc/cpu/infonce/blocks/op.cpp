// torch.ops.adaftr_fast.infonce_blocks on CPU: checks, dispatch by instruction set, and the launch.

#include <algorithm>

#include "cpu/infonce/launch.h"

namespace adaftr_fast {
namespace {

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
  check_tau<T>(tau);
  SweepOutputs<T> out(anchors, candidates, need);
  auto problem = problem_of<InfoNCEProblem, T>(anchors, candidates);
  problem.tau = data_of<T>(tau);
  problem.scale = data_of<T>(scale);
  out.point(problem);
  if (block <= kMaxBlock) {
    loss_kernels<T>().blocks(problem, block);
  } else {
    const auto kernel = infonce_kernel<T>(inputs, ieee);
    for (int64_t first = 0; first < problem.rows; first += block)
      launch(kernel, block_of(problem, first, std::min(first + block, problem.rows)));
  }
  return out.results(scale);
}

OneDirection infonce_blocks(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale,
                            bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,
                            int64_t block, bool ieee) {
  check_paired(anchors, candidates);
  check_inputs(anchors, candidates, {{"tau", &tau}, {"scale", &scale}});
  ADAFTR_CHECK(block >= 1, "adaptive_infonce: block must be at least 1, got ", block);
  const auto dtype = anchors.scalar_type() == kDouble ? kDouble : kFloat;
  const auto widen = [&](const Tensor& x) { return as_contiguous(x, dtype); };
  block = std::min(block, std::max<int64_t>(anchors.size(0), 1));
  const auto go = dtype == kDouble ? run<double> : run<float>;
  return go(anchors.scalar_type(), ieee, widen(anchors), widen(candidates), widen(tau), widen(scale),
            {need_d_anchors, need_d_candidates, need_d_tau, need_stats}, block);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("infonce_blocks", TORCH_BOX(&infonce_blocks)); }

}  // namespace adaftr_fast
