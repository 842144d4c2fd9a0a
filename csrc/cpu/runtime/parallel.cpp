#include "cpu/runtime/parallel.h"

#include <ATen/Parallel.h>

namespace adaftr_fast {

int64_t thread_count() { return at::get_num_threads(); }

void parallel_ranges(int64_t count, int64_t grain, void (*body)(const void*, int64_t, int64_t), const void* context) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace adaftr_fast
