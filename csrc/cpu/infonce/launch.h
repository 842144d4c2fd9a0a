// How the ops of this folder run a kernel.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>
#include <utility>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/one_direction.h"
#include "cpu/runtime/caching_allocator.h"

namespace adaftr_fast {

// Kernels take at least one row and one column. Without a pair of them, all outputs are sums of nothing.
template <class Problem, class... Outputs>
void launch(const SweepKernel<Problem>& kernel, const Problem& problem, Outputs&... outputs) {
  if (problem.rows == 0 || problem.columns == 0) {
    (outputs.zero_(), ...);
    return;
  }
  const int64_t threads = thread_count();
  const auto bytes = static_cast<int64_t>(kernel.workspace_bytes(problem, threads));
  const at::Tensor workspace = cached_empty({bytes}, at::kByte);
  kernel.run(problem, workspace.mutable_data_ptr(), threads);
}

// Checks what all ops of one direction take.
inline void check_inputs(const at::Tensor& anchors, const at::Tensor& candidates, const at::Tensor& tau,
                         const at::Tensor& scale) {
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

// The sum of scale_r L_r, of which a row that weighs nothing is no part even if its loss is not finite.
inline at::Tensor weighted_sum(const at::Tensor& loss, const at::Tensor& scale) {
  return (loss * scale).masked_fill_(scale == 0, 0).sum();
}

struct Needs {
  bool d_anchors, d_candidates, d_tau, stats;
};

// The outputs of an op of one direction, in the accumulation type of its inputs, which are of that type. Those that are
// not needed are empty.
template <class T>
struct SweepOutputs {
  at::Tensor loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau;

  SweepOutputs(const at::Tensor& anchors, const at::Tensor& candidates, const Needs& need) {
    const auto options = anchors.options();
    const int64_t rows = anchors.size(0);
    const auto maybe = [&](bool needed, at::IntArrayRef shape) {
      constexpr int64_t none = 0;
      return cached_empty(needed ? shape : at::IntArrayRef(none), options);
    };
    loss = at::empty({rows}, options);
    lse = at::empty({rows}, options);
    logit = at::empty({rows}, options);
    top1 = at::empty({need.stats ? rows : 0}, options.dtype(at::kBool));
    entropy = maybe(need.stats, {rows});
    d_anchors = maybe(need.d_anchors, anchors.sizes());
    d_candidates = maybe(need.d_candidates, candidates.sizes());
    d_tau = maybe(need.d_tau, {rows});
  }

  // Lets the kernel write them; nullptr for those that are not needed.
  void point(InfoNCEProblem<T>& problem, const Needs& need) {
    const auto data = [](at::Tensor& x, bool needed) { return needed ? x.mutable_data_ptr<T>() : nullptr; };
    problem.loss = loss.mutable_data_ptr<T>();
    problem.lse = lse.mutable_data_ptr<T>();
    problem.positive_logit = logit.mutable_data_ptr<T>();
    problem.top1 = need.stats ? top1.mutable_data_ptr<bool>() : nullptr;
    problem.entropy = data(entropy, need.stats);
    problem.d_anchors = data(d_anchors, need.d_anchors);
    problem.d_candidates = data(d_candidates, need.d_candidates);
    problem.d_tau = data(d_tau, need.d_tau);
  }

  // The results of the op, once they are written.
  OneDirection results(const at::Tensor& scale) const {
    return {weighted_sum(loss, scale), loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau};
  }
};

// Checks the temperature of row r; `of` follows the name in the message.
template <class T>
void check_tau(T tau, int64_t r, const char* of = "") {
  TORCH_CHECK(tau >= std::numeric_limits<T>::min() && std::isfinite(tau), "adaptive_infonce: tau", of,
              " must be positive and finite, got tau[", r, "] = ", tau,
              tau > 0 && std::isfinite(tau) ? ", which is subnormal" : "");
}

}  // namespace adaftr_fast
