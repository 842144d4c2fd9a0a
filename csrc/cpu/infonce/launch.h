// How the ops of this folder run a kernel.
#pragma once

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
    (zero(outputs), ...);
    return;
  }
  const int64_t threads = thread_count();
  const auto bytes = static_cast<int64_t>(kernel.workspace_bytes(problem, threads));
  const Tensor workspace = cached_empty({bytes}, kByte);
  kernel.run(problem, workspace.mutable_data_ptr(), threads);
}

// Checks what all ops of one direction take.
inline void check_inputs(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale) {
  ADAFTR_CHECK(
      anchors.dim() == 2 && candidates.dim() == 2 && anchors.size(1) == candidates.size(1) && anchors.size(1) > 0,
      "adaptive_infonce: anchors and candidates must be [B, d] and [N, d] with d >= 1, got ", shape(anchors), " and ",
      shape(candidates));
  ADAFTR_CHECK(anchors.scalar_type() == candidates.scalar_type(),
               "adaptive_infonce: anchors and candidates must share a dtype, got ", anchors.scalar_type(), " and ",
               candidates.scalar_type());
  for (const auto& [name, x] : {std::pair{"tau", &tau}, std::pair{"scale", &scale}})
    ADAFTR_CHECK(x->dim() == 1 && x->size(0) == anchors.size(0), "adaptive_infonce: ", name, " must be [",
                 anchors.size(0), "], got ", shape(*x));
}

// The sum of scale_r L_r, 0-dim, of which a row that weighs nothing is no part even if its loss is not finite.
template <class T>
Tensor weighted_sum(const Tensor& loss, const Tensor& scale) {
  const T *l = data_of<T>(loss), *s = data_of<T>(scale);
  double sum = 0;
  const int64_t rows = loss.numel();
  for (int64_t r = 0; r < rows; ++r)
    if (s[r] != 0) sum += static_cast<double>(l[r] * s[r]);
  return scalar(sum, loss.scalar_type());
}

// An output that is empty unless it is needed.
template <class T>
Tensor output_of(bool needed, Sizes sizes) {
  return needed ? cached_empty(sizes, kTypeOf<T>) : empty({0}, kTypeOf<T>);
}

struct Needs {
  bool d_anchors, d_candidates, d_tau, stats;
};

// The outputs of an op of one direction, in the accumulation type of its inputs, which are of that type. Those that are
// not needed are empty.
template <class T>
struct SweepOutputs {
  Tensor loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau;

  SweepOutputs(const Tensor& anchors, const Tensor& candidates, const Needs& need)
      : loss(row_values(anchors)),
        lse(row_values(anchors)),
        logit(row_values(anchors)),
        top1(empty({need.stats ? anchors.size(0) : 0}, kBool)),
        entropy(empty({need.stats ? anchors.size(0) : 0}, kTypeOf<T>)),
        d_anchors(output_of<T>(need.d_anchors, anchors.sizes())),
        d_candidates(output_of<T>(need.d_candidates, candidates.sizes())),
        d_tau(empty({need.d_tau ? anchors.size(0) : 0}, kTypeOf<T>)) {}

  static Tensor row_values(const Tensor& anchors) { return empty({anchors.size(0)}, kTypeOf<T>); }

  // Lets the kernel write them; nullptr for those that are not needed.
  void point(InfoNCEProblem<T>& problem, const Needs& need) {
    const auto data = [](Tensor& x, bool needed) { return needed ? mutable_data_of<T>(x) : nullptr; };
    problem.loss = mutable_data_of<T>(loss);
    problem.lse = mutable_data_of<T>(lse);
    problem.positive_logit = mutable_data_of<T>(logit);
    problem.top1 = need.stats ? mutable_data_of<bool>(top1) : nullptr;
    problem.entropy = data(entropy, need.stats);
    problem.d_anchors = data(d_anchors, need.d_anchors);
    problem.d_candidates = data(d_candidates, need.d_candidates);
    problem.d_tau = data(d_tau, need.d_tau);
  }

  // The results of the op, once they are written.
  OneDirection results(const Tensor& scale) const {
    return {weighted_sum<T>(loss, scale), loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau};
  }
};

// Checks the temperature of row r; `of` follows the name in the message.
template <class T>
void check_tau(T tau, int64_t r, const char* of = "") {
  ADAFTR_CHECK(tau >= std::numeric_limits<T>::min() && std::isfinite(tau), "adaptive_infonce: tau", of,
               " must be positive and finite, got tau[", r, "] = ", tau,
               tau > 0 && std::isfinite(tau) ? ", which is subnormal" : "");
}

}  // namespace adaftr_fast
