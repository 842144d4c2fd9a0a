// How the ops of this folder run a kernel.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>

#include "cpu/infonce/kernels.h"
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

// Checks the temperature of row r; `of` follows the name in the message.
template <class T>
void check_tau(T tau, int64_t r, const char* of = "") {
  TORCH_CHECK(tau >= std::numeric_limits<T>::min() && std::isfinite(tau), "adaptive_infonce: tau", of,
              " must be positive and finite, got tau[", r, "] = ", tau,
              tau > 0 && std::isfinite(tau) ? ", which is subnormal" : "");
}

// The sum of scale_r L_r, of which a row that weighs nothing is no part even if its loss is not finite.
inline at::Tensor weighted_sum(const at::Tensor& loss, const at::Tensor& scale) {
  return (loss * scale).masked_fill_(scale == 0, 0).sum();
}

}  // namespace adaftr_fast
