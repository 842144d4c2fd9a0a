// The gradients of torch.ops.adaftr_fast.infonce on CPU. adaftr_fast/ops/infonce/op.py has the formula in Python, for
// the other devices and ops; calls from C++ cost a fifth of it, which counts at 1,024 rows.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns wrongly about the vector<bool> of torch's Function::apply.
#pragma GCC diagnostic ignored "-Warray-bounds"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#endif
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/norms/scaled.h"

namespace adaftr_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Outputs call_infonce(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const OptionalTensor& positive,
                     const OptionalTensor& row_group, const OptionalTensor& column_group, const Tensor& scale,
                     bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,
                     std::optional<double> ignore_above) {
  using Op = Outputs(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                     const OptionalTensor&, const Tensor&, bool, bool, bool, bool, std::optional<double>);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::infonce", "").typed<Op>();
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(anchors, candidates, tau, positive, row_group, column_group, scale, need_d_anchors, need_d_candidates,
                 need_d_tau, need_stats, ignore_above);
}

// All other cases, in Python: gradients that are differentiable, that must be computed again, or of the row losses.
Gradients call_gradients(at::ArrayRef<bool> needs, at::ArrayRef<bool> computed, std::optional<double> ignore_above,
                         const OptionalTensor& g_loss, const OptionalTensor& g_row_loss,
                         const c10::List<OptionalTensor>& saved) {
  using Op = Gradients(at::ArrayRef<bool>, at::ArrayRef<bool>, std::optional<double>, const OptionalTensor&,
                       const OptionalTensor&, const c10::List<OptionalTensor>&);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::_infonce_gradients", "").typed<Op>();
  return op.call(needs, computed, ignore_above, g_loss, g_row_loss, saved);
}

OptionalTensor optional_of(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

struct InfoNCEFunction : torch::autograd::Function<InfoNCEFunction> {
  static constexpr size_t kArguments = 12, kInputs = 7;
  static constexpr size_t kOfScale = 6;  // the place of scale among the arguments

  static variable_list forward(AutogradContext* ctx, const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                               const OptionalTensor& positive, const OptionalTensor& row_group,
                               const OptionalTensor& column_group, const Tensor& scale, bool need_d_anchors,
                               bool need_d_candidates, bool need_d_tau, bool need_stats,
                               std::optional<double> ignore_above) {
    auto [loss, row_loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau] =
        call_infonce(anchors, candidates, tau, positive, row_group, column_group, scale, need_d_anchors,
                     need_d_candidates, need_d_tau, need_stats, ignore_above);
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({lse, logit, top1, entropy, d_anchors, d_candidates, d_tau});
    const auto or_none = [](const OptionalTensor& x) { return x.value_or(Tensor()); };
    ctx->save_for_backward({anchors, candidates, tau, or_none(positive), or_none(row_group), or_none(column_group),
                            scale, row_loss, d_anchors, d_candidates, d_tau});
    ctx->saved_data["computed"] = int64_t{need_d_anchors} | int64_t{need_d_candidates} << 1 | int64_t{need_d_tau} << 2;
    ctx->saved_data["ignore_above"] = ignore_above;
    return {loss, row_loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    variable_list found(kArguments);
    const Tensor &g_loss = upstream[0], &g_row_loss = upstream[1];
    if (!g_loss.defined() && !g_row_loss.defined()) return found;
    const variable_list saved = ctx->get_saved_variables();
    const int64_t flags = ctx->saved_data["computed"].toInt();
    const bool computed[3] = {(flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0};
    bool needs[4];
    bool complete = true;
    size_t ids = 0;  // of the optional inputs, those that are given; the context counts only tensors
    for (size_t i = 3; i < kOfScale; ++i) ids += saved[i].defined();
    for (size_t i = 0; i < 4; ++i) {
      needs[i] = ctx->needs_input_grad(i < 3 ? i : 3 + ids);
      if (i < 3) complete &= computed[i] || !needs[i];
    }
    if (at::GradMode::is_enabled() || g_row_loss.defined() || !complete) {
      c10::List<OptionalTensor> all;
      for (const Tensor& each : saved) all.push_back(optional_of(each));
      std::tie(found[0], found[1], found[2], found[kOfScale]) =
          call_gradients(needs, computed, ctx->saved_data["ignore_above"].toOptional<double>(), optional_of(g_loss),
                         optional_of(g_row_loss), all);
      return found;
    }
    variable_list given;
    for (size_t i = 0; i < 3; ++i)
      if (needs[i]) given.push_back(saved[kInputs + 1 + i]);
    const auto scaled = call_scaled(g_loss, given, std::vector<double>(given.size(), 1));
    for (size_t i = 0, next = 0; i < 3; ++i)
      if (needs[i]) found[i] = scaled[next++].to(saved[i].scalar_type());
    if (needs[3]) found[kOfScale] = g_loss * saved[kInputs];
    return found;
  }
};

Outputs differentiable_infonce(const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                               const OptionalTensor& positive, const OptionalTensor& row_group,
                               const OptionalTensor& column_group, const Tensor& scale, bool need_d_anchors,
                               bool need_d_candidates, bool need_d_tau, bool need_stats,
                               std::optional<double> ignore_above) {
  const bool differentiable =
      anchors.requires_grad() || candidates.requires_grad() || tau.requires_grad() || scale.requires_grad();
  if (!differentiable || !at::GradMode::is_enabled())
    return call_infonce(anchors, candidates, tau, positive, row_group, column_group, scale, need_d_anchors,
                        need_d_candidates, need_d_tau, need_stats, ignore_above);
  const variable_list out =
      InfoNCEFunction::apply(anchors, candidates, tau, positive, row_group, column_group, scale, need_d_anchors,
                             need_d_candidates, need_d_tau, need_stats, ignore_above);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7], out[8]};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, AutogradCPU, m) { m.impl("infonce", differentiable_infonce); }

}  // namespace adaftr_fast
