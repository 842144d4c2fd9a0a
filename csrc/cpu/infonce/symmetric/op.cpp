// torch.ops.adaftr_fast.infonce_symmetric on CPU: checks, the choice between one fused sweep and two of one direction,
// and the launch.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/launch.h"
#include "cpu/infonce/one_direction.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr KernelTables<SymmetricKernels> kTables = {&generic::kSymmetric,
#if defined(__x86_64__)
                                                    &avx2::kSymmetric, &avx512::kSymmetric
#elif defined(__aarch64__)
                                                    &neon::kSymmetric
#endif
};

struct Arguments {
  Tensor anchors, candidates, tau_row, tau_column;
  OptionalTensor row_group, column_group;
  Tensor scale;
  bool need_d_anchors, need_d_candidates, need_d_tau_row, need_d_tau_column, ieee;
};

void check_arguments(const Arguments& x) {
  TORCH_CHECK(x.anchors.dim() == 2 && x.candidates.sizes() == x.anchors.sizes() && x.anchors.size(1) > 0,
              "adaptive_infonce: anchors and candidates must both be [B, d] with d >= 1, got ", x.anchors.sizes(),
              " and ", x.candidates.sizes());
  TORCH_CHECK(x.anchors.scalar_type() == x.candidates.scalar_type(),
              "adaptive_infonce: anchors and candidates must share a dtype, got ", x.anchors.scalar_type(), " and ",
              x.candidates.scalar_type());
  const int64_t rows = x.anchors.size(0);
  for (const auto& [name, v] :
       {std::pair{"tau_row", &x.tau_row}, std::pair{"tau_column", &x.tau_column}, std::pair{"scale", &x.scale}})
    TORCH_CHECK(v->dim() == 1 && v->size(0) == rows, "adaptive_infonce: ", name, " must be [", rows, "], got ",
                v->sizes());
  TORCH_CHECK(x.row_group.has_value() == x.column_group.has_value(),
              "adaptive_infonce: row_group and column_group must be given together");
  for (const auto& [name, v] : {std::pair{"row_group", &x.row_group}, std::pair{"column_group", &x.column_group}})
    TORCH_CHECK(!v->has_value() || ((*v)->scalar_type() == at::kLong && (*v)->dim() == 1 && (*v)->size(0) == rows),
                "adaptive_infonce: ", name, " must be int64 [", rows, "], got ", (*v)->scalar_type(), " ",
                (*v)->sizes());
}

template <class T>
void check_values(const char* of, const Tensor& tau) {
  const T* t = tau.const_data_ptr<T>();
  for (int64_t r = 0; r < tau.size(0); ++r) check_tau(t[r], r, of);
}

// The power of 2 that brings the largest |scale| / (2 tau) near 1. None where the smallest is so far below the largest,
// or so near the ends of double, that the fused sweep would lose digits, which scales all of them alike.
template <class T>
std::optional<double> weight_unit(const Arguments& x) {
  constexpr double most_ratio = std::is_same_v<T, float> ? 0x1p40 : 0x1p400;
  const T *scale = x.scale.const_data_ptr<T>(), *row = x.tau_row.const_data_ptr<T>(),
          *column = x.tau_column.const_data_ptr<T>();
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (int64_t r = 0; r < x.scale.size(0); ++r) {
    if (scale[r] == 0) continue;
    for (const T tau : {row[r], column[r]}) {
      const double size = std::abs(0.5 * double(scale[r]) / tau);
      if (!(size > 0x1p-900 && size < 0x1p900)) return std::nullopt;
      least = std::min(least, size), most = std::max(most, size);
    }
  }
  if (most == 0 || most > most_ratio * least) return std::nullopt;
  return std::exp2(-std::logb(most));
}

Outputs two_sweeps(const Arguments& x) {
  const Tensor scale = x.scale * 0.5;
  const auto direction = [&](const Tensor& a, const Tensor& b, const Tensor& tau, const OptionalTensor& a_group,
                             const OptionalTensor& b_group, bool need_a, bool need_b, bool need_tau) {
    return infonce(a, b, tau, std::nullopt, a_group, b_group, scale, need_a, need_b, need_tau, false, std::nullopt,
                   x.ieee);
  };
  const auto [loss, row_loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau] =
      direction(x.anchors, x.candidates, x.tau_row, x.row_group, x.column_group, x.need_d_anchors, x.need_d_candidates,
                x.need_d_tau_row);
  const auto [loss_c, row_loss_c, lse_c, logit_c, top1_c, entropy_c, d_candidates_c, d_anchors_c, d_tau_c] =
      direction(x.candidates, x.anchors, x.tau_column, x.column_group, x.row_group, x.need_d_candidates,
                x.need_d_anchors, x.need_d_tau_column);
  return {loss + loss_c,
          (row_loss * 0.5).add_(row_loss_c, 0.5),
          d_anchors + d_anchors_c,
          d_candidates + d_candidates_c,
          d_tau,
          d_tau_c};
}

template <class T>
Outputs fused(const Arguments& x, double unit) {
  const auto options = x.anchors.options();
  const auto maybe = [&](bool needed, at::IntArrayRef shape) {
    constexpr int64_t none = 0;
    return cached_empty(needed ? shape : at::IntArrayRef(none), options);
  };
  const int64_t rows = x.anchors.size(0);
  Tensor loss = at::empty({rows}, options), d_anchors = maybe(x.need_d_anchors, x.anchors.sizes()),
         d_candidates = maybe(x.need_d_candidates, x.anchors.sizes()), d_tau_row = maybe(x.need_d_tau_row, {rows}),
         d_tau_column = maybe(x.need_d_tau_column, {rows});
  const auto data = [](Tensor& t, bool needed) { return needed ? t.mutable_data_ptr<T>() : nullptr; };
  const auto id_data = [](const OptionalTensor& t) { return t.has_value() ? t->const_data_ptr<int64_t>() : nullptr; };
  SymmetricProblem<T> problem{};
  problem.rows = problem.columns = rows, problem.width = x.anchors.size(1);
  problem.anchors = x.anchors.const_data_ptr<T>(), problem.candidates = x.candidates.const_data_ptr<T>();
  problem.tau = x.tau_row.const_data_ptr<T>(), problem.tau_column = x.tau_column.const_data_ptr<T>();
  problem.row_group = id_data(x.row_group), problem.column_group = id_data(x.column_group);
  problem.ignore_above = std::numeric_limits<T>::infinity(), problem.margin = 0;
  problem.scale = x.scale.const_data_ptr<T>(), problem.weight_unit = unit;
  problem.loss = loss.mutable_data_ptr<T>();
  problem.d_anchors = data(d_anchors, x.need_d_anchors);
  problem.d_candidates = data(d_candidates, x.need_d_candidates);
  problem.d_tau = data(d_tau_row, x.need_d_tau_row);
  problem.d_tau_column = data(d_tau_column, x.need_d_tau_column);
  SweepKernel<SymmetricProblem<T>> kernel;
  if constexpr (std::is_same_v<T, double>)
    kernel = best_kernel(kTables, &SymmetricKernels::f64);
  else
    kernel = best_kernel(kTables, &SymmetricKernels::f32);
  launch(kernel, problem, loss, d_anchors, d_candidates, d_tau_row, d_tau_column);
  return {weighted_sum(loss, x.scale), loss, d_anchors, d_candidates, d_tau_row, d_tau_column};
}

template <class T>
Outputs run(Arguments& x) {
  check_values<T>("", x.tau_row);
  check_values<T>(" (per column)", x.tau_column);
  if (multiplies_bf16(x.anchors.scalar_type(), x.ieee)) return two_sweeps(x);
  const bool differentiates = x.need_d_anchors || x.need_d_candidates || x.need_d_tau_row || x.need_d_tau_column;
  const auto unit = differentiates ? weight_unit<T>(x) : std::optional<double>(1);
  if (!unit.has_value()) return two_sweeps(x);
  for (Tensor* t : {&x.anchors, &x.candidates}) *t = t->to(x.scale.scalar_type()).contiguous();
  return fused<T>(x, *unit);
}

Outputs infonce_symmetric(const Tensor& anchors, const Tensor& candidates, const Tensor& tau_row,
                          const Tensor& tau_column, const OptionalTensor& row_group, const OptionalTensor& column_group,
                          const Tensor& scale, bool need_d_anchors, bool need_d_candidates, bool need_d_tau_row,
                          bool need_d_tau_column, bool ieee) {
  Arguments x{anchors, candidates,     tau_row,           tau_column,     row_group,         column_group,
              scale,   need_d_anchors, need_d_candidates, need_d_tau_row, need_d_tau_column, ieee};
  check_arguments(x);
  const auto dtype = anchors.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  for (Tensor* t : {&x.tau_row, &x.tau_column, &x.scale}) *t = t->to(dtype).contiguous();
  for (OptionalTensor* t : {&x.row_group, &x.column_group})
    if (t->has_value()) *t = (*t)->contiguous();
  return dtype == at::kDouble ? run<double>(x) : run<float>(x);
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("infonce_symmetric", infonce_symmetric); }

}  // namespace adaftr_fast
