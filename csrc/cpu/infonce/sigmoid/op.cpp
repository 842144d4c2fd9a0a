// torch.ops.adaftr_fast.sigmoid_contrast on CPU: checks, dispatch by instruction set, and the launch.

#include <numeric>
#include <tuple>

#include "cpu/infonce/launch.h"

namespace adaftr_fast {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kOp = "sigmoid_contrast";

template <class T>
Tensor sum_of(const Tensor& x) {
  const T* values = data_of<T>(x);
  return scalar(std::accumulate(values, values + x.numel(), 0.0), kTypeOf<T>);
}

template <class T>
Outputs run(const Tensor& anchors, const Tensor& candidates, T logit_scale, T logit_bias,
            const OptionalTensor& positive, bool need_d_anchors, bool need_d_candidates) {
  ADAFTR_CHECK(logit_scale >= std::numeric_limits<T>::min() && std::isfinite(logit_scale), kOp,
               ": logit_scale must be positive and finite, got ", logit_scale);
  ADAFTR_CHECK(std::isfinite(logit_bias), kOp, ": logit_bias must be finite, got ", logit_bias);
  auto problem = problem_of<SigmoidProblem, T>(anchors, candidates);
  problem.positive = data_of<int64_t>(positive);
  check_positives(kOp, problem);
  const int64_t rows = problem.rows;
  Tensor loss = empty({rows}, kTypeOf<T>), d_scale = empty({rows}, kTypeOf<T>), d_bias = empty({rows}, kTypeOf<T>);
  Tensor d_anchors = output_of<T>(need_d_anchors, anchors.sizes()),
         d_candidates = output_of<T>(need_d_candidates, candidates.sizes());
  problem.loss = mutable_data_of<T>(loss);
  problem.d_anchors = mutable_data_of<T>(d_anchors);
  problem.d_candidates = mutable_data_of<T>(d_candidates);
  problem.logit_scale = logit_scale, problem.bias = logit_bias;
  problem.d_logit_scale = mutable_data_of<T>(d_scale), problem.d_bias = mutable_data_of<T>(d_bias);
  launch(loss_kernels<T>().sigmoid, problem, loss, d_scale, d_bias, d_anchors, d_candidates);
  return {sum_of<T>(loss), d_anchors, d_candidates, sum_of<T>(d_scale), sum_of<T>(d_bias)};
}

Outputs sigmoid_contrast(const Tensor& anchors, const Tensor& candidates, const Tensor& logit_scale,
                         const Tensor& logit_bias, const OptionalTensor& positive, bool need_d_anchors,
                         bool need_d_candidates) {
  check_operands(kOp, anchors, candidates);
  for (const auto& [name, x] : {std::pair{"logit_scale", &logit_scale}, std::pair{"logit_bias", &logit_bias}})
    ADAFTR_CHECK(x->dim() == 0, kOp, ": ", name, " must be 0-dim, got ", shape(*x));
  const OptionalTensor y = ids(kOp, "positive", positive, anchors.size(0));
  const auto dtype = anchors.scalar_type() == kDouble ? kDouble : kFloat;
  const Tensor a = as_contiguous(anchors, dtype), b = as_contiguous(candidates, dtype);
  const double scale = value_of(logit_scale), bias = value_of(logit_bias);
  if (dtype == kDouble) return run<double>(a, b, scale, bias, y, need_d_anchors, need_d_candidates);
  return run<float>(a, b, float(scale), float(bias), y, need_d_anchors, need_d_candidates);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("sigmoid_contrast", TORCH_BOX(&sigmoid_contrast)); }

}  // namespace adaftr_fast
