// torch.ops.adaftr_fast.sigmoid_contrast on CPU: checks, dispatch by instruction set, and the launch.

#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/launch.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr KernelTables<SigmoidKernels> kTables = {&generic::kSigmoid,
#if defined(__x86_64__)
                                                  &avx2::kSigmoid, &avx512::kSigmoid
#elif defined(__aarch64__)
                                                  &neon::kSigmoid
#endif
};

void check_arguments(const Tensor& anchors, const Tensor& candidates, const Tensor& logit_scale,
                     const Tensor& logit_bias, const OptionalTensor& positive) {
  ADAFTR_CHECK(
      anchors.dim() == 2 && candidates.dim() == 2 && anchors.size(1) == candidates.size(1) && anchors.size(1) > 0,
      "sigmoid_contrast: anchors and candidates must be [B, d] and [N, d] with d >= 1, got ", shape(anchors), " and ",
      shape(candidates));
  ADAFTR_CHECK(anchors.scalar_type() == candidates.scalar_type(),
               "sigmoid_contrast: anchors and candidates must share a dtype, got ", anchors.scalar_type(), " and ",
               candidates.scalar_type());
  for (const auto& [name, x] : {std::pair{"logit_scale", &logit_scale}, std::pair{"logit_bias", &logit_bias}})
    ADAFTR_CHECK(x->dim() == 0, "sigmoid_contrast: ", name, " must be 0-dim, got ", shape(*x));
  const int64_t rows = anchors.size(0), columns = candidates.size(0);
  if (!positive.has_value()) {
    ADAFTR_CHECK(columns >= rows, "sigmoid_contrast: without positive_index, h_cvr needs at least ", rows,
                 " rows, got ", columns);
    return;
  }
  ADAFTR_CHECK(positive->scalar_type() == kLong && positive->dim() == 1 && positive->size(0) == rows,
               "sigmoid_contrast: positive must be int64 [", rows, "], got ", positive->scalar_type(), " ",
               shape(*positive));
}

void check_positive(const int64_t* positive, int64_t rows, int64_t columns) {
  for (int64_t r = 0; positive != nullptr && r < rows; ++r)
    ADAFTR_CHECK(positive[r] == kIgnore || (positive[r] >= 0 && positive[r] < columns),
                 "sigmoid_contrast: positive_index must be in [0, ", columns, ") or ", kIgnore, ", got positive_index[",
                 r, "] = ", positive[r]);
}

template <class T>
Tensor sum_of(const Tensor& x) {
  const T* values = data_of<T>(x);
  return scalar(std::accumulate(values, values + x.numel(), 0.0), kTypeOf<T>);
}

template <class T>
Outputs run(const Tensor& anchors, const Tensor& candidates, T logit_scale, T logit_bias, const int64_t* positive,
            bool need_d_anchors, bool need_d_candidates) {
  ADAFTR_CHECK(logit_scale >= std::numeric_limits<T>::min() && std::isfinite(logit_scale),
               "sigmoid_contrast: logit_scale must be positive and finite, got ", logit_scale);
  ADAFTR_CHECK(std::isfinite(logit_bias), "sigmoid_contrast: logit_bias must be finite, got ", logit_bias);
  const int64_t rows = anchors.size(0), columns = candidates.size(0);
  check_positive(positive, rows, columns);
  Tensor loss = empty({rows}, kTypeOf<T>), d_scale = empty({rows}, kTypeOf<T>), d_bias = empty({rows}, kTypeOf<T>);
  Tensor d_anchors = output_of<T>(need_d_anchors, anchors.sizes()),
         d_candidates = output_of<T>(need_d_candidates, candidates.sizes());
  SigmoidProblem<T> problem{};
  problem.rows = rows, problem.columns = columns, problem.width = anchors.size(1);
  problem.anchors = data_of<T>(anchors), problem.candidates = data_of<T>(candidates);
  problem.positive = positive;
  problem.ignore_above = std::numeric_limits<T>::infinity();
  problem.margin = 0;
  problem.loss = mutable_data_of<T>(loss);
  problem.d_anchors = need_d_anchors ? mutable_data_of<T>(d_anchors) : nullptr;
  problem.d_candidates = need_d_candidates ? mutable_data_of<T>(d_candidates) : nullptr;
  problem.logit_scale = logit_scale, problem.bias = logit_bias;
  problem.d_logit_scale = mutable_data_of<T>(d_scale), problem.d_bias = mutable_data_of<T>(d_bias);
  SweepKernel<SigmoidProblem<T>> kernel;
  if constexpr (std::is_same_v<T, double>)
    kernel = best_kernel(kTables, &SigmoidKernels::f64);
  else
    kernel = best_kernel(kTables, &SigmoidKernels::f32);
  launch(kernel, problem, loss, d_scale, d_bias, d_anchors, d_candidates);
  return {sum_of<T>(loss), d_anchors, d_candidates, sum_of<T>(d_scale), sum_of<T>(d_bias)};
}

Outputs sigmoid_contrast(const Tensor& anchors, const Tensor& candidates, const Tensor& logit_scale,
                         const Tensor& logit_bias, const OptionalTensor& positive, bool need_d_anchors,
                         bool need_d_candidates) {
  check_arguments(anchors, candidates, logit_scale, logit_bias, positive);
  const OptionalTensor ids = as_contiguous(positive);
  const int64_t* y = data_of<int64_t>(ids);
  const auto dtype = anchors.scalar_type() == kDouble ? kDouble : kFloat;
  const Tensor a = as_contiguous(anchors, dtype), b = as_contiguous(candidates, dtype);
  const double scale = value_of(logit_scale), bias = value_of(logit_bias);
  if (dtype == kDouble) return run<double>(a, b, scale, bias, y, need_d_anchors, need_d_candidates);
  return run<float>(a, b, float(scale), float(bias), y, need_d_anchors, need_d_candidates);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("sigmoid_contrast", TORCH_BOX(&sigmoid_contrast)); }

}  // namespace adaftr_fast
