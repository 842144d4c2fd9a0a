// torch.ops.adaftr_fast.sigmoid_contrast on CPU: checks, dispatch by instruction set, and the launch.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/launch.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
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
  TORCH_CHECK(
      anchors.dim() == 2 && candidates.dim() == 2 && anchors.size(1) == candidates.size(1) && anchors.size(1) > 0,
      "sigmoid_contrast: anchors and candidates must be [B, d] and [N, d] with d >= 1, got ", anchors.sizes(), " and ",
      candidates.sizes());
  TORCH_CHECK(anchors.scalar_type() == candidates.scalar_type(),
              "sigmoid_contrast: anchors and candidates must share a dtype, got ", anchors.scalar_type(), " and ",
              candidates.scalar_type());
  for (const auto& [name, x] : {std::pair{"logit_scale", &logit_scale}, std::pair{"logit_bias", &logit_bias}})
    TORCH_CHECK(x->dim() == 0, "sigmoid_contrast: ", name, " must be 0-dim, got ", x->sizes());
  const int64_t rows = anchors.size(0), columns = candidates.size(0);
  if (!positive.has_value()) {
    TORCH_CHECK(columns >= rows, "sigmoid_contrast: without positive_index, h_cvr needs at least ", rows, " rows, got ",
                columns);
    return;
  }
  TORCH_CHECK(positive->scalar_type() == at::kLong && positive->dim() == 1 && positive->size(0) == rows,
              "sigmoid_contrast: positive must be int64 [", rows, "], got ", positive->scalar_type(), " ",
              positive->sizes());
}

void check_positive(const int64_t* positive, int64_t rows, int64_t columns) {
  for (int64_t r = 0; positive != nullptr && r < rows; ++r)
    TORCH_CHECK(positive[r] == kIgnore || (positive[r] >= 0 && positive[r] < columns),
                "sigmoid_contrast: positive_index must be in [0, ", columns, ") or ", kIgnore, ", got positive_index[",
                r, "] = ", positive[r]);
}

template <class T>
Outputs run(const Tensor& anchors, const Tensor& candidates, T logit_scale, T logit_bias, const int64_t* positive,
            bool need_d_anchors, bool need_d_candidates) {
  TORCH_CHECK(logit_scale >= std::numeric_limits<T>::min() && std::isfinite(logit_scale),
              "sigmoid_contrast: logit_scale must be positive and finite, got ", logit_scale);
  TORCH_CHECK(std::isfinite(logit_bias), "sigmoid_contrast: logit_bias must be finite, got ", logit_bias);
  const int64_t rows = anchors.size(0), columns = candidates.size(0);
  check_positive(positive, rows, columns);
  const auto options = anchors.options();
  constexpr int64_t none = 0;
  const auto gradient = [&](bool needed, const Tensor& x) {
    return at::empty(needed ? x.sizes() : at::IntArrayRef(none), options);
  };
  Tensor loss = at::empty({rows}, options), d_scale = at::empty({rows}, options), d_bias = at::empty({rows}, options);
  Tensor d_anchors = gradient(need_d_anchors, anchors), d_candidates = gradient(need_d_candidates, candidates);
  SigmoidProblem<T> problem{};
  problem.rows = rows, problem.columns = columns, problem.width = anchors.size(1);
  problem.anchors = anchors.const_data_ptr<T>(), problem.candidates = candidates.const_data_ptr<T>();
  problem.positive = positive;
  problem.ignore_above = std::numeric_limits<T>::infinity();
  problem.margin = 0;
  problem.loss = loss.mutable_data_ptr<T>();
  problem.d_anchors = need_d_anchors ? d_anchors.mutable_data_ptr<T>() : nullptr;
  problem.d_candidates = need_d_candidates ? d_candidates.mutable_data_ptr<T>() : nullptr;
  problem.logit_scale = logit_scale, problem.bias = logit_bias;
  problem.d_logit_scale = d_scale.mutable_data_ptr<T>(), problem.d_bias = d_bias.mutable_data_ptr<T>();
  SweepKernel<SigmoidProblem<T>> kernel;
  if constexpr (std::is_same_v<T, double>)
    kernel = best_kernel(kTables, &SigmoidKernels::f64);
  else
    kernel = best_kernel(kTables, &SigmoidKernels::f32);
  launch(kernel, problem, loss, d_scale, d_bias, d_anchors, d_candidates);
  return {loss.sum(), d_anchors, d_candidates, d_scale.sum(), d_bias.sum()};
}

Outputs sigmoid_contrast(const Tensor& anchors, const Tensor& candidates, const Tensor& logit_scale,
                         const Tensor& logit_bias, const OptionalTensor& positive, bool need_d_anchors,
                         bool need_d_candidates) {
  check_arguments(anchors, candidates, logit_scale, logit_bias, positive);
  const OptionalTensor ids = positive.has_value() ? OptionalTensor(positive->contiguous()) : std::nullopt;
  const int64_t* y = ids.has_value() ? ids->const_data_ptr<int64_t>() : nullptr;
  const auto dtype = anchors.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor a = anchors.to(dtype).contiguous(), b = candidates.to(dtype).contiguous();
  const double scale = logit_scale.item<double>(), bias = logit_bias.item<double>();
  if (dtype == at::kDouble) return run<double>(a, b, scale, bias, y, need_d_anchors, need_d_candidates);
  return run<float>(a, b, float(scale), float(bias), y, need_d_anchors, need_d_candidates);
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("sigmoid_contrast", sigmoid_contrast); }

}  // namespace adaftr_fast
