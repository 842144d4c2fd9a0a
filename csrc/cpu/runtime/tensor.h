// Tensors by libtorch's stable ABI: one binary serves torch 2.11 and every later version. What the ops use beyond
// torch::stable::Tensor is here.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <type_traits>
#include <vector>

#include "cpu/runtime/errors.h"
#include "cpu/runtime/stable_abi.h"

namespace adaftr_fast {

using torch::headeronly::ScalarType;
constexpr auto kBool = ScalarType::Bool, kByte = ScalarType::Byte, kInt = ScalarType::Int, kLong = ScalarType::Long;
constexpr auto kHalf = ScalarType::Half, kBFloat16 = ScalarType::BFloat16;
constexpr auto kFloat = ScalarType::Float, kDouble = ScalarType::Double;

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// An uninitialised tensor on the CPU.
Tensor empty(Sizes sizes, ScalarType type);

// The type of a tensor of T, float or double.
template <class T>
constexpr ScalarType kTypeOf = std::is_same_v<T, double> ? kDouble : kFloat;

// The strides of a contiguous tensor, in elements.
std::vector<int64_t> contiguous_strides(Sizes sizes);

// The bytes of an element.
size_t size_of(ScalarType type);

// Sets all of a contiguous tensor to 0.
void zero(const Tensor& x);

// A 0-dim tensor of a number.
Tensor scalar(double x, ScalarType type);

// The value of a floating-point tensor on the CPU of one element.
double value_of(const Tensor& x);

// x in another type, or x itself where that is its type.
Tensor as_type(const Tensor& x, ScalarType type);

// x itself where it is contiguous, and none for none.
Tensor as_contiguous(const Tensor& x);
OptionalTensor as_contiguous(const OptionalTensor& x);

// x + factor * y
Tensor plus(const Tensor& x, const Tensor& y, double factor = 1);

inline Tensor as_contiguous(const Tensor& x, ScalarType type) { return as_contiguous(as_type(x, type)); }

template <typename T>
const T* data_of(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
const T* data_of(const OptionalTensor& x) {
  return x.has_value() ? data_of<T>(*x) : nullptr;
}

template <typename T>
T* mutable_data_of(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline bool same_sizes(const Tensor& x, const Tensor& y) { return x.sizes().equals(y.sizes()); }

// Sizes in a message: [2, 5].
struct Shown {
  Sizes sizes;
};
std::ostream& operator<<(std::ostream& out, const Shown& shown);

inline Shown shape(const Tensor& x) { return {x.sizes()}; }

}  // namespace adaftr_fast
