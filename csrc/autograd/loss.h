// The gradients of the losses whose ops return them with the loss.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <vector>

namespace adaftr_fast {

// Returns `losses`, the loss [] and, if the op has one, row_loss [B], as differentiable in `inputs`: the gradient in
// inputs[i] is that of the loss times factors[i], which is empty where it was not computed.
//
// `in_python(needs, g_loss, g_row_loss, saved)` returns the gradients of the rare cases: those of row_loss, those that
// were not computed, and those that are differentiable themselves. `saved` are inputs, constants and factors.
std::vector<at::Tensor> differentiable_loss(const std::vector<at::Tensor>& losses,
                                            const std::vector<at::Tensor>& inputs,
                                            const std::vector<std::optional<at::Tensor>>& constants,
                                            const std::vector<at::Tensor>& factors, const py::object& in_python);

}  // namespace adaftr_fast
