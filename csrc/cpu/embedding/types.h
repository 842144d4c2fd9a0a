// Storage types of the tables and the type their arithmetic is done in.
#pragma once

#include <bit>
#include <cstdint>

namespace adaftr_fast {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// float16 and bfloat16 are for storage; the arithmetic is in float.
template <typename W>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename W>
using Compute = typename ComputeType<W>::type;

}  // namespace adaftr_fast
