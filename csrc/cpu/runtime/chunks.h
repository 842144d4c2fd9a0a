// Work on many tensors at once, in chunks that threads share whatever the tensors' sizes are.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/runtime/parallel.h"
#include "cpu/runtime/tensor.h"

namespace adaftr_fast {

// A part of a tensor.
struct Chunk {
  size_t tensor;
  int64_t begin, end;
};

// The tensors in chunks of at most `size` elements.
inline std::vector<Chunk> chunks_of(const Tensors& tensors, int64_t size) {
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const int64_t count = tensors[t].numel();
    for (int64_t begin = 0; begin < count; begin += size) chunks.push_back({t, begin, std::min(begin + size, count)});
  }
  return chunks;
}

// body(chunk, index) on several threads.
template <class Body>
void over_chunks(const std::vector<Chunk>& chunks, Body body) {
  parallel_for(static_cast<int64_t>(chunks.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(chunks[i], i);
  });
}

}  // namespace adaftr_fast
