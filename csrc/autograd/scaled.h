// torch.ops.adaftr_fast.scaled for the gradients of C++ autograd functions.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <vector>

namespace adaftr_fast {

// Whether x stands for several tensors, as in autograd's is_grads_batched, or has a tangent.
inline bool is_transformed(const at::Tensor& x) {
  constexpr c10::DispatchKeySet keys(
      {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchGradWrapper});
  return x.key_set().has_any(keys) || x._fw_grad(0).defined();
}

// The tensors times `factor` (0-dim) and a scale each; the products cannot be differentiated. The op has no batching
// rule and no formula for tangents, so a factor that has them takes PyTorch's ops.
inline std::vector<at::Tensor> call_scaled(const at::Tensor& factor, at::TensorList tensors,
                                           at::ArrayRef<double> scales) {
  if (is_transformed(factor)) {
    std::vector<at::Tensor> products;
    for (size_t t = 0; t < tensors.size(); ++t) products.push_back(tensors[t].mul(factor.mul(scales[t])));
    return products;
  }
  using Op = std::vector<at::Tensor>(const at::Tensor&, at::TensorList, at::ArrayRef<double>);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::scaled", "").typed<Op>();
  return op.call(factor, tensors, scales);
}

}  // namespace adaftr_fast
