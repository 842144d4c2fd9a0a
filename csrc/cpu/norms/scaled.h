// torch.ops.adaftr_fast.scaled for the gradients of C++ autograd functions.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <vector>

namespace adaftr_fast {

// The tensors times `factor` (0-dim) and a scale each. Without a formula for its own gradient.
inline std::vector<at::Tensor> call_scaled(const at::Tensor& factor, at::TensorList tensors,
                                           at::ArrayRef<double> scales) {
  using Op = std::vector<at::Tensor>(const at::Tensor&, at::TensorList, at::ArrayRef<double>);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::scaled", "").typed<Op>();
  return op.call(factor, tensors, scales);
}

}  // namespace adaftr_fast
