// torch.ops.adaftr_fast.infonce_blocks on CPU: checks, dispatch by instruction set, and the launch.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/infonce/kernels.h"
#include "cpu/infonce/launch.h"
#include "cpu/infonce/one_direction.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

constexpr KernelTables<BlockKernels> kTables = {&generic::kBlocks,
#if defined(__x86_64__)
                                                &avx2::kBlocks, &avx512::kBlocks
#elif defined(__aarch64__)
                                                &neon::kBlocks
#endif
};

template <class T>
void check_values(const Tensor& tau) {
  const T* t = tau.const_data_ptr<T>();
  for (int64_t r = 0; r < tau.size(0); ++r) check_tau(t[r], r);
}

// A sweep for each block, for blocks of more than kMaxBlock rows.
OneDirection by_sweeps(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale,
                       Needs need, int64_t block, bool ieee) {
  std::array<std::vector<Tensor>, std::tuple_size_v<OneDirection>> parts;
  for (int64_t first = 0; first < anchors.size(0); first += block) {
    const auto rows = [&](const Tensor& x) { return x.narrow(0, first, std::min(block, x.size(0) - first)); };
    const auto outputs =
        infonce(rows(anchors), rows(candidates), rows(tau), std::nullopt, std::nullopt, std::nullopt, rows(scale),
                need.d_anchors, need.d_candidates, need.d_tau, need.stats, std::nullopt, ieee);
    size_t i = 0;
    std::apply([&](const auto&... x) { (parts[i++].push_back(x), ...); }, outputs);
  }
  const auto joined = [&](size_t i) { return at::cat(parts[i]); };
  return {at::stack(parts[0]).sum(),
          joined(1),
          joined(2),
          joined(3),
          joined(4),
          joined(5),
          joined(6),
          joined(7),
          joined(8)};
}

template <class T>
OneDirection run(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale, Needs need,
                 int64_t block) {
  SweepOutputs<T> out(anchors, candidates, need);
  InfoNCEProblem<T> problem{};
  problem.rows = anchors.size(0);
  problem.columns = anchors.size(0);
  problem.width = anchors.size(1);
  problem.anchors = anchors.const_data_ptr<T>();
  problem.candidates = candidates.const_data_ptr<T>();
  problem.tau = tau.const_data_ptr<T>();
  problem.scale = scale.const_data_ptr<T>();
  out.point(problem, need);
  if constexpr (std::is_same_v<T, double>)
    best_kernel(kTables, &BlockKernels::f64)(problem, block);
  else
    best_kernel(kTables, &BlockKernels::f32)(problem, block);
  return out.results(scale);
}

OneDirection infonce_blocks(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale,
                            bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,
                            int64_t block, bool ieee) {
  TORCH_CHECK(candidates.sizes() == anchors.sizes(),
              "adaptive_infonce: anchors and candidates must both be [B, d], got ", anchors.sizes(), " and ",
              candidates.sizes());
  check_inputs(anchors, candidates, tau, scale);
  TORCH_CHECK(block >= 1, "adaptive_infonce: block must be at least 1, got ", block);
  const auto dtype = anchors.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto widen = [&](const Tensor& x) { return x.to(dtype).contiguous(); };
  const Tensor wide_tau = widen(tau), wide_scale = widen(scale);
  const auto check = dtype == at::kDouble ? check_values<double> : check_values<float>;
  check(wide_tau);
  const Needs need{need_d_anchors, need_d_candidates, need_d_tau, need_stats};
  block = std::min(block, std::max<int64_t>(anchors.size(0), 1));
  if (block > kMaxBlock) return by_sweeps(anchors, candidates, wide_tau, wide_scale, need, block, ieee);
  const auto go = dtype == at::kDouble ? run<double> : run<float>;
  return go(widen(anchors), widen(candidates), wide_tau, wide_scale, need, block);
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("infonce_blocks", infonce_blocks); }

}  // namespace adaftr_fast
