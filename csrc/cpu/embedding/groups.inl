// Rows of tables in groups of elements, converted between storage and arithmetic. Included once per instruction set
// (see vectors.inl).
#pragma once

#include "cpu/simd/bfloat16.inl"
#include "cpu/simd/vectors.inl"

inline float widen(const float* from) { return *from; }
inline double widen(const double* from) { return *from; }
inline void narrow(float* to, float value) { *to = value; }
inline void narrow(double* to, double value) { *to = value; }

inline float widen(const BFloat16* from) { return from_bfloat16(from->bits); }
inline void narrow(BFloat16* to, float value) { to->bits = to_bfloat16(value); }

#if defined(__aarch64__)
inline float widen(const Float16* from) { return std::bit_cast<__fp16>(from->bits); }
inline void narrow(Float16* to, float value) { to->bits = std::bit_cast<uint16_t>(static_cast<__fp16>(value)); }
#else
// Both directions by float arithmetic (exponent shifts are exact multiplications), so no F16C is needed.
inline float widen(const Float16* from) {
  const uint32_t sign = static_cast<uint32_t>(from->bits & 0x8000) << 16, magnitude = from->bits & 0x7fff;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;  // exponent bias 15 to 127
  const uint32_t bits = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(sign | bits);
}

inline void narrow(Float16* to, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    half = 0x7c00;  // rounds to 2^16 or more
  } else if (magnitude < 0x38800000) {
    // Below 2^-14 the result is subnormal: adding 0.5 leaves its bits, rounded, at the end of the sum.
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}
#endif

// Kernels work on rows in groups of 8 elements, whatever the width of registers: embeddings are often 8 wide. On NEON,
// where GCC keeps a vector in memory that is wider than a register, a group is a register of float32.
#if defined(__aarch64__)
constexpr int64_t kGroup = 4;
#else
constexpr int64_t kGroup = 8;
#endif
template <typename T>
using Group = VecOf<T, kGroup>;

// The first n elements at `from`, then zeros.
template <typename W, typename N>
inline Group<Compute<W>> load_group(const W* from, N n) {
  Group<Compute<W>> x = {};
  if constexpr (std::is_same_v<W, Compute<W>> && !std::is_same_v<N, int64_t>) {
    __builtin_memcpy(&x, from, sizeof(x));
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] = widen(from + i);
  }
  return x;
}

template <typename W, typename N>
inline void store_group(W* to, Group<Compute<W>> x, N n) {
  if constexpr (std::is_same_v<W, Compute<W>> && !std::is_same_v<N, int64_t>) {
    __builtin_memcpy(to, &x, sizeof(x));
  } else if constexpr (std::is_same_v<W, BFloat16> && kGroup == 4 && !std::is_same_v<N, int64_t>) {
    const HalfLanes half = narrow(x);  // GCC would round one number after another
    __builtin_memcpy(to, &half, sizeof(half));
  } else {
    for (int64_t i = 0; i < n; ++i) narrow(to + i, x[i]);
  }
}

// Calls visit(first element, number of elements) for the groups of a row; for full groups the number is a
// constant.
template <int64_t kWidth, typename Visit>
inline void for_each_group(int64_t width, Visit visit) {
  const int64_t full = kWidth ? kWidth : width - width % kGroup;
  for (int64_t e = 0; e < full; e += kGroup) visit(e, std::integral_constant<int64_t, kGroup>{});
  if (!kWidth && full < width) visit(full, width - full);
}
