// torch.ops.adaftr_fast.infonce on CPU: checks, dispatch by instruction set, and the launch.

#include <limits>
#include <optional>
#include <tuple>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/launch.h"
#include "cpu/infonce/one_direction.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/dispatch.h"
#include "cpu/runtime/precision.h"

namespace adaftr_fast {
namespace {

// How many bfloat16 terms an operand may be taken as. bfloat16 inputs are one term, float16 inputs two, both exactly;
// float32 inputs, unless ieee, as PyTorch's setting allows; 0: float32 itself.
int bf16_terms(ScalarType inputs, bool ieee) {
  if (inputs == kBFloat16) return 1;
  if (inputs == kHalf) return 2;
  return ieee ? 0 : float32_terms();
}

constexpr KernelTables<InfoNCEKernels> kTables = {&generic::kInfoNCE,
#if defined(__x86_64__)
                                                  &avx2::kInfoNCE, &avx512::kInfoNCE, &avx512_bf16::kInfoNCE,
                                                  &amx::kInfoNCE
#elif defined(__aarch64__)
                                                  &neon::kInfoNCE, &neon_bf16::kInfoNCE
#endif
};

// Contiguous int64 ids of the given length, or none.
OptionalTensor ids(const char* name, const OptionalTensor& x, int64_t length) {
  if (!x.has_value()) return std::nullopt;
  ADAFTR_CHECK(x->scalar_type() == kLong && x->dim() == 1 && x->size(0) == length, "adaptive_infonce: ", name,
               " must be int64 [", length, "], got ", x->scalar_type(), " ", shape(*x));
  return as_contiguous(x);
}

template <class T>
void check_values(const Tensor& tau, const OptionalTensor& positive, int64_t rows, int64_t columns) {
  ADAFTR_CHECK(positive.has_value() || columns >= rows,
               "adaptive_infonce: without positive_index, h_cvr needs at least ", rows, " rows, got ", columns);
  const int64_t* y = data_of<int64_t>(positive);
  const T* t = data_of<T>(tau);
  for (int64_t r = 0; r < rows; ++r) {
    if (y != nullptr && y[r] == kIgnore) continue;
    check_tau(t[r], r);
    ADAFTR_CHECK(y == nullptr || (y[r] >= 0 && y[r] < columns), "adaptive_infonce: positive_index must be in [0, ",
                 columns, ") or ", kIgnore, ", got positive_index[", r, "] = ", y[r]);
  }
}

template <class T>
OneDirection run(ScalarType inputs, bool ieee, const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                 const OptionalTensor& positive, const OptionalTensor& row_group, const OptionalTensor& column_group,
                 std::optional<double> ignore_above, double margin, const OptionalTensor& positive_weight,
                 const Tensor& scale, const Needs& need) {
  const int64_t rows = anchors.size(0), columns = candidates.size(0);
  check_values<T>(tau, positive, rows, columns);
  SweepOutputs<T> out(anchors, candidates, need);
  InfoNCEProblem<T> problem{};
  problem.rows = rows;
  problem.columns = columns;
  problem.width = anchors.size(1);
  problem.anchors = data_of<T>(anchors);
  problem.candidates = data_of<T>(candidates);
  problem.tau = data_of<T>(tau);
  problem.positive = data_of<int64_t>(positive);
  problem.row_group = data_of<int64_t>(row_group);
  problem.column_group = data_of<int64_t>(column_group);
  problem.ignore_above = T(ignore_above.value_or(std::numeric_limits<double>::infinity()));
  problem.margin = T(margin);
  problem.positive_weight = data_of<T>(positive_weight);
  problem.scale = data_of<T>(scale);
  out.point(problem, need);
  launch(infonce_kernel<T>(inputs, ieee), problem, out.loss, out.lse, out.logit, out.top1, out.entropy, out.d_anchors,
         out.d_candidates, out.d_tau);
  return out.results(scale);
}

OneDirection infonce_sweep(const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                           const OptionalTensor& positive, const OptionalTensor& row_group,
                           const OptionalTensor& column_group, const Tensor& scale, bool need_d_anchors,
                           bool need_d_candidates, bool need_d_tau, bool need_stats, std::optional<double> ignore_above,
                           double margin, const OptionalTensor& positive_weight, bool ieee) {
  check_inputs(anchors, candidates, tau, scale);
  ADAFTR_CHECK(row_group.has_value() == column_group.has_value(),
               "adaptive_infonce: row_group and column_group must be given together");
  const auto dtype = anchors.scalar_type() == kDouble ? kDouble : kFloat;
  const auto widen = [&](const Tensor& x) { return as_contiguous(x, dtype); };
  ADAFTR_CHECK(!positive_weight.has_value() || same_sizes(*positive_weight, tau),
               "adaptive_infonce: positive_weight must be [", tau.size(0), "], got ", shape(*positive_weight));
  const OptionalTensor weight = positive_weight.has_value() ? OptionalTensor(widen(*positive_weight)) : std::nullopt;
  const auto go = dtype == kDouble ? run<double> : run<float>;
  return go(anchors.scalar_type(), ieee, widen(anchors), widen(candidates), widen(tau),
            ids("positive", positive, anchors.size(0)), ids("row_group", row_group, anchors.size(0)),
            ids("column_group", column_group, candidates.size(0)), ignore_above, margin, weight, widen(scale),
            {need_d_anchors, need_d_candidates, need_d_tau, need_stats});
}

}  // namespace

template <class T>
SweepKernel<InfoNCEProblem<T>> infonce_kernel(ScalarType inputs, bool ieee) {
  if constexpr (std::is_same_v<T, double>) {
    return best_kernel(kTables, &InfoNCEKernels::f64);
  } else {
    const int terms = bf16_terms(inputs, ieee);
    SweepKernel<InfoNCEProblem<float>> kernel{};
    if (terms == 1) kernel = best_kernel(kTables, &InfoNCEKernels::bf16);
    if (terms == 2) kernel = best_kernel(kTables, &InfoNCEKernels::bf16x2);
    return kernel ? kernel : best_kernel(kTables, &InfoNCEKernels::f32);
  }
}

template SweepKernel<InfoNCEProblem<float>> infonce_kernel<float>(ScalarType, bool);
template SweepKernel<InfoNCEProblem<double>> infonce_kernel<double>(ScalarType, bool);

bool multiplies_bf16(ScalarType inputs, bool ieee) {
  const int terms = bf16_terms(inputs, ieee);
  return (terms == 1 && best_kernel(kTables, &InfoNCEKernels::bf16)) ||
         (terms == 2 && best_kernel(kTables, &InfoNCEKernels::bf16x2));
}

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
