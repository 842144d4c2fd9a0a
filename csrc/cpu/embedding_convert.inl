// Reads and writes of table elements, rounding to nearest even. Internal linkage: compiled per instruction set.

namespace adaftr_fast {
namespace {

inline float load(const float* from) { return *from; }
inline double load(const double* from) { return *from; }
inline void store(float* to, float value) { *to = value; }
inline void store(double* to, double value) { *to = value; }

inline float load(const BFloat16* from) { return std::bit_cast<float>(static_cast<uint32_t>(from->bits) << 16); }

inline void store(BFloat16* to, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;  // rounding could carry a NaN over to infinity
  to->bits = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40 : rounded >> 16);
}

// Both directions by float arithmetic (exponent shifts are exact multiplications), so no F16C is needed.
inline float load(const Float16* from) {
  const uint32_t sign = static_cast<uint32_t>(from->bits & 0x8000) << 16, magnitude = from->bits & 0x7fff;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;  // exponent bias 15 to 127
  const uint32_t bits = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(sign | bits);
}

inline void store(Float16* to, float value) {
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

}  // namespace
}  // namespace adaftr_fast
