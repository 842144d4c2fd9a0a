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
#include "cpu/infonce/symmetric/one_direction.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

using Outputs = OneDirection;

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

void check_arguments(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale) {
  TORCH_CHECK(
      anchors.dim() == 2 && candidates.dim() == 2 && anchors.size(1) == candidates.size(1) && anchors.size(1) > 0,
      "adaptive_infonce: anchors and candidates must be [B, d] and [N, d] with d >= 1, got ", anchors.sizes(), " and ",
      candidates.sizes());
  TORCH_CHECK(anchors.scalar_type() == candidates.scalar_type(),
              "adaptive_infonce: anchors and candidates must share a dtype, got ", anchors.scalar_type(), " and ",
              candidates.scalar_type());
  for (const auto& [name, x] : {std::pair{"tau", &tau}, std::pair{"scale", &scale}})
    TORCH_CHECK(x->dim() == 1 && x->size(0) == anchors.size(0), "adaptive_infonce: ", name, " must be [",
                anchors.size(0), "], got ", x->sizes());
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
Outputs run(at::ScalarType inputs, bool ieee, const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
            const OptionalTensor& positive, const OptionalTensor& row_group, const OptionalTensor& column_group,
            std::optional<double> ignore_above, double margin, const OptionalTensor& positive_weight,
            const Tensor& scale, bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats) {
  const int64_t rows = anchors.size(0), columns = candidates.size(0);
  check_values<T>(tau, positive, rows, columns);
  const auto options = anchors.options();
  const auto maybe = [&](bool needed, at::IntArrayRef shape) {
    constexpr int64_t none = 0;
    return cached_empty(needed ? shape : at::IntArrayRef(none), options);
  };
  Tensor loss = at::empty({rows}, options), lse = at::empty({rows}, options), logit = at::empty({rows}, options);
  Tensor top1 = at::empty({need_stats ? rows : 0}, options.dtype(at::kBool)), entropy = maybe(need_stats, {rows});
  Tensor d_anchors = maybe(need_d_anchors, anchors.sizes()),
         d_candidates = maybe(need_d_candidates, candidates.sizes()), d_tau = maybe(need_d_tau, {rows});

  const auto data = [](Tensor& x, bool needed) { return needed ? x.mutable_data_ptr<T>() : nullptr; };
  const auto id_data = [](const OptionalTensor& x) { return x.has_value() ? x->const_data_ptr<int64_t>() : nullptr; };
  const InfoNCEProblem<T> problem{rows,
                                  columns,
                                  anchors.size(1),
                                  anchors.const_data_ptr<T>(),
                                  candidates.const_data_ptr<T>(),
                                  tau.const_data_ptr<T>(),
                                  id_data(positive),
                                  id_data(row_group),
                                  id_data(column_group),
                                  T(ignore_above.value_or(std::numeric_limits<double>::infinity())),
                                  T(margin),
                                  positive_weight.has_value() ? positive_weight->const_data_ptr<T>() : nullptr,
                                  scale.const_data_ptr<T>(),
                                  loss.mutable_data_ptr<T>(),
                                  lse.mutable_data_ptr<T>(),
                                  logit.mutable_data_ptr<T>(),
                                  need_stats ? top1.mutable_data_ptr<bool>() : nullptr,
                                  data(entropy, need_stats),
                                  data(d_anchors, need_d_anchors),
                                  data(d_candidates, need_d_candidates),
                                  data(d_tau, need_d_tau)};
  launch(kernel_for<T>(inputs, ieee), problem, loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau);
  return {weighted_sum(loss, scale), loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau};
}

Outputs infonce_sweep(const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                      const OptionalTensor& positive, const OptionalTensor& row_group,
                      const OptionalTensor& column_group, const Tensor& scale, bool need_d_anchors,
                      bool need_d_candidates, bool need_d_tau, bool need_stats, std::optional<double> ignore_above,
                      double margin, const OptionalTensor& positive_weight, bool ieee) {
  check_arguments(anchors, candidates, tau, scale);
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
            need_d_anchors, need_d_candidates, need_d_tau, need_stats);
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
