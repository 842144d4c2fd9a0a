// torch.ops.adaftr_fast.scaled for the gradients of C++ autograd functions.
#pragma once

#include <vector>

#include "autograd/function.h"

namespace adaftr_fast {

// Whether x stands for several tensors, as in autograd's is_grads_batched, or has a tangent.
inline bool is_transformed(const at::Tensor& x) {
  constexpr c10::DispatchKeySet keys(
      {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchGradWrapper});
  return x.key_set().has_any(keys) || x._fw_grad(0).defined();
}

// The tensors times `factor` (0-dim) and a scale each. The op cannot be differentiated, and has no batching rule and no
// formula for tangents: where one of these is needed, PyTorch's ops compute the products.
inline std::vector<at::Tensor> call_scaled(const at::Tensor& factor, at::TensorList tensors,
                                           at::ArrayRef<double> scales) {
  if (at::GradMode::is_enabled() || is_transformed(factor)) {
    std::vector<at::Tensor> products;
    for (size_t t = 0; t < tensors.size(); ++t) products.push_back(tensors[t].mul(factor.mul(scales[t])));
    return products;
  }
  static const auto op =
      find_op<std::vector<at::Tensor>(const at::Tensor&, at::TensorList, at::ArrayRef<double>)>("adaftr_fast::scaled");
  return op.call(factor, tensors, scales);
}

}  // namespace adaftr_fast
