// What the ops of this folder share: the choice of a kernel, checks, outputs, and the launch.
#pragma once

#include <cmath>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/one_direction.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {

inline constexpr KernelTables<InfoNCEKernels> kLossTables = {&generic::kInfoNCE,
#if defined(__x86_64__)
                                                             &avx2::kInfoNCE, &avx512::kInfoNCE, &avx512_bf16::kInfoNCE,
                                                             &amx::kInfoNCE
#elif defined(__aarch64__)
                                                             &neon::kInfoNCE, &neon_bf16::kInfoNCE
#endif
};

// The kernels of all losses with arithmetic in T.
template <class T>
LossKernels<T> loss_kernels() {
  if constexpr (std::is_same_v<T, double>) {
    return best_kernel(kLossTables, &InfoNCEKernels::f64);
  } else {
    return best_kernel(kLossTables, &InfoNCEKernels::f32);
  }
}

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

// A problem of these operands, contiguous and of type T.
template <template <class> class Problem, class T>
Problem<T> problem_of(const Tensor& anchors, const Tensor& candidates) {
  Problem<T> problem{};
  problem.rows = anchors.size(0);
  problem.columns = candidates.size(0);
  problem.width = anchors.size(1);
  problem.anchors = data_of<T>(anchors);
  problem.candidates = data_of<T>(candidates);
  problem.ignore_above = std::numeric_limits<T>::infinity();
  return problem;
}

// Checks what all ops take.
inline void check_operands(const char* op, const Tensor& anchors, const Tensor& candidates) {
  ADAFTR_CHECK(
      anchors.dim() == 2 && candidates.dim() == 2 && anchors.size(1) == candidates.size(1) && anchors.size(1) > 0, op,
      ": anchors and candidates must be [B, d] and [N, d] with d >= 1, got ", shape(anchors), " and ",
      shape(candidates));
  ADAFTR_CHECK(anchors.scalar_type() == candidates.scalar_type(), op,
               ": anchors and candidates must share a dtype, got ", anchors.scalar_type(), " and ",
               candidates.scalar_type());
}

// Checks what all ops of adaptive InfoNCE take: the operands, and numbers per row by name.
inline void check_inputs(const Tensor& anchors, const Tensor& candidates,
                         std::initializer_list<std::pair<const char*, const Tensor*>> of_rows) {
  check_operands("adaptive_infonce", anchors, candidates);
  for (const auto& [name, x] : of_rows)
    ADAFTR_CHECK(x->dim() == 1 && x->size(0) == anchors.size(0), "adaptive_infonce: ", name, " must be [",
                 anchors.size(0), "], got ", shape(*x));
}

// Checks that anchors and candidates are of one shape.
inline void check_paired(const Tensor& anchors, const Tensor& candidates) {
  ADAFTR_CHECK(same_sizes(candidates, anchors),
               "adaptive_infonce: anchors and candidates must both be [B, d] with d >= 1, got ", shape(anchors),
               " and ", shape(candidates));
}

// Contiguous int64 ids of the given length, or none.
inline OptionalTensor ids(const char* op, const char* name, const OptionalTensor& x, int64_t length) {
  ADAFTR_CHECK(!x.has_value() || (x->scalar_type() == kLong && x->dim() == 1 && x->size(0) == length), op, ": ", name,
               " must be int64 [", length, "], got ", x->scalar_type(), " ", shape(*x));
  return as_contiguous(x);
}

// Checks that every row has a positive among the columns, or is ignored.
template <class T>
void check_positives(const char* op, const InfoNCEProblem<T>& problem) {
  const int64_t rows = problem.rows;
  const int64_t columns = problem.columns;
  const int64_t* y = problem.positive;
  ADAFTR_CHECK(y != nullptr || columns >= rows, op, ": without positive_index, h_cvr needs at least ", rows,
               " rows, got ", columns);
  for (int64_t r = 0; y != nullptr && r < rows; ++r)
    ADAFTR_CHECK(y[r] == kIgnore || (y[r] >= 0 && y[r] < columns), op, ": positive_index must be in [0, ", columns,
                 ") or ", kIgnore, ", got positive_index[", r, "] = ", y[r]);
}

// Checks the temperatures of the rows that are not ignored; `of` follows the name in the message.
template <class T>
void check_tau(const Tensor& tau, const char* of = "", const int64_t* positive = nullptr) {
  const T* t = data_of<T>(tau);
  const int64_t rows = tau.size(0);
  for (int64_t r = 0; r < rows; ++r) {
    if (positive != nullptr && positive[r] == kIgnore) continue;
    ADAFTR_CHECK(t[r] >= std::numeric_limits<T>::min() && std::isfinite(t[r]), "adaptive_infonce: tau", of,
                 " must be positive and finite, got tau[", r, "] = ", t[r],
                 t[r] > 0 && std::isfinite(t[r]) ? ", which is subnormal" : "");
  }
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

// An output that is empty unless it is needed; the data pointer of an empty tensor is null.
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

  // Lets the kernel write them.
  void point(InfoNCEProblem<T>& problem) const {
    problem.loss = mutable_data_of<T>(loss);
    problem.lse = mutable_data_of<T>(lse);
    problem.positive_logit = mutable_data_of<T>(logit);
    problem.top1 = mutable_data_of<bool>(top1);
    problem.entropy = mutable_data_of<T>(entropy);
    problem.d_anchors = mutable_data_of<T>(d_anchors);
    problem.d_candidates = mutable_data_of<T>(d_candidates);
    problem.d_tau = mutable_data_of<T>(d_tau);
  }

  // The results of the op, once they are written.
  OneDirection results(const Tensor& scale) const {
    return {weighted_sum<T>(loss, scale), loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau};
  }
};

}  // namespace adaftr_fast
