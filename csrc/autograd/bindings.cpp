// The Python module adaftr_fast._autograd_<torch version>: the C++ autograd functions, which depend on the version of
// torch as the ops do not, and what PyTorch tells those of its version alone.
#include <ATen/Context.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "autograd/loss.h"

namespace {

// See csrc/cpu/runtime/precision.h.
int float32_terms() {
  switch (at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL)) {
    case at::Float32Precision::TF32:
      return 2;
    case at::Float32Precision::BF16:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("float32_terms") = reinterpret_cast<uintptr_t>(&float32_terms);
  m.def("differentiable_loss", &adaftr_fast::differentiable_loss);
  m.def("set_rare_gradients", &adaftr_fast::set_rare_gradients);
}
