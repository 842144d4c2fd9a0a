#include "cpu/data/place_rows.h"

#include <cstring>

namespace adaftr_fast {
namespace {

typedef int32_t Four __attribute__((vector_size(16)));
typedef int32_t Unaligned __attribute__((vector_size(16), aligned(4)));

constexpr int64_t kRows = 64;  // of a block: four cache lines of each column, and few enough to stay in the L2 cache
constexpr int64_t kLine = 16;  // elements

Four load(const int32_t* from) { return *reinterpret_cast<const Unaligned*>(from); }
void store(int32_t* to, Four x) { *reinterpret_cast<Unaligned*>(to) = x; }

// Writes 4 rows of 4 columns, from element `at` on.
void transpose(const int32_t* const* columns, int64_t at, int32_t* to, int64_t step) {
  const Four a = load(columns[0] + at), b = load(columns[1] + at), c = load(columns[2] + at), d = load(columns[3] + at);
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7), high_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  store(to, __builtin_shufflevector(ab, cd, 0, 1, 4, 5));
  store(to + step, __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
  store(to + 2 * step, __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5));
  store(to + 3 * step, __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7));
}

// Writes kRows rows of all columns, from element `at` on.
void stack(const std::vector<const int32_t*>& columns, int64_t at, int32_t* to) {
  const auto width = static_cast<int64_t>(columns.size());
  int64_t f = 0;
  for (; f + 4 <= width; f += 4) {
    // So many columns are more streams than the hardware follows, and many of them fall into the same sets of the
    // caches.
    for (int64_t k = f + 8; k < f + 12 && k < width; ++k)
      for (int64_t r = 0; r < kRows; r += kLine) __builtin_prefetch(columns[k] + at + r);
    for (int64_t r = 0; r < kRows; r += 4) transpose(columns.data() + f, at + r, to + r * width + f, width);
  }
  for (; f < width; ++f)
    for (int64_t r = 0; r < kRows; ++r) to[r * width + f] = columns[f][at + r];
}

}  // namespace

void place_rows(const std::vector<const int32_t*>& columns, int64_t count, const int64_t* places, int32_t* rows) {
  const auto width = static_cast<int64_t>(columns.size());
  std::vector<int32_t> block(kRows * width);
  int64_t at = 0;
  for (; at + kRows <= count; at += kRows) {
    if (places == nullptr) {
      stack(columns, at, rows + at * width);
      continue;
    }
    stack(columns, at, block.data());
    for (int64_t r = 0; r < kRows; ++r)
      std::memcpy(rows + places[at + r] * width, block.data() + r * width, width * sizeof(int32_t));
  }
  for (; at < count; ++at) {
    int32_t* to = rows + (places == nullptr ? at : places[at]) * width;
    for (int64_t f = 0; f < width; ++f) to[f] = columns[f][at];
  }
}

}  // namespace adaftr_fast
