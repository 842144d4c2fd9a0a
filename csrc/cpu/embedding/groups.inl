// Rows of tables in groups of elements, converted between storage and arithmetic. Included once per instruction set
// (see vectors.inl).
#pragma once

#include "cpu/simd/bfloat16.inl"
#include "cpu/simd/vectors.inl"

// Kernels work on rows in groups of 8 elements, whatever the width of registers: embeddings are often 8 wide. On NEON,
// where GCC keeps a vector in memory that is wider than a register, a group is a register of float32.
#if defined(__aarch64__)
constexpr int64_t kGroup = 4;
#else
constexpr int64_t kGroup = 8;
#endif
template <typename T>
using Group = VecOf<T, kGroup>;
template <int kElements>
using Count = std::integral_constant<int64_t, kElements>;

// A stored element as vectors have it.
template <typename W>
using Bits = std::conditional_t<sizeof(W) == 2, uint16_t, W>;
using Words = Group<uint32_t>;

template <typename W>
inline Group<Compute<W>> widen_group(const Group<Bits<W>>& x) {
  if constexpr (std::is_same_v<W, Compute<W>>) {
    return x;
  } else if constexpr (std::is_same_v<W, BFloat16>) {
    return (Group<float>)(__builtin_convertvector(x, Words) << 16);
  } else {
#if defined(__aarch64__)
    Group<float> wide;
    for (int64_t i = 0; i < kGroup; ++i) wide[i] = std::bit_cast<__fp16>(x[i]);
    return wide;
#else
    // Both directions by arithmetic on the exponent, so no F16C is needed.
    const Words half = __builtin_convertvector(x, Words), sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
    const Words normal = (magnitude << 13) + 0x38000000;  // exponent bias 15 to 127
    // 2^-14 (1 + magnitude / 1024) - 2^-14: no float on the way is denormal, which kernels flush
    // (runtime/parallel.cpp).
    const Words subnormal = (Words)((Group<float>)(normal + 0x800000) - 0x1p-14f);
    const Words finite = magnitude < 0x400 ? subnormal : normal;
    return (Group<float>)(sign | (magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : finite));
#endif
  }
}

template <typename W>
inline Group<Bits<W>> narrow_group(const Group<Compute<W>>& x) {
  if constexpr (std::is_same_v<W, Compute<W>>) {
    return x;
  } else if constexpr (std::is_same_v<W, BFloat16>) {
    return __builtin_convertvector(rounded_to_bfloat16((Words)x), Group<uint16_t>);
  } else {
#if defined(__aarch64__)
    Group<uint16_t> half;
    for (int64_t i = 0; i < kGroup; ++i) half[i] = std::bit_cast<uint16_t>(static_cast<__fp16>(x[i]));
    return half;
#else
    const Words bits = (Words)x, sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    // Below 2^-14 the result is subnormal: adding 0.5 leaves its bits, rounded, at the end of the sum.
    const Words subnormal = (Words)((Group<float>)magnitude + 0.5f) - 0x3f000000;
    const Words normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    Words half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? Words{} + 0x7c00 : half;  // rounds to 2^16 or more
    half = magnitude > 0x7f800000 ? Words{} + 0x7e00 : half;   // NaN
    return __builtin_convertvector(sign | half, Group<uint16_t>);
#endif
  }
}

// The first n elements at `from`, then zeros.
template <typename W, typename N>
inline Group<Compute<W>> load_group(const W* from, N n) {
  const auto* bits = reinterpret_cast<const Bits<W>*>(from);
  Group<Bits<W>> x;
  if constexpr (N::value == kGroup) {
    __builtin_memcpy(&x, bits, sizeof(x));
  } else {
    x = load_pieces<Bits<W>, kGroup>(bits, n);
  }
  return widen_group<W>(x);
}

template <typename W, typename N>
inline void store_group(W* to, const Group<Compute<W>>& x, N n) {
  auto* bits = reinterpret_cast<Bits<W>*>(to);
  const Group<Bits<W>> narrow = narrow_group<W>(x);
  if constexpr (N::value == kGroup) {
    __builtin_memcpy(bits, &narrow, sizeof(narrow));
  } else {
    store_pieces<Bits<W>, kGroup>(bits, n, narrow);
  }
}

// The number is a constant: there is one branch for each row, which is predicted, and not some for each load and store.
template <typename Visit, int... kCount>
inline void visit_last(int64_t first, int64_t count, Visit visit, IntegerList<0, kCount...>) {
  ((count == kCount ? visit(first, Count<kCount>{}) : void()), ...);
}

// Calls visit(first element, Count of elements) for the groups of a row.
template <int64_t kWidth, typename Visit>
inline void for_each_group(int64_t width, Visit visit) {
  const int64_t full = kWidth ? kWidth : width - width % kGroup;
  for (int64_t e = 0; e < full; e += kGroup) visit(e, Count<kGroup>{});
  if constexpr (kWidth == 0) visit_last(full, width - full, visit, Iota<kGroup>{});
}
