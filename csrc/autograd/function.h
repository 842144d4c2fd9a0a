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

// The op of a name, which Python has defined by the first call, not by the time that this library is loaded.
template <class Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace adaftr_fast
