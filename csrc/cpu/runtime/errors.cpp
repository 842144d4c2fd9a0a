#include "cpu/runtime/errors.h"

#include <pybind11/pytypes.h>

#include <stdexcept>

namespace adaftr_fast {

void raise(Error error, const std::string& message) {
  switch (error) {
    case Error::kValue:
      throw pybind11::value_error(message);
    case Error::kIndex:
      throw pybind11::index_error(message);
    case Error::kType:
      throw pybind11::type_error(message);
    default:
      throw std::runtime_error(message);
  }
}

}  // namespace adaftr_fast
