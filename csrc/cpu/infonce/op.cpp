// torch.ops.adaftr_fast.infonce on CPU: checks, dispatch by instruction set, and the launch.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/launch.h"
#include "cpu/infonce/one_direction.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

// How many bfloat16 terms an operand may be taken as. bfloat16 inputs are one term, float16 inputs two, both exactly;
// float32 inputs, unless ieee, as the matmul precision of the CPU (mkldnn) allows, which
// torch.set_float32_matmul_precision sets to ieee, tf32 and bf16 for "highest", "high" and "medium"; 0: float32 itself.
int bf16_terms(at::ScalarType inputs, bool ieee) {
  if (inputs == at::kBFloat16) return 1;
  if (inputs == at::kHalf) return 2;
  if (ieee) return 0;
  switch (at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL)) {
    case at::Float32Precision::TF32:
      return 2;
    case at::Float32Precision::BF16:
      return 1;
    default:
      return 0;
  }
}

constexpr KernelTables<InfoNCEKernels> kTables = {&generic::kInfoNCE,
#if defined(__x86_64__)
                                                  &avx2::kInfoNCE, &avx512::kInfoNCE, &avx512_bf16::kInfoNCE,
                                                  &amx::kInfoNCE
#elif defined(__aarch64__)
                                                  &neon::kInfoNCE, &neon_bf16::kInfoNCE
#endif
};

template <class T>
SweepKernel<InfoNCEProblem<T>> kernel_for(at::ScalarType inputs, bool ieee) {
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

// Contiguous int64 ids of the given length, or none.
OptionalTensor ids(const char* name, const OptionalTensor& x, int64_t length) {
  if (!x.has_value()) return std::nullopt;
  TORCH_CHECK(x->scalar_type() == at::kLong && x->dim() == 1 && x->size(0) == length, "adaptive_infonce: ", name,
              " must be int64 [", length, "], got ", x->scalar_type(), " ", x->sizes());
  return x->contiguous();
}

template <class T>
void check_values(const Tensor& tau, const OptionalTensor& positive, int64_t rows, int64_t columns) {
  TORCH_CHECK(positive.has_value() || columns >= rows,
              "adaptive_infonce: without positive_index, h_cvr needs at least ", rows, " rows, got ", columns);
  const int64_t* y = positive.has_value() ? positive->const_data_ptr<int64_t>() : nullptr;
  const T* t = tau.const_data_ptr<T>();
  for (int64_t r = 0; r < rows; ++r) {
    if (y != nullptr && y[r] == kIgnore) continue;
    check_tau(t[r], r);
    TORCH_CHECK(y == nullptr || (y[r] >= 0 && y[r] < columns), "adaptive_infonce: positive_index must be in [0, ",
                columns, ") or ", kIgnore, ", got positive_index[", r, "] = ", y[r]);
  }
}

template <class T>
OneDirection run(at::ScalarType inputs, bool ieee, const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                 const OptionalTensor& positive, const OptionalTensor& row_group, const OptionalTensor& column_group,
                 std::optional<double> ignore_above, double margin, const OptionalTensor& positive_weight,
                 const Tensor& scale, const Needs& need) {
  const int64_t rows = anchors.size(0), columns = candidates.size(0);
  check_values<T>(tau, positive, rows, columns);
  SweepOutputs<T> out(anchors, candidates, need);
  const auto id_data = [](const OptionalTensor& x) { return x.has_value() ? x->const_data_ptr<int64_t>() : nullptr; };
  InfoNCEProblem<T> problem{};
  problem.rows = rows;
  problem.columns = columns;
  problem.width = anchors.size(1);
  problem.anchors = anchors.const_data_ptr<T>();
  problem.candidates = candidates.const_data_ptr<T>();
  problem.tau = tau.const_data_ptr<T>();
  problem.positive = id_data(positive);
  problem.row_group = id_data(row_group);
  problem.column_group = id_data(column_group);
  problem.ignore_above = T(ignore_above.value_or(std::numeric_limits<double>::infinity()));
  problem.margin = T(margin);
  problem.positive_weight = positive_weight.has_value() ? positive_weight->const_data_ptr<T>() : nullptr;
  problem.scale = scale.const_data_ptr<T>();
  out.point(problem, need);
  launch(kernel_for<T>(inputs, ieee), problem, out.loss, out.lse, out.logit, out.top1, out.entropy, out.d_anchors,
         out.d_candidates, out.d_tau);
  return out.results(scale);
}

OneDirection infonce_sweep(const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                           const OptionalTensor& positive, const OptionalTensor& row_group,
                           const OptionalTensor& column_group, const Tensor& scale, bool need_d_anchors,
                           bool need_d_candidates, bool need_d_tau, bool need_stats, std::optional<double> ignore_above,
                           double margin, const OptionalTensor& positive_weight, bool ieee) {
  check_inputs(anchors, candidates, tau, scale);
  TORCH_CHECK(row_group.has_value() == column_group.has_value(),
              "adaptive_infonce: row_group and column_group must be given together");
  const auto dtype = anchors.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto widen = [&](const Tensor& x) { return x.to(dtype).contiguous(); };
  TORCH_CHECK(!positive_weight.has_value() || positive_weight->sizes() == tau.sizes(),
              "adaptive_infonce: positive_weight must be [", tau.size(0), "], got ", positive_weight->sizes());
  const OptionalTensor weight = positive_weight.has_value() ? OptionalTensor(widen(*positive_weight)) : std::nullopt;
  const auto go = dtype == at::kDouble ? run<double> : run<float>;
  return go(anchors.scalar_type(), ieee, widen(anchors), widen(candidates), widen(tau),
            ids("positive", positive, anchors.size(0)), ids("row_group", row_group, anchors.size(0)),
            ids("column_group", column_group, candidates.size(0)), ignore_above, margin, weight, widen(scale),
            {need_d_anchors, need_d_candidates, need_d_tau, need_stats});
}

}  // namespace

bool multiplies_bf16(at::ScalarType inputs, bool ieee) {
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

TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("infonce", infonce);
  m.impl("infonce_sweep", infonce_sweep);
}

}  // namespace adaftr_fast
