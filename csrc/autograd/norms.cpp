// The gradient of squared_norm, for every device. Without this library adaftr_fast/ops/norms.py registers the formula.
#include <vector>

#include "autograd/scaled.h"

namespace adaftr_fast {
namespace {

using at::Tensor;
using at::TensorList;
using Scales = at::ArrayRef<double>;

struct SquaredNorm : torch::autograd::Function<SquaredNorm> {
  static Tensor forward(AutogradContext* ctx, TensorList tensors, Scales scales) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = find_op<Tensor(TensorList, Scales)>("adaftr_fast::squared_norm");
    ctx->save_for_backward(tensors.vec());
    ctx->saved_data["scales"] = scales.vec();
    return op.call(tensors, scales);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto of_all = ctx->saved_data["scales"].toDoubleVector();
    variable_list tensors;
    std::vector<double> scales;
    for (size_t t = 0; t < saved.size(); ++t)
      if (ctx->needs_input_grad(t)) tensors.push_back(saved[t]), scales.push_back(2 * of_all[t]);
    const auto products = call_scaled(grads[0], tensors, scales);
    variable_list found(saved.size() + 1);  // the last is of the scales
    for (size_t t = 0, next = 0; t < saved.size(); ++t)
      if (ctx->needs_input_grad(t)) found[t] = products[next++];
    return found;
  }
};

Tensor differentiable_norm(TensorList tensors, Scales scales) { return SquaredNorm::apply(tensors, scales); }

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, Autograd, m) { m.impl("squared_norm", differentiable_norm); }

}  // namespace adaftr_fast
