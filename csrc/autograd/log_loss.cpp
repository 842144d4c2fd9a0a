// The gradient of log_loss. Without this library, PyTorch differentiates the reference.
#include <ATen/ops/sigmoid.h>

#include <tuple>

#include "autograd/function.h"

namespace adaftr_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct LogLoss : torch::autograd::Function<LogLoss> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& labels,
                               const OptionalTensor& weight, double divisor) {
    const at::AutoDispatchBelowADInplaceOrView below;
    using Op = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptionalTensor&, double);
    static const auto op = find_op<Op>("adaftr_fast::log_loss");
    const auto [means, slopes] = op.call(logits, labels, weight, divisor);
    ctx->save_for_backward({logits, labels, weight.value_or(Tensor()), slopes});
    ctx->saved_data["divisor"] = divisor;
    ctx->mark_non_differentiable({slopes});
    return {means, slopes};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list kept = ctx->get_saved_variables();
    Tensor slopes = kept[3];
    if (at::GradMode::is_enabled()) {  // create_graph=True
      slopes = at::sigmoid(kept[0]).sub(kept[1]).div(ctx->saved_data["divisor"].toDouble());
      if (kept[2].defined()) slopes = slopes.mul(kept[2].unsqueeze(1));
    }
    return {gradients[0].mul(slopes), Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> differentiable_log_loss(const Tensor& logits, const Tensor& labels,
                                                   const OptionalTensor& weight, double divisor) {
  const variable_list found = LogLoss::apply(logits, labels, weight, divisor);
  return {found[0], found[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, Autograd, m) { m.impl("log_loss", differentiable_log_loss); }

}  // namespace adaftr_fast
