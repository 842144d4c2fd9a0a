// The Python module adaftr_fast._cuda: what it is built for. Loading it registers the ops of the .cu files with
// PyTorch's dispatcher (TORCH_LIBRARY_IMPL); it does not initialise CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/build.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m) {
  m.def("build_info", [] {
    py::dict info;
    info["version"] = adaftr_fast::cuda::version();
    info["architectures"] = adaftr_fast::cuda::architectures();
    return info;
  });
}
