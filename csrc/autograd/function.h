// What every file of autograd functions includes.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns wrongly about the vector<bool> of torch's Function::apply.
#pragma GCC diagnostic ignored "-Warray-bounds"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#endif

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace adaftr_fast {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

}  // namespace adaftr_fast
