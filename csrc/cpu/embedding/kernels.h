// The embedding's kernels of one instruction set, as a table, and the table to use.
//
// Kernels take pointers and sizes only. Each works on a range of batch rows or of fields, so that the caller divides
// the work among threads and no result depends on their number.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "cpu/embedding/backward/merge.h"
#include "cpu/embedding/backward/row_set.h"
#include "cpu/embedding/bags/bags.h"
#include "cpu/embedding/lookup/lookup.h"
#include "cpu/embedding/optim/adam.h"
#include "cpu/embedding/optim/update.h"
#include "cpu/embedding/types.h"

namespace adaftr_fast {

// Kernels for ids, whatever the type of the table.
template <typename Id>
struct IdKernels {
  // Copies the rows of batch rows [begin, end) into out [B, F * row_bytes]. Returns the flat position of the
  // first id out of range, or -1; what was copied is then not to be used.
  int64_t (*lookup)(const Ids<Id>&, const char* weight, int64_t row_bytes, char* out, int64_t begin, int64_t end);
  // For fields [begin, end): the number of distinct rows to unique [F], and of each look-up how many of them stand
  // before its own to place [F, B]. The scratch has room for any one of the fields, so that it stays in cache.
  // Returns the flat position of an id out of range, or -1.
  int64_t (*rank)(const Ids<Id>&, const FieldSet& scratch, uint32_t* place, int64_t* unique, int64_t begin,
                  int64_t end);
  // Sets the bits of batch rows [begin, end), while other threads set theirs. Returns the first position out of range,
  // or -1.
  int64_t (*mark_shared)(const Ids<Id>&, const RowSet&, int64_t begin, int64_t end);
};

// Kernels for ids of tables stored as W.
template <typename W, typename Id>
struct IndexKernels {
  MergeKernels<W, Id> merge;
  BagKernels<W, Id> bags;
  // As IdKernels::lookup, of the rows' current values, which are not written back.
  int64_t (*adam_lookup)(const Ids<Id>&, const AdamTable<W>&, W* out, int64_t begin, int64_t end);
};

// Kernels for tables stored as W.
template <typename W>
struct TypedKernels {
  UpdateKernels<W> update;
  AdamKernels<W> adam;
  std::tuple<IndexKernels<W, int32_t>, IndexKernels<W, int64_t>> by_id;
};

struct EmbeddingKernels {
  // Whether rows [count] rise strictly.
  bool (*rising)(const int64_t* rows, int64_t count);
  RowSetKernels row_sets;
  std::tuple<IdKernels<int32_t>, IdKernels<int64_t>> by_id;
  std::tuple<TypedKernels<float>, TypedKernels<double>, TypedKernels<BFloat16>, TypedKernels<Float16>> typed;
};

namespace generic {
extern const EmbeddingKernels kEmbedding;
}
namespace avx2 {
extern const EmbeddingKernels kEmbedding;
}

// The kernels for capability().
const EmbeddingKernels& embedding_kernels();

template <typename Id>
const IdKernels<Id>& id_kernels() {
  return std::get<IdKernels<Id>>(embedding_kernels().by_id);
}

template <typename W>
const TypedKernels<W>& typed_kernels() {
  return std::get<TypedKernels<W>>(embedding_kernels().typed);
}

template <typename W, typename Id>
const IndexKernels<W, Id>& index_kernels() {
  return std::get<IndexKernels<W, Id>>(typed_kernels<W>().by_id);
}

}  // namespace adaftr_fast
