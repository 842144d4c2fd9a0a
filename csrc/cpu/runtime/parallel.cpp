#include "cpu/runtime/parallel.h"

#include <pthread.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/runtime/tensor.h"

namespace adaftr_fast {

int64_t thread_count() { return torch::stable::get_num_threads(); }

namespace {

// GNU's OpenMP keeps a pool of threads for each thread that enters a parallel region. A fork copies the record of the
// forking thread's pool but not the pool's threads, and the child's next region waits for them forever. The variables
// are per thread because pools are: a thread that the child starts gets a pool of its own.
thread_local bool has_pool = false;
thread_local bool lost_pool = false;

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { lost_pool = has_pool; });

bool in_parallel_region() {
#if defined(_OPENMP)
  return omp_in_parallel() != 0;
#else
  return false;
#endif
}

// Flushes denormals to zero, operands and results, while a kernel runs: each costs a microcode assist. Softmax entries
// of sharp rows are full of them, and so are the weights of a unit that no gradient reaches any more, which weight
// decay shrinks without end. The caller's mode is restored.
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

// Whether torch::stable::parallel_for takes more than one thread.
bool takes_threads(int64_t count, int64_t grain) {
  return count > 1 && count > grain && !in_parallel_region() && thread_count() > 1;
}

}  // namespace

void parallel_ranges(int64_t count, int64_t grain, void (*body)(const void*, int64_t, int64_t), const void* context) {
  if (takes_threads(count, grain)) {
    ADAFTR_CHECK(!lost_pool, "adaftr_fast: cannot run an op on ", thread_count(),
                 " threads: this process was forked after the kernels had started threads, which a fork does not copy. "
                 "Start workers by spawn or forkserver, or call torch.set_num_threads(1) in them");
    has_pool = true;
  }
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const FlushDenormals guard;
    body(context, begin, end);
  });
}

}  // namespace adaftr_fast
