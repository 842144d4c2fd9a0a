// The merge in which all threads work on every field: for bags, which differ in size, and for few fields.
#pragma once

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

#include "cpu/embedding/backward/scratch.h"
#include "cpu/embedding/checks.h"
#include "cpu/embedding/kernels.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/parallel.h"

namespace adaftr_fast {

struct MergeShape {
  const int64_t* field_offsets;  // [F + 1]
  int64_t fields, batch, lookups, width;
};

// Clears a row set at the end of a scope, also when an exception ends it.
struct ClearAtEnd {
  const RowSet& set;
  int64_t fields;
  ~ClearAtEnd() { embedding_kernels().row_sets.clear(set, fields); }
};

// Ranks the marked rows; returns base [F + 1], the first place of each field in the result.
inline std::vector<int64_t> rank_fields(const RowSet& set, int64_t fields) {
  std::vector<int64_t> base(fields + 1, 0);
  for (int64_t f = 0; f < fields; ++f) base[f + 1] = base[f] + embedding_kernels().row_sets.rank(set, f);
  return base;
}

// Writes the marked rows in order, and zeros where their sums will be.
inline void emit_fields(const MergeShape& shape, const RowSet& set, const std::vector<int64_t>& base, int64_t* rows,
                        char* sums, int64_t row_bytes) {
  for (int64_t f = 0; f < shape.fields; ++f) {
    parallel_for(set.sumword[f + 1] - set.sumword[f], 4, [&](int64_t begin, int64_t end) {
      embedding_kernels().row_sets.emit(set, f, shape.field_offsets[f], rows + base[f], sums + base[f] * row_bytes,
                                        row_bytes, begin, end);
    });
  }
}

// The distinct rows [U] of a batch and the sums [U, E] of their gradients, of type `type`.
//   mark(set, begin, end)             marks batch rows; the first position out of range, or -1
//   raise(position)                   throws
//   merge(set, base, sums, part, parts)  adds up the gradients of one share of the rows
template <typename T, typename Mark, typename Raise, typename Merge>
std::tuple<Tensor, Tensor> merge_in_shares(const MergeShape& shape, ScalarType type, Mark mark, Raise raise,
                                           Merge merge) {
  const RowSet set = scratch_rows(shape.field_offsets, shape.fields);
  const ClearAtEnd clear{set, shape.fields};
  std::atomic<int64_t> bad{-1};
  const int64_t grain = std::max<int64_t>(1, kRowsPerTask * shape.batch / std::max<int64_t>(1, shape.lookups));
  parallel_for(shape.batch, grain, [&](int64_t begin, int64_t end) { keep_smallest(bad, mark(set, begin, end)); });
  if (bad >= 0) raise(bad.load());
  const std::vector<int64_t> base = rank_fields(set, shape.fields);
  Tensor rows = cached_empty({base.back()}, kLong);
  Tensor sums = cached_empty({base.back(), shape.width}, compute_type(type));
  if (base.back() > 0) {
    T* sum = mutable_data_of<T>(sums);
    emit_fields(shape, set, base, mutable_data_of<int64_t>(rows), reinterpret_cast<char*>(sum),
                shape.width * sizeof(T));
    const int64_t parts = shape.lookups < 2 * kRowsPerTask ? 1 : thread_count();
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) merge(set, base.data(), sum, part, parts);
    });
  }
  return {rows, as_type(sums, type)};
}

}  // namespace adaftr_fast
