// torch.ops.adaftr_fast.infonce on CPU: checks, dispatch by instruction set, and the launch.

#include <optional>
#include <tuple>

#include "cpu/infonce/launch.h"
#include "cpu/runtime/precision.h"

namespace adaftr_fast {
namespace {

constexpr const char* kOp = "adaptive_infonce";

template <class T>
OneDirection run(ScalarType inputs, bool ieee, const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                 const OptionalTensor& positive, const OptionalTensor& row_group, const OptionalTensor& column_group,
                 std::optional<double> ignore_above, double margin, const OptionalTensor& positive_weight,
                 const Tensor& scale, const Needs& need) {
  auto problem = problem_of<InfoNCEProblem, T>(anchors, candidates);
  problem.tau = data_of<T>(tau);
  problem.positive = data_of<int64_t>(positive);
  problem.row_group = data_of<int64_t>(row_group);
  problem.column_group = data_of<int64_t>(column_group);
  if (ignore_above.has_value()) problem.ignore_above = T(*ignore_above);
  problem.margin = T(margin);
  problem.positive_weight = data_of<T>(positive_weight);
  problem.scale = data_of<T>(scale);
  check_tau<T>(tau, "", problem.positive);
  check_positives(kOp, problem);
  SweepOutputs<T> out(anchors, candidates, need);
  out.point(problem);
  launch(infonce_kernel<T>(inputs, ieee), problem, out.loss, out.lse, out.logit, out.top1, out.entropy, out.d_anchors,
         out.d_candidates, out.d_tau);
  return out.results(scale);
}

OneDirection infonce_sweep(const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                           const OptionalTensor& positive, const OptionalTensor& row_group,
                           const OptionalTensor& column_group, const Tensor& scale, bool need_d_anchors,
                           bool need_d_candidates, bool need_d_tau, bool need_stats, std::optional<double> ignore_above,
                           double margin, const OptionalTensor& positive_weight, bool ieee) {
  check_inputs(anchors, candidates, {{"tau", &tau}, {"scale", &scale}});
  ADAFTR_CHECK(row_group.has_value() == column_group.has_value(), kOp,
               ": row_group and column_group must be given together");
  const auto dtype = anchors.scalar_type() == kDouble ? kDouble : kFloat;
  const auto widen = [&](const Tensor& x) { return as_contiguous(x, dtype); };
  ADAFTR_CHECK(!positive_weight.has_value() || same_sizes(*positive_weight, tau), kOp, ": positive_weight must be [",
               tau.size(0), "], got ", shape(*positive_weight));
  const OptionalTensor weight = positive_weight.has_value() ? OptionalTensor(widen(*positive_weight)) : std::nullopt;
  const auto go = dtype == kDouble ? run<double> : run<float>;
  return go(anchors.scalar_type(), ieee, widen(anchors), widen(candidates), widen(tau),
            ids(kOp, "positive", positive, anchors.size(0)), ids(kOp, "row_group", row_group, anchors.size(0)),
            ids(kOp, "column_group", column_group, candidates.size(0)), ignore_above, margin, weight, widen(scale),
            {need_d_anchors, need_d_candidates, need_d_tau, need_stats});
}

}  // namespace

// bfloat16 inputs are one bfloat16 term, float16 inputs two, both exactly; float32 inputs, unless ieee, are as many as
// PyTorch's setting allows.
SweepKernel<InfoNCEProblem<float>> bf16_kernel(ScalarType inputs, bool ieee) {
  const int given = inputs == kFloat && !ieee ? float32_terms() : 0;
  if (inputs == kBFloat16 || given == 1) return best_kernel(kLossTables, &InfoNCEKernels::bf16);
  if (inputs == kHalf || given == 2) return best_kernel(kLossTables, &InfoNCEKernels::bf16x2);
  return {};
}

template <class T>
SweepKernel<InfoNCEProblem<T>> infonce_kernel(ScalarType inputs, bool ieee) {
  if constexpr (std::is_same_v<T, float>)
    if (const auto kernel = bf16_kernel(inputs, ieee)) return kernel;
  return loss_kernels<T>().infonce;
}

template SweepKernel<InfoNCEProblem<float>> infonce_kernel<float>(ScalarType, bool);
template SweepKernel<InfoNCEProblem<double>> infonce_kernel<double>(ScalarType, bool);

OneDirection infonce(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const OptionalTensor& positive,
                     const OptionalTensor& row_group, const OptionalTensor& column_group, const Tensor& scale,
                     bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,
                     std::optional<double> ignore_above, bool ieee) {
  return infonce_sweep(anchors, candidates, tau, positive, row_group, column_group, scale, need_d_anchors,
                       need_d_candidates, need_d_tau, need_stats, ignore_above, 0, std::nullopt, ieee);
}

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("infonce", TORCH_BOX(&infonce));
  m.impl("infonce_sweep", TORCH_BOX(&infonce_sweep));
}

}  // namespace adaftr_fast
