#include "cpu/runtime/caching_allocator.h"

#include <cstdlib>
#include <functional>
#include <mutex>
#include <numeric>
#include <vector>

#include "cpu/runtime/huge_pages.h"

namespace adaftr_fast {
namespace {

constexpr size_t kSmallest = size_t{1} << 18;    // malloc keeps blocks below this by itself
constexpr size_t kMostIdle = size_t{256} << 20;  // idle bytes kept; beyond, the oldest blocks are freed

struct Block {
  void* data;
  size_t bytes;
};

struct Cache {
  std::mutex mutex;
  std::vector<Block> idle;  // oldest first
  size_t idle_bytes = 0;
};

Cache& cache() {
  static auto* instance = new Cache;  // never destroyed: tensors may outlive main
  return *instance;
}

// The idle block of this size that was used last.
void* take_idle(size_t bytes) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  for (auto block = c.idle.rbegin(); block != c.idle.rend(); ++block) {
    if (block->bytes != bytes) continue;
    void* data = block->data;
    c.idle_bytes -= block->bytes;
    c.idle.erase(std::next(block).base());
    return data;
  }
  return nullptr;
}

void give_back(Block block) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.idle.push_back(block);
  c.idle_bytes += block.bytes;
  while (c.idle_bytes > kMostIdle) {
    c.idle_bytes -= c.idle.front().bytes;
    std::free(c.idle.front().data);
    c.idle.erase(c.idle.begin());
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
  ADAFTR_CHECK(data != nullptr, "adaftr_fast: out of memory: ", bytes, " bytes");
  advise_huge_pages(data, bytes);
  return data;
}

}  // namespace

Tensor cached_empty(Sizes sizes, ScalarType type) {
  const auto count = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  const size_t bytes = static_cast<size_t>(count) * size_of(type);
  if (bytes < kSmallest) return empty(sizes, type);
  Block block{nullptr, round_up(bytes)};
  block.data = take_idle(block.bytes);
  if (block.data == nullptr) block.data = allocate(block.bytes);
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(block.data, sizes, contiguous_strides(sizes), cpu, type,
                                  [block](void*) { give_back(block); });
}

}  // namespace adaftr_fast
