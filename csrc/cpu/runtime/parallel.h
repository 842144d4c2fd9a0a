// How a torch-free kernel runs on several threads.
#pragma once

#include <cstdint>

namespace adaftr_fast {

// Runs body(context, i) for i in [0, tasks), tasks <= threads, each on a thread of its own.
struct Parallel {
  int64_t threads;
  void (*run)(int64_t tasks, void (*body)(void* context, int64_t task), void* context);
};

// The threads of PyTorch.
Parallel torch_threads();

}  // namespace adaftr_fast
