// The Python module adaftr_fast._C: build facts and dispatch control. The ops register themselves with
// PyTorch's dispatcher in the file of each op (TORCH_LIBRARY_IMPL).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/runtime/capability.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.def("cpu_capability", [] { return adaftr_fast::name_of(adaftr_fast::capability()); });
  m.def("set_cpu_capability", &adaftr_fast::set_capability, py::arg("name"));
  m.def("build_info", [] {
    py::dict info;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["compiled"] = adaftr_fast::compiled_capabilities();
    info["supported"] = adaftr_fast::supported_capabilities();
    return info;
  });
}
