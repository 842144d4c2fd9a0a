// The gradients of torch.ops.adaftr_fast.infonce and infonce_blocks. adaftr_fast/ops/infonce/autograd.py has the
// formula in Python, for the other ops and without this library; calls from C++ cost a fifth of it, which counts at
// 1,024 rows.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "autograd/function.h"
#include "autograd/scaled.h"

namespace adaftr_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using NeedsOfTensors = std::array<bool, 3>;  // of anchors, candidates and tau

// All other cases, in Python: gradients that are differentiable, that must be computed again, or of the row losses.
template <class Call>
Gradients call_gradients(at::ArrayRef<bool> needs, at::ArrayRef<bool> computed, typename Call::Option option,
                         const OptionalTensor& g_loss, const OptionalTensor& g_row_loss,
                         const c10::List<OptionalTensor>& saved, bool ieee) {
  using Op = Gradients(at::ArrayRef<bool>, at::ArrayRef<bool>, typename Call::Option, const OptionalTensor&,
                       const OptionalTensor&, const c10::List<OptionalTensor>&, bool);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(Call::kGradients, "").template typed<Op>();
  return op.call(needs, computed, option, g_loss, g_row_loss, saved, ieee);
}

// What a call of infonce takes besides the tensors that have a gradient.
struct OverAllRows {
  static constexpr auto kGradients = "adaftr_fast::_infonce_gradients";
  using Option = std::optional<double>;
  OptionalTensor positive, row_group, column_group;
  NeedsOfTensors need_d;
  bool need_stats;
  Option option;  // ignore_above
  bool ieee;

  std::vector<OptionalTensor> masks() const { return {positive, row_group, column_group}; }

  Outputs operator()(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale) const {
    using Op = Outputs(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                       const OptionalTensor&, const Tensor&, bool, bool, bool, bool, Option, bool);
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::infonce", "").typed<Op>();
    const at::AutoDispatchBelowADInplaceOrView below;
    return op.call(anchors, candidates, tau, positive, row_group, column_group, scale, need_d[0], need_d[1], need_d[2],
                   need_stats, option, ieee);
  }
};

// The same for infonce_blocks.
struct WithinBlocks {
  static constexpr auto kGradients = "adaftr_fast::_infonce_blocks_gradients";
  using Option = int64_t;
  NeedsOfTensors need_d;
  bool need_stats;
  Option option;  // block
  bool ieee;

  std::vector<OptionalTensor> masks() const { return {}; }

  Outputs operator()(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale) const {
    using Op =
        Outputs(const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool, bool, bool, bool, Option, bool);
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::infonce_blocks", "").typed<Op>();
    const at::AutoDispatchBelowADInplaceOrView below;
    return op.call(anchors, candidates, tau, scale, need_d[0], need_d[1], need_d[2], need_stats, option, ieee);
  }
};

OptionalTensor optional_of(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

// On a GPU one launch multiplies and converts.
Tensor product(const Tensor& x, const Tensor& factor, at::ScalarType type) {
  if (x.scalar_type() == type || is_batched(factor)) return x.mul(factor).to(type);
  Tensor result = at::empty_like(x, x.options().dtype(type));
  return at::mul_out(result, x, factor);
}

template <class Call>
struct InfoNCEFunction : torch::autograd::Function<InfoNCEFunction<Call>> {
  static constexpr size_t kArguments = 5, kOfScale = 3;

  static variable_list forward(AutogradContext* ctx, const Tensor& anchors, const Tensor& candidates, const Tensor& tau,
                               const Tensor& scale, const Call& call) {
    auto [loss, row_loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau] =
        call(anchors, candidates, tau, scale);
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({lse, logit, top1, entropy, d_anchors, d_candidates, d_tau});
    variable_list saved = {anchors, candidates, tau};
    for (const OptionalTensor& mask : call.masks()) saved.push_back(mask.value_or(Tensor()));
    for (const Tensor& x : {scale, row_loss, d_anchors, d_candidates, d_tau}) saved.push_back(x);
    ctx->save_for_backward(saved);
    ctx->saved_data["flags"] =
        int64_t{call.need_d[0]} | int64_t{call.need_d[1]} << 1 | int64_t{call.need_d[2]} << 2 | int64_t{call.ieee} << 3;
    ctx->saved_data["option"] = call.option;
    return {loss, row_loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    variable_list found(kArguments);
    const Tensor &g_loss = upstream[0], &g_row_loss = upstream[1];
    if (!g_loss.defined() && !g_row_loss.defined()) return found;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor *row_loss = &saved[saved.size() - 4], *d = row_loss + 1;
    const int64_t flags = ctx->saved_data["flags"].toInt();
    const bool computed[3] = {(flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0};
    bool needs[4];
    bool complete = true;
    for (size_t i = 0; i < 4; ++i) {
      needs[i] = ctx->needs_input_grad(i);
      if (i < 3) complete &= computed[i] || !needs[i];
    }
    if (at::GradMode::is_enabled() || g_row_loss.defined() || !complete) {
      c10::List<OptionalTensor> all;
      for (const Tensor& each : saved) all.push_back(optional_of(each));
      std::tie(found[0], found[1], found[2], found[kOfScale]) =
          call_gradients<Call>(needs, computed, ctx->saved_data["option"].to<typename Call::Option>(),
                               optional_of(g_loss), optional_of(g_row_loss), all, (flags & 8) != 0);
      return found;
    }
    variable_list given;
    for (size_t i = 0; i < 3; ++i)
      if (needs[i]) given.push_back(d[i]);
    const bool on_cpu = g_loss.is_cpu();
    if (on_cpu) given = call_scaled(g_loss, given, std::vector<double>(given.size(), 1));
    for (size_t i = 0, next = 0; i < 3; ++i) {
      if (!needs[i]) continue;
      const Tensor& x = given[next++];
      const auto type = saved[i].scalar_type();
      found[i] = on_cpu ? x.to(type) : product(x, g_loss, type);
    }
    if (needs[3]) found[kOfScale] = g_loss * *row_loss;
    return found;
  }
};

template <class Call>
Outputs differentiable(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale,
                       const Call& call) {
  const bool requires_grad =
      anchors.requires_grad() || candidates.requires_grad() || tau.requires_grad() || scale.requires_grad();
  if (!requires_grad || !at::GradMode::is_enabled()) return call(anchors, candidates, tau, scale);
  const variable_list out = InfoNCEFunction<Call>::apply(anchors, candidates, tau, scale, call);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7], out[8]};
}

Outputs infonce(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const OptionalTensor& positive,
                const OptionalTensor& row_group, const OptionalTensor& column_group, const Tensor& scale,
                bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,
                std::optional<double> ignore_above, bool ieee) {
  const NeedsOfTensors need_d = {need_d_anchors, need_d_candidates, need_d_tau};
  return differentiable(anchors, candidates, tau, scale,
                        OverAllRows{positive, row_group, column_group, need_d, need_stats, ignore_above, ieee});
}

Outputs infonce_blocks(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const Tensor& scale,
                       bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats, int64_t block,
                       bool ieee) {
  const NeedsOfTensors need_d = {need_d_anchors, need_d_candidates, need_d_tau};
  return differentiable(anchors, candidates, tau, scale, WithinBlocks{need_d, need_stats, block, ieee});
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, Autograd, m) {
  m.impl("infonce", infonce);
  m.impl("infonce_blocks", infonce_blocks);
}

}  // namespace adaftr_fast
