// PyTorch's threads, for code that does not include PyTorch.
#pragma once

#include <cstdint>

namespace adaftr_fast {

// How many threads PyTorch may use for one op (torch.set_num_threads).
int64_t thread_count();

// Calls body(context, begin, end) on ranges that make up [0, count), each on a thread of its own and, where count
// allows, no shorter than grain. Denormals count as zero there. An exception from body reaches the caller as
// std::runtime_error, without its message. Throws where more than one thread would run and this process was forked
// after the calling thread had started threads here.
void parallel_ranges(int64_t count, int64_t grain, void (*body)(const void* context, int64_t begin, int64_t end),
                     const void* context);

// The same for a function object: body(begin, end).
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_ranges(
      count, grain,
      [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); }, &body);
}

}  // namespace adaftr_fast
