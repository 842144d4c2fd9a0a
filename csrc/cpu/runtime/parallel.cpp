#include "cpu/runtime/parallel.h"

#include <ATen/Parallel.h>

namespace adaftr_fast {

Parallel torch_threads() {
  return {at::get_num_threads(), [](int64_t tasks, void (*body)(void*, int64_t), void* context) {
            at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) body(context, i);
            });
          }};
}

}  // namespace adaftr_fast
