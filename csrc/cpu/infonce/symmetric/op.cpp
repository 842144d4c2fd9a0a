// torch.ops.adaftr_fast.infonce_symmetric on CPU: checks, the choice between one fused sweep and two of one direction,
// and the launch.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "cpu/infonce/launch.h"

namespace adaftr_fast {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Arguments {
  Tensor anchors, candidates, tau_row, tau_column;
  OptionalTensor row_group, column_group;
  Tensor scale;
  bool need_d_anchors, need_d_candidates, need_d_tau_row, need_d_tau_column, ieee;
};

// The power of 2 that brings the largest |scale| / (2 tau) near 1. None where the smallest is so far below the largest,
// or so near the ends of double, that the fused sweep would lose digits, which scales all of them alike.
template <class T>
std::optional<double> weight_unit(const Arguments& x) {
  constexpr double most_ratio = std::is_same_v<T, float> ? 0x1p40 : 0x1p400;
  const T *scale = data_of<T>(x.scale), *row = data_of<T>(x.tau_row), *column = data_of<T>(x.tau_column);
  double least = std::numeric_limits<double>::infinity(), most = 0;
  const int64_t rows = x.scale.size(0);
  for (int64_t r = 0; r < rows; ++r) {
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

// Half of x, contiguous.
template <class T>
Tensor halved(const Tensor& x) {
  const Tensor half = empty(x.sizes(), kTypeOf<T>);
  const T* from = data_of<T>(x);
  std::transform(from, from + x.numel(), mutable_data_of<T>(half), [](T each) { return each / 2; });
  return half;
}

template <class T>
Outputs two_sweeps(const Arguments& x) {
  const Tensor scale = halved<T>(x.scale);
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
  return {plus(loss, loss_c),
          plus(halved<T>(row_loss), halved<T>(row_loss_c)),
          plus(d_anchors, d_anchors_c),
          plus(d_candidates, d_candidates_c),
          d_tau,
          d_tau_c};
}

template <class T>
Outputs fused(const Arguments& x, double unit) {
  const int64_t rows = x.anchors.size(0);
  Tensor loss = empty({rows}, kTypeOf<T>), d_anchors = output_of<T>(x.need_d_anchors, x.anchors.sizes()),
         d_candidates = output_of<T>(x.need_d_candidates, x.anchors.sizes()),
         d_tau_row = output_of<T>(x.need_d_tau_row, {rows}), d_tau_column = output_of<T>(x.need_d_tau_column, {rows});
  auto problem = problem_of<SymmetricProblem, T>(x.anchors, x.candidates);
  problem.tau = data_of<T>(x.tau_row), problem.tau_column = data_of<T>(x.tau_column);
  problem.row_group = data_of<int64_t>(x.row_group), problem.column_group = data_of<int64_t>(x.column_group);
  problem.scale = data_of<T>(x.scale), problem.weight_unit = unit;
  problem.loss = mutable_data_of<T>(loss);
  problem.d_anchors = mutable_data_of<T>(d_anchors);
  problem.d_candidates = mutable_data_of<T>(d_candidates);
  problem.d_tau = mutable_data_of<T>(d_tau_row);
  problem.d_tau_column = mutable_data_of<T>(d_tau_column);
  launch(loss_kernels<T>().symmetric, problem, loss, d_anchors, d_candidates, d_tau_row, d_tau_column);
  return {weighted_sum<T>(loss, x.scale), loss, d_anchors, d_candidates, d_tau_row, d_tau_column};
}

template <class T>
Outputs run(Arguments& x) {
  check_tau<T>(x.tau_row);
  check_tau<T>(x.tau_column, " (per column)");
  if (bf16_kernel(x.anchors.scalar_type(), x.ieee)) return two_sweeps<T>(x);
  const bool differentiates = x.need_d_anchors || x.need_d_candidates || x.need_d_tau_row || x.need_d_tau_column;
  const auto unit = differentiates ? weight_unit<T>(x) : std::optional<double>(1);
  if (!unit.has_value()) return two_sweeps<T>(x);
  for (Tensor* t : {&x.anchors, &x.candidates}) *t = as_contiguous(*t, x.scale.scalar_type());
  return fused<T>(x, *unit);
}

Outputs infonce_symmetric(const Tensor& anchors, const Tensor& candidates, const Tensor& tau_row,
                          const Tensor& tau_column, const OptionalTensor& row_group, const OptionalTensor& column_group,
                          const Tensor& scale, bool need_d_anchors, bool need_d_candidates, bool need_d_tau_row,
                          bool need_d_tau_column, bool ieee) {
  check_paired(anchors, candidates);
  check_inputs(anchors, candidates, {{"tau_row", &tau_row}, {"tau_column", &tau_column}, {"scale", &scale}});
  ADAFTR_CHECK(row_group.has_value() == column_group.has_value(),
               "adaptive_infonce: row_group and column_group must be given together");
  const int64_t rows = anchors.size(0);
  const auto dtype = anchors.scalar_type() == kDouble ? kDouble : kFloat;
  Arguments x{anchors,
              candidates,
              as_contiguous(tau_row, dtype),
              as_contiguous(tau_column, dtype),
              ids("adaptive_infonce", "row_group", row_group, rows),
              ids("adaptive_infonce", "column_group", column_group, rows),
              as_contiguous(scale, dtype),
              need_d_anchors,
              need_d_candidates,
              need_d_tau_row,
              need_d_tau_column,
              ieee};
  return dtype == kDouble ? run<double>(x) : run<float>(x);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("infonce_symmetric", TORCH_BOX(&infonce_symmetric)); }

}  // namespace adaftr_fast
