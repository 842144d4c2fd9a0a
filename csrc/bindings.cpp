// The Python module adaftr_fast._C: build facts, dispatch control, and what the loader calls with NumPy arrays. The ops
// register themselves with PyTorch's dispatcher in the file of each op (STABLE_TORCH_LIBRARY_IMPL).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/data/place_rows.h"
#include "cpu/runtime/capability.h"
#include "cpu/runtime/precision.h"

namespace py = pybind11;

namespace {

// The array's buffer, which must be contiguous and have `dims` dimensions.
py::buffer_info contiguous(const char* name, py::buffer_info info, py::ssize_t dims) {
  bool fits = info.ndim == dims;
  py::ssize_t step = info.itemsize;
  for (py::ssize_t k = info.ndim - 1; fits && k >= 0; step *= info.shape[k--])
    fits = info.strides[k] == step || info.shape[k] <= 1;
  if (!fits)
    throw std::invalid_argument(std::string("place_rows: ") + name + " must be contiguous and of " +
                                std::to_string(dims) + " dimensions, got " + std::to_string(info.ndim));
  return info;
}

void place_rows(const std::vector<py::buffer>& columns, const std::optional<py::buffer>& places,
                const py::buffer& rows) {
  const py::buffer_info to = contiguous("rows", rows.request(true), 2);
  if (to.itemsize != 4)
    throw std::invalid_argument("place_rows: rows must have elements of 4 bytes, got " + std::to_string(to.itemsize));
  std::vector<py::buffer_info> buffers;
  std::vector<const void*> from;
  for (const py::buffer& column : columns) {
    buffers.push_back(contiguous("columns", column.request(), 1));
    if (buffers.back().itemsize != 4 || buffers.back().format.back() != to.format.back())  // before it: the byte order
      throw std::invalid_argument("place_rows: columns must have the format of rows, " + to.format + ", got " +
                                  buffers.back().format);
    from.push_back(buffers.back().ptr);
  }
  const py::ssize_t width = static_cast<py::ssize_t>(from.size()), count = width ? buffers[0].shape[0] : 0;
  for (const py::buffer_info& each : buffers)
    if (each.shape[0] != count) throw std::invalid_argument("place_rows: columns must be of one length");
  std::optional<py::buffer_info> at;
  if (places) {
    at = contiguous("places", places->request(), 1);
    if (!at->item_type_is_equivalent_to<int64_t>() || reinterpret_cast<uintptr_t>(at->ptr) % sizeof(int64_t) != 0)
      throw std::invalid_argument("place_rows: places must be aligned int64, got format " + at->format);
  }
  if (to.shape[1] != width || (!at && to.shape[0] != count))
    throw std::invalid_argument("place_rows: rows must be [" + (at ? std::string("M") : std::to_string(count)) + ", " +
                                std::to_string(width) + "], got [" + std::to_string(to.shape[0]) + ", " +
                                std::to_string(to.shape[1]) + "]");
  const auto* place = at ? static_cast<const int64_t*>(at->ptr) : nullptr;
  const auto inside = [&](int64_t p) { return 0 <= p && p < to.shape[0]; };
  if (at && (at->shape[0] != count || !std::all_of(place, place + count, inside)))
    throw std::invalid_argument("place_rows: places must be " + std::to_string(count) + " numbers in [0, " +
                                std::to_string(to.shape[0]) + ")");
  const py::gil_scoped_release released;
  adaftr_fast::place_rows(from.data(), width, count, place, to.ptr);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("cpu_capability", [] { return adaftr_fast::name_of(adaftr_fast::capability()); });
  m.def("set_cpu_capability", &adaftr_fast::set_capability, py::arg("name"));
  m.def(
      "read_float32_terms_by",
      [](uintptr_t address) { adaftr_fast::read_float32_terms_by(reinterpret_cast<int (*)()>(address)); },
      py::arg("address"));
  m.def("place_rows", &place_rows, py::arg("columns"), py::arg("places"), py::arg("rows"));
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
