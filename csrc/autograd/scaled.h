// torch.ops.adaftr_fast.scaled for the gradients of C++ autograd functions.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <vector>

namespace adaftr_fast {

// Whether x stands for several tensors, as in autograd's is_grads_batched.
inline bool is_batched(const at::Tensor& x) {
  constexpr c10::DispatchKeySet batched({c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Batched});
  return x.key_set().has_any(batched);
}

// The tensors times `factor` (0-dim) and a scale each; the products cannot be differentiated. The op has no batching
// rule, so a factor of several takes PyTorch's ops.
inline std::vector<at::Tensor> call_scaled(const at::Tensor& factor, at::TensorList tensors,
                                           at::ArrayRef<double> scales) {
  if (is_batched(factor)) {
    std::vector<at::Tensor> products;
    for (size_t t = 0; t < tensors.size(); ++t) products.push_back(tensors[t].mul(factor.mul(scales[t])));
    return products;
  }
  using Op = std::vector<at::Tensor>(const at::Tensor&, at::TensorList, at::ArrayRef<double>);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::scaled", "").typed<Op>();
  return op.call(factor, tensors, scales);
}

}  // namespace adaftr_fast
