#include "cpu/runtime/tensor.h"

#include <algorithm>
#include <cstring>

namespace adaftr_fast {

namespace {

int32_t dtype_of(ScalarType type) { return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)); }

}  // namespace

std::vector<int64_t> contiguous_strides(Sizes sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t k = sizes.size(); k-- > 0; step *= std::max<int64_t>(sizes[k], 1)) strides[k] = step;
  return strides;
}

size_t size_of(ScalarType type) { return aoti_torch_dtype_element_size(dtype_of(type)); }

Tensor empty(Sizes sizes, ScalarType type) {
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  contiguous_strides(sizes).data(), dtype_of(type),
                                                  aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

void zero(const Tensor& x) {
  if (x.numel() > 0) std::memset(x.mutable_data_ptr(), 0, x.numel() * x.element_size());
}

Tensor scalar(double x, ScalarType type) {
  const Tensor made = empty({}, type == kFloat ? kFloat : kDouble);
  if (type == kFloat) {
    *mutable_data_of<float>(made) = static_cast<float>(x);
    return made;
  }
  *mutable_data_of<double>(made) = x;
  return as_type(made, type);
}

double value_of(const Tensor& x) {
  return x.scalar_type() == kFloat ? *data_of<float>(x) : *data_of<double>(as_type(x, kDouble));
}

Tensor as_type(const Tensor& x, ScalarType type) { return x.scalar_type() == type ? x : torch::stable::to(x, type); }

Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

OptionalTensor as_contiguous(const OptionalTensor& x) {
  return x.has_value() ? OptionalTensor(as_contiguous(*x)) : std::nullopt;
}

// The stable ABI has no addition.
Tensor plus(const Tensor& x, const Tensor& y, double factor) { return torch::stable::subtract(x, y, -factor); }

std::ostream& operator<<(std::ostream& out, const Shown& shown) {
  out << '[';
  for (size_t k = 0; k < shown.sizes.size(); ++k) out << (k > 0 ? ", " : "") << shown.sizes[k];
  return out << ']';
}

}  // namespace adaftr_fast
