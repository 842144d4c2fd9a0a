#include "cpu/runtime/caching_allocator.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/accumulate.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <mutex>
#include <vector>

namespace adaftr_fast {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kSmallest = size_t{1} << 18;    // malloc keeps blocks below this by itself
constexpr size_t kMostIdle = size_t{256} << 20;  // idle bytes kept; beyond, the oldest blocks are freed

struct Block {
  void* data;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Block> idle;  // oldest first
  size_t idle_bytes = 0;
};

Pool& pool() {
  static auto* instance = new Pool;  // never destroyed: tensors may outlive main
  return *instance;
}

// The idle block of this size that was used last.
void* take_idle(size_t bytes) {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  for (auto block = p.idle.rbegin(); block != p.idle.rend(); ++block) {
    if (block->bytes != bytes) continue;
    void* data = block->data;
    p.idle_bytes -= block->bytes;
    p.idle.erase(std::next(block).base());
    return data;
  }
  return nullptr;
}

void give_back(Block block) {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  p.idle.push_back(block);
  p.idle_bytes += block.bytes;
  while (p.idle_bytes > kMostIdle) {
    p.idle_bytes -= p.idle.front().bytes;
    std::free(p.idle.front().data);
    p.idle.erase(p.idle.begin());
  }
}

// Sizes are rounded up to eighths of a power of two, so that batches of about the same size share blocks.
size_t round_up(size_t bytes) {
  size_t step = kHugePage;
  while (step * 8 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

void* allocate(size_t bytes) {
  void* data = std::aligned_alloc(kHugePage, bytes);
  TORCH_CHECK(data != nullptr, "adaftr_fast: out of memory: ", bytes, " bytes");
#if defined(__linux__)
  (void)madvise(data, bytes, MADV_HUGEPAGE);  // advice only
#endif
  return data;
}

}  // namespace

at::Tensor pooled_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (bytes < kSmallest) return at::empty(sizes, options);
  Block block{nullptr, round_up(bytes)};
  block.data = take_idle(block.bytes);
  if (block.data == nullptr) block.data = allocate(block.bytes);
  return at::from_blob(block.data, sizes, [block](void*) { give_back(block); }, options);
}

}  // namespace adaftr_fast
