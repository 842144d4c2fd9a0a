// The gradients of the losses whose ops return them with the loss.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <vector>

namespace adaftr_fast {

// Returns `losses`, the loss [] and, if the op has one, row_loss [B], as differentiable in `inputs`: the gradient in
// inputs[i] is that of the loss times factors[i], which is empty where it was not computed.
//
// `call`, JSON, tells the function of `set_rare_gradients` which op was called with which numbers. It is text because
// compiled autograd hashes what a node keeps, and cannot hash a handle of a Python object.
std::vector<at::Tensor> differentiable_loss(const std::vector<at::Tensor>& losses,
                                            const std::vector<at::Tensor>& inputs,
                                            const std::vector<std::optional<at::Tensor>>& constants,
                                            const std::vector<at::Tensor>& factors, const std::string& call);

// Sets `function(call, needs, g_loss, g_row_loss, saved)`, which returns the gradients of the rare cases: those of
// row_loss, those that were not computed, and those that are differentiable themselves. `saved` are inputs, constants
// and factors.
void set_rare_gradients(py::object function);

}  // namespace adaftr_fast
