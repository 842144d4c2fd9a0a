// Vectors of VECTOR_BYTES through the compilers' vector extension; included once per instruction set, inside its
// namespace, after its target pragma. Nothing here may instantiate a standard template: the linker could then pick
// that copy, compiled for this set, for the whole program.

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(VECTOR_BYTES)));
  typedef float U __attribute__((vector_size(VECTOR_BYTES), aligned(4)));
  typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int kMantissa = 23;
  static constexpr float kMagic = 12582912.f + 127.f;  // 1.5 * 2^23 + exponent bias
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  static constexpr float kSmallest = -87.3f;  // below it exp is flushed to 0
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(VECTOR_BYTES)));
  typedef double U __attribute__((vector_size(VECTOR_BYTES), aligned(8)));
  typedef int64_t I __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int kMantissa = 52;
  static constexpr double kMagic = 6755399441055744.0 + 1023.0;
  static constexpr double kLn2Hi = 6.93145751953125e-1, kLn2Lo = 1.42860682030941723212e-6;
  static constexpr double kSmallest = -708.0;
};

template <class T>
using Vec = typename Simd<T>::V;

template <class T>
constexpr int kLanes = VECTOR_BYTES / sizeof(T);

template <class T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::U*>(p);
}
template <class T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::U*>(p) = v;
}
template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}
// A NaN in x is passed over: the maximum is of the numbers seen.
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
    typedef T Half __attribute__((vector_size(kBytes / 2), aligned(sizeof(T)), may_alias));
    const Half half =
        combine(*reinterpret_cast<const Half*>(p), *reinterpret_cast<const Half*>(p + kBytes / 2 / sizeof(T)));
    T lanes[kBytes / 2 / sizeof(T)];
    *reinterpret_cast<Half*>(lanes) = half;
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

inline Vec<float> exp_polynomial(Vec<float> r) {  // minimax on |r| <= ln(2)/2, relative error 3e-9 before rounding
  Vec<float> p = broadcast(1.38146079e-3f);
  p = p * r + 8.36871068e-3f;
  p = p * r + 4.16683875e-2f;
  p = p * r + 1.66665207e-1f;
  p = p * r + 4.99999935e-1f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}
inline Vec<double> exp_polynomial(Vec<double> r) {  // Taylor: r^13/13! < 2e-16
  Vec<double> p = broadcast(1.0 / 479001600);
  constexpr double c[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                          1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
  for (double ci : c) p = p * r + ci;
  return p;
}

// exp(x) for x < 88 and NaN; 0 below kSmallest. x = n ln 2 + r: adding kMagic leaves n + bias in the low bits.
template <class T>
inline Vec<T> exponential_of(Vec<T> x) {
  using S = Simd<T>;
  const Vec<T> t = x * T(1.4426950408889634) + S::kMagic;
  const Vec<T> n = t - S::kMagic;
  const Vec<T> r = (x - n * S::kLn2Hi) - n * S::kLn2Lo;
  const Vec<T> power = (Vec<T>)((typename S::I)t << S::kMantissa);
  const Vec<T> e = exp_polynomial(r) * power;
  return x < S::kSmallest ? Vec<T>{} : e;
}

// Denormals are flushed to zero while a kernel runs (softmax entries of sharp rows are full of them and cost
// microcode assists); the caller's mode is restored.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned saved = __builtin_ia32_stmxcsr();
  FlushDenormals() { __builtin_ia32_ldmxcsr(saved | 0x8040); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved); }
#elif defined(__aarch64__)
  uint64_t saved;
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved));
    asm volatile("msr fpcr, %0" ::"r"(saved | (uint64_t{1} << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved)); }
#endif
};
