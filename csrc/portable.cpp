// Lets a wheel that is linked on a newer Linux run with glibc 2.28, as the tag manylinux_2_28 promises. Each function
// that glibc has versioned anew since is bound to its first version, which differs in how it reports errors alone.
// libstdc++ is linked as an archive that is not seen from outside. Exceptions pass to torch, but
// std::uncaught_exceptions counts them on one side alone.
#if defined(__x86_64__)
#define ADAFTR_FIRST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define ADAFTR_FIRST "GLIBC_2.17"
#endif

// Gives all files of the library, and libstdc++'s, a function of their own by this name.
#define ADAFTR_BIND(name, result, parameters, arguments)                                  \
  __asm__(".symver first_" #name ", " #name "@" ADAFTR_FIRST);                            \
  extern "C" result first_##name parameters;                                              \
  extern "C" [[gnu::visibility("hidden")]] result bound_##name parameters __asm__(#name); \
  result bound_##name parameters { return first_##name arguments; }

ADAFTR_BIND(exp, double, (double x), (x))
ADAFTR_BIND(exp2, double, (double x), (x))
ADAFTR_BIND(log, double, (double x), (x))
ADAFTR_BIND(pow, double, (double x, double y), (x, y))
ADAFTR_BIND(pthread_once, int, (int* once, void (*run)()), (once, run))

extern "C" {
// Whether the process has a single thread, which glibc 2.32 tells libstdc++. It is always safe to deny it.
[[gnu::visibility("hidden")]] char __libc_single_threaded;
}
