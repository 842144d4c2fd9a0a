#include "cpu/data/place_rows.h"

#include <cstring>
#include <vector>

namespace adaftr_fast {
namespace {

constexpr int64_t kBytes = 4;  // of an element, whatever its type
constexpr int64_t kRows = 64;  // of a block: four cache lines of each column, and few enough to stay in the L2 cache
constexpr int64_t kLine = 64;  // bytes

typedef int32_t Four __attribute__((vector_size(4 * kBytes)));

const char* at(const void* column, int64_t row) { return static_cast<const char*>(column) + row * kBytes; }

Four load(const char* from) {
  Four x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

void store(char* to, Four x) { std::memcpy(to, &x, sizeof(x)); }

// Writes 4 rows of 4 columns, from row `row` on; rows of `to` are `step` bytes apart.
void transpose(const void* const* columns, int64_t row, char* to, int64_t step) {
  const Four a = load(at(columns[0], row)), b = load(at(columns[1], row));
  const Four c = load(at(columns[2], row)), d = load(at(columns[3], row));
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7), high_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  store(to, __builtin_shufflevector(ab, cd, 0, 1, 4, 5));
  store(to + step, __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
  store(to + 2 * step, __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5));
  store(to + 3 * step, __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7));
}

// Writes kRows rows of all columns, from row `row` on.
void stack(const void* const* columns, int64_t width, int64_t row, char* to) {
  const int64_t step = width * kBytes;
  int64_t f = 0;
  for (; f + 4 <= width; f += 4) {
    // So many columns are more streams than the hardware follows, and many of them fall into the same sets of the
    // caches.
    for (int64_t k = f + 8; k < f + 12 && k < width; ++k)
      for (int64_t ahead = 0; ahead < kRows * kBytes; ahead += kLine) __builtin_prefetch(at(columns[k], row) + ahead);
    for (int64_t r = 0; r < kRows; r += 4) transpose(columns + f, row + r, to + r * step + f * kBytes, step);
  }
  for (; f < width; ++f)
    for (int64_t r = 0; r < kRows; ++r) std::memcpy(to + r * step + f * kBytes, at(columns[f], row + r), kBytes);
}

}  // namespace

void place_rows(const void* const* columns, int64_t width, int64_t count, const int64_t* places, void* rows) {
  const int64_t step = width * kBytes;
  const auto row_of = [&](int64_t row) {
    return static_cast<char*>(rows) + (places == nullptr ? row : places[row]) * step;
  };
  std::vector<char> block(kRows * step);
  int64_t row = 0;
  for (; row + kRows <= count; row += kRows) {
    if (places == nullptr) {
      stack(columns, width, row, row_of(row));
      continue;
    }
    stack(columns, width, row, block.data());
    for (int64_t r = 0; r < kRows; ++r) std::memcpy(row_of(row + r), block.data() + r * step, step);
  }
  for (; row < count; ++row)
    for (int64_t f = 0; f < width; ++f) std::memcpy(row_of(row) + f * kBytes, at(columns[f], row), kBytes);
}

}  // namespace adaftr_fast
