// Vectors of VECTOR_BYTES through the compilers' vector extension; included once per instruction set, inside its
// namespace, after its target pragma. Nothing here may instantiate a standard template: the linker could then pick
// that copy, compiled for this set, for the whole program.
#pragma once

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(VECTOR_BYTES)));
  typedef float U __attribute__((vector_size(VECTOR_BYTES), aligned(4)));
  typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int kMantissa = 23;
  static constexpr float kMagic = 12582912.f + 127.f;  // 1.5 * 2^23 + exponent bias
  static constexpr float kSmallest = -126.f;           // below it 2^x is flushed to 0
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(VECTOR_BYTES)));
  typedef double U __attribute__((vector_size(VECTOR_BYTES), aligned(8)));
  typedef int64_t I __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int kMantissa = 52;
  static constexpr double kMagic = 6755399441055744.0 + 1023.0;
  static constexpr double kSmallest = -1022.0;
};

template <class T>
using Vec = typename Simd<T>::V;

template <class T>
constexpr int kLanes = VECTOR_BYTES / sizeof(T);

// N elements, in part of a register or in several.
template <class T, int N>
struct VectorOf {
  typedef T Type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using VecOf = typename VectorOf<T, N>::Type;

template <class T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::U*>(p);
}
template <class T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::U*>(p) = v;
}

template <int... kValues>
struct IntegerList {};
template <int kCount, int... kValues>
struct IotaOf : IotaOf<kCount - 1, kCount - 1, kValues...> {};
template <int... kValues>
struct IotaOf<0, kValues...> {
  using Type = IntegerList<kValues...>;
};
template <int kCount>
using Iota = typename IotaOf<kCount>::Type;

template <class T, int kHalf, int... kLane>
inline VecOf<T, 2 * kHalf> join(VecOf<T, kHalf> low, VecOf<T, kHalf> high, IntegerList<kLane...>) {
  return __builtin_shufflevector(low, high, kLane...);
}
template <class T, int kHalf, int kFirst, int... kLane>
inline VecOf<T, kHalf> half_of(VecOf<T, 2 * kHalf> x, IntegerList<kLane...>) {
  return __builtin_shufflevector(x, x, (kFirst + kLane)...);
}

// load_some and store_some without masks: a half, a quarter and so on of the vector, those that `count` has, and at
// the end up to three numbers. What was stored so is loaded by the same pieces, which the store buffer forwards; AMD's
// CPUs before AVX-512 take ten times as long for a masked store.
template <class T, int kCount>
inline VecOf<T, kCount> load_pieces(const T* from, int64_t count) {
  if constexpr (kCount == 2) {
    return count > 0 ? VecOf<T, 2>{from[0], 0} : VecOf<T, 2>{};
  } else if constexpr (kCount == 4) {
    if (count > 2) return VecOf<T, 4>{from[0], from[1], from[2], 0};
    if (count > 1) return VecOf<T, 4>{from[0], from[1], 0, 0};
    return count > 0 ? VecOf<T, 4>{from[0], 0, 0, 0} : VecOf<T, 4>{};
  } else {
    constexpr int kHalf = kCount / 2;
    VecOf<T, kHalf> low, high = {};
    if (count >= kHalf) {
      __builtin_memcpy(&low, from, sizeof(low));
      high = load_pieces<T, kHalf>(from + kHalf, count - kHalf);
    } else {
      low = load_pieces<T, kHalf>(from, count);
    }
    return join<T, kHalf>(low, high, Iota<kCount>{});
  }
}

template <class T, int kCount>
inline void store_pieces(T* to, int64_t count, VecOf<T, kCount> x) {
  if constexpr (kCount <= 4) {
    if (count > 0) to[0] = x[0];
    if constexpr (kCount == 4) {
      if (count > 1) to[1] = x[1];
      if (count > 2) to[2] = x[2];
    }
  } else {
    constexpr int kHalf = kCount / 2;
    const auto low = half_of<T, kHalf, 0>(x, Iota<kHalf>{});
    if (count >= kHalf) {
      __builtin_memcpy(to, &low, sizeof(low));
      store_pieces<T, kHalf>(to + kHalf, count - kHalf, half_of<T, kHalf, kHalf>(x, Iota<kHalf>{}));
    } else {
      store_pieces<T, kHalf>(to, count, low);
    }
  }
}

// The first `count` elements of a vector at `from`, the others zero; and back. 1 <= count < the lanes of V.
template <class V, class T>
inline V load_some(const T* from, int64_t count) {
#if VECTOR_BYTES == 64
  const auto mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) return (V)_mm256_maskz_loadu_epi16(mask, from);
  if constexpr (sizeof(T) == 4) return (V)_mm512_maskz_loadu_ps(mask, from);
  if constexpr (sizeof(T) == 8) return (V)_mm512_maskz_loadu_pd(mask, from);
#else
  return load_pieces<T, sizeof(V) / sizeof(T)>(from, count);
#endif
}

template <class V, class T>
inline void store_some(T* to, int64_t count, V x) {
#if VECTOR_BYTES == 64
  const auto mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(to, mask, (__m256i)x);
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(to, mask, (__m512)x);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(to, mask, (__m512d)x);
#else
  store_pieces<T, sizeof(V) / sizeof(T)>(to, count, x);
#endif
}

// As many elements as a vector of double has, converted to double; and back. GCC 12 makes loops that mix
// float and double scalar.
template <class T>
using DoubleLanesOf = VecOf<T, kLanes<double>>;
template <class T>
inline Vec<double> load_wide(const T* from, T factor = 1) {
  DoubleLanesOf<T> x;
  __builtin_memcpy(&x, from, sizeof(x));
  return __builtin_convertvector(x * factor, Vec<double>);
}
template <class T>
inline void store_narrow(T* to, Vec<double> x) {
  const auto narrow = __builtin_convertvector(x, DoubleLanesOf<T>);
  __builtin_memcpy(to, &narrow, sizeof(narrow));
}

template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}
// Ignores a NaN in x.
template <class T>
inline Vec<T> maximum(Vec<T> m, Vec<T> x) {
  return x > m ? x : m;
}
// Folds a vector to one number by halves: log2(lanes) steps, in registers.
template <class T, int kBytes, class Combine>
inline T fold(const T* p, Combine combine) {
  if constexpr (kBytes == sizeof(T)) {
    return *p;
  } else {
    VecOf<T, kBytes / 2 / sizeof(T)> halves[2];
    __builtin_memcpy(halves, p, sizeof(halves));
    const auto half = combine(halves[0], halves[1]);
    T lanes[sizeof(half) / sizeof(T)];
    __builtin_memcpy(lanes, &half, sizeof(half));
    return fold<T, kBytes / 2>(lanes, combine);
  }
}
template <class T>
inline T horizontal_max(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  return fold<T, VECTOR_BYTES>(lanes, [](auto x, auto y) { return x > y ? x : y; });
}
template <class T>
inline T horizontal_sum(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  return fold<T, VECTOR_BYTES>(lanes, [](auto x, auto y) { return x + y; });
}

// Of a number or of a vector. GCC does not vectorise std::sqrt, which may set errno, and the option against that is one
// for the whole build.
inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }
template <class V>
inline V square_root(V x) {
#if defined(__clang__) && __has_builtin(__builtin_elementwise_sqrt)
  return __builtin_elementwise_sqrt(x);
#else
#if VECTOR_BYTES == 32
  if constexpr (sizeof(x) == 32 && sizeof(x[0]) == 4) return __builtin_ia32_sqrtps256(x);
#endif
  for (unsigned i = 0; i < sizeof(x) / sizeof(x[0]); ++i) x[i] = square_root(x[i]);
  return x;
#endif
}

// Whether a lane of x exceeds the bound; a NaN does not.
template <class T>
inline bool any_above(Vec<T> x, T bound) {
#if VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
  if constexpr (sizeof(T) == 8) return _mm512_cmp_pd_mask(x, _mm512_set1_pd(bound), _CMP_GT_OQ) != 0;
#endif
  return horizontal_max<T>(x > bound ? broadcast(T(1)) : Vec<T>{}) > 0;
}

// 2^f for |f| <= 1/2, minimax: relative error 2e-9 before rounding, or 1e-4 for results kept in bfloat16.
template <bool kRough>
inline Vec<float> exp2_fraction(Vec<float> f) {
  if constexpr (kRough) return ((5.50088736e-2f * f + 2.42210992e-1f) * f + 6.93282940e-1f) * f + 1.f;
  Vec<float> p = 1.53533590e-4f * f + 1.33988757e-3f;
  p = p * f + 9.61843738e-3f;
  p = p * f + 5.55033247e-2f;
  p = p * f + 2.40226479e-1f;
  p = p * f + 6.93147203e-1f;
  return p * f + 1.f;
}
template <bool kRough>
inline Vec<double> exp2_fraction(Vec<double> f) {  // Taylor of exp(f ln 2): r^13 / 13! < 2e-16
  const Vec<double> r = f * 0.69314718055994530942;
  Vec<double> p = broadcast(1.0 / 479001600);
  constexpr double c[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                          1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
  for (double ci : c) p = p * r + ci;
  return p;
}

// 2^x for x < 128 and NaN; 0 below kSmallest. x = n + f: adding kMagic leaves n + exponent bias in the low bits.
template <class T, bool kRough = false>
inline Vec<T> exp2_of(Vec<T> x) {
  using S = Simd<T>;
#if VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {  // VSCALEF multiplies by 2^n and handles underflow: 4 operations fewer
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT);
    return _mm512_scalef_ps(exp2_fraction<kRough>(f), x - f);
  }
#endif
  const Vec<T> t = x + S::kMagic;
  const Vec<T> power = (Vec<T>)((typename S::I)t << S::kMantissa);
  const Vec<T> e = exp2_fraction<kRough>(x - (t - S::kMagic)) * power;
  return x < S::kSmallest ? Vec<T>{} : e;
}

// log(1 + e) for e in [0, 1], by the series of 2 artanh(w), w = e / (2 + e) <= 1/3: relative error below an ulp.
template <class T>
inline Vec<T> log1p_of(Vec<T> e) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
  const Vec<T> w = e / (e + T(2)), square = w * w;
  Vec<T> sum = broadcast(T(1) / (2 * kTerms - 1));
#pragma GCC unroll 16
  for (int k = kTerms - 2; k >= 0; --k) sum = sum * square + T(1) / T(2 * k + 1);
  return T(2) * w * sum;
}
